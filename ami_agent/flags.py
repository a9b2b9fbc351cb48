"""The flags of every command, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ami_agent.build import Config
from ami_agent.evaluate import EPISODES_FROM
from ami_agent.life import WorldConfig
from modules.types import require

Device = Literal["auto", "cpu", "cuda"]
Mode = Literal["react", "plan", "auto"]


@dataclass(frozen=True, kw_only=True)
class EnvFlags:
    """Which world, for recipes that are for any."""

    env: WorldConfig


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Trains a recipe, checkpoints it, and evaluates it at the end."""

    out: str = ""
    """Run folder; runs/RECIPE/SEED if not given."""
    seed: int = 0
    resume: bool = False
    """Go on with a run that was interrupted."""
    device: Device = "auto"
    json: str = ""
    """A file for the results."""
    episodes: int = 100
    """Episodes of the evaluation at the end."""
    save_every: float = 60.0
    """Seconds between checkpoints."""
    curve: int = 0
    """Episodes in which Mode-2 is judged after every lesson, and whoever acts as it goes where life
    and learning interleave; they take their time."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class EvalFlags:
    """Success, steps and milliseconds per action, beside random motion and the oracle."""

    mode: Mode = "plan"
    task: str = ""
    """One of the recipe's tasks; its first one if not given."""
    episodes: int = 100
    seed: int = EPISODES_FROM
    """Episode i has seed + i."""
    env: str = ""
    """Another world than the one the recipe is judged in."""
    variant: str = ""
    """Another variant of it."""
    device: Device = "auto"
    json: str = ""
    """A file for the results."""


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Planning rollouts as pictures: per episode a PNG and a GIF, and a page for all."""

    mode: Mode | Literal["both"] = "plan"
    """"both": plan and react side by side, on the same seeds."""
    task: str = ""
    """One of the recipe's tasks; its first one if not given."""
    episodes: int = 3
    seed: int = EPISODES_FROM
    out: str = ""
    """Folder of the pictures; show/ in the run folder if not given."""
    device: Device = "auto"
    json: str = ""
    """A file that says where the page is and what it shows."""


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Recipes, worlds, boxes and what can stand in each."""

    json: str = ""
    """A file for the same."""


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """Trains and evaluates the Configs that a function returns, FILE.py:FUNCTION."""

    seeds: int = 3
    episodes: int = 100
    workers: int = 1
    """Runs at once, each in a process of its own."""
    ray: str = ""
    """Address of a Ray cluster that carries them out; "local" starts one on this machine."""
    out: str = ""
    """Folder of the study; runs/ablate-NAME if not given."""
    device: Device = "auto"
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        require(self, seeds=1, episodes=1, workers=1)


@dataclass(frozen=True, kw_only=True)
class AblateFlags(StudyFlags):
    """Trains and evaluates a recipe and its variants."""

    without: tuple[str, ...] = ()
    """What to take away, each by itself."""
    swap: tuple[str, ...] = ()
    """What to put in place of another, as box=choice, each by itself."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    """What the representation knows: collapse, linear read-outs, the push exams."""

    seed: int = 0
    device: Device = "auto"
    json: str = ""
    """A file for the results."""
