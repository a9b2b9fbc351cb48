"""How many steps of life it takes to do well in a world, beside Stable-Baselines3: the same worlds,
the same thresholds, the same episodes that judge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium
from rich.console import Console

from ami_agent import files, runs, settings
from ami_agent.bench import rivals
from ami_agent.bench.rivals import Curve
from ami_agent.build import Config
from ami_agent.evaluate import EPISODES_FROM, play_many
from ami_agent.flags import Device, device, rooted
from ami_agent.lessons import Interact
from ami_agent.life import WorldConfig
from ami_agent.players import aimless
from ami_agent.recipes.gym import gym
from ami_agent.report import Report, figure, print_table, say
from ami_agent.train import train
from modules.bounds import Choice
from modules.types import EPISODES, STEPS, UnusableInput, require

Who = Literal["random", "ami", "sac", "td3", "ppo", "dqn", "her"]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """How long a world is lived in, how often one is judged, and when it counts as solved."""

    steps: int = 10_000
    every: int = 1000
    their_steps: int = 10_000
    their_every: int = 1000
    solved: float | None = None  # None: as the world registers it
    ratio: float = 1.0  # of our updates to our steps


EXAMS: Mapping[str, Exam] = {
    "Pendulum-v1": Exam(steps=3000, every=250, their_steps=6000, their_every=500, solved=-200.0),
    "CartPole-v1": Exam(steps=3000, every=250, their_steps=50_000, their_every=4096),
    "InvertedPendulum-v5": Exam(steps=3000, every=250, their_steps=12_000, their_every=1000),
    "Reacher-v5": Exam(steps=12_000, every=1000, their_steps=20_000, their_every=2000),
    "HalfCheetah-v5": Exam(
        steps=30_000, every=3000, their_steps=100_000, their_every=10_000, ratio=0.5
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Steps of life until a world is solved, beside Stable-Baselines3 with its default settings.

    In all worlds that there are exams for, unless one is named. What was found once is kept: a
    command that was stopped goes on where it was."""

    env: WorldConfig = field(default_factory=lambda: WorldConfig(id=""))
    """One world, any that Gymnasium knows."""
    who: tuple[Who, ...] = ()
    """Who lives in it; if not given, random motion, this agent, and SAC, with HER where the world
    has goals of its own, or PPO where actions are choices."""
    steps: int = 0
    """Steps of life; if not given, those of the world's exam, or 10000. This agent lives 500 of
    random motion before."""
    every: int = 0
    """Steps after which one is judged; if not given, those of the exam, or 1000."""
    solved: float | None = None
    """Mean return that counts as solved; as the world registers it if not given."""
    seeds: int = 3
    episodes: int = 20
    """Episodes that judge."""
    out: str = "runs/worlds"
    """Folder of runs and curves."""
    device: Device = "auto"
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        if self.solved is not None:
            require(self, solved=(-1e12, 1e12))
        require(self, steps=STEPS, every=STEPS, seeds=(1, 10_000), episodes=EPISODES)

    def run(self, console: Console) -> dict[str, Any]:
        """By world: the threshold, and by who the curve of each seed."""
        worlds = [self.env.id] if self.env.id else list(EXAMS)
        found = {name: self._contest(name, console) for name in worlds}
        print_table(console, "steps of life until a world is solved", COLUMNS, _rows(found))
        return found

    def _contest(self, name: str, console: Console) -> dict[str, Any]:
        config = gym(rooted(replace(self.env, id=name)))
        if not self.who or set(self.who) - {"random", "ami"}:
            rivals.check_installed()
        exam = self._exam(name)
        suits = suiting(config)
        curves: dict[str, list[Curve]] = {}
        for who in self.who or ("random", "ami", suits):
            life = {"random": (0, 0), "ami": (exam.steps, exam.every)}
            steps, every = life.get(who, (exam.their_steps, exam.their_every))
            trial = Trial(config, who, steps, every, self.episodes, device(self.device), exam.ratio)
            say(console, f"{name}: {who}")
            home = Path(self.out) / name
            curves[who] = [trial.curve(home, seed, console) for seed in range(self.seeds)]
        return {"solved_at": exam.solved, "curves": curves}

    def _exam(self, name: str) -> Exam:
        exam = EXAMS.get(name, Exam())
        registered = gymnasium.spec(name).reward_threshold if self.solved is None else None
        known = (self.solved, exam.solved, registered)
        return replace(
            exam, steps=self.steps or exam.steps, every=self.every or exam.every,
            their_steps=self.steps or exam.their_steps, their_every=self.every or exam.their_every,
            solved=next((mark for mark in known if mark is not None), None),
        )  # fmt: skip


def suiting(config: Config) -> Who:
    """Who of Stable-Baselines3 suits a world."""
    if isinstance(config.bounds, Choice):
        return "ppo"
    assert isinstance(config.interact, Interact)
    return "her" if config.interact.hindsight else "sac"


@dataclass(frozen=True)
class Trial:
    """Who lives in a world, for how long, and how often he is judged."""

    config: Config
    who: str
    steps: int
    every: int
    episodes: int
    device: str
    ratio: float = 1.0

    def curve(self, home: Path, seed: int, console: Console) -> Curve:
        """Found once; UnusableInput where what was found before is of another trial. A curve is
        known by what was asked, not by the code that found it."""
        label = self.who if self.who in ("random", "ami") else self.who.upper()
        path = home / f"{label}-{seed}-{self.episodes}.json"
        asked = json.loads(json.dumps(self._asked()))
        if not path.exists():
            found = self._found(home / str(seed), seed, console)
            path.parent.mkdir(parents=True, exist_ok=True)
            runs.write_json(path, {"asked": asked, "curve": found})
        known = runs.read_json(path)
        if not isinstance(known, dict) or not _is_curve(known.get("curve")):
            raise UnusableInput(f"{path} holds no curve: remove it, and it is found again")
        if differing := settings.differences(known.get("asked", asked), asked):
            raise UnusableInput(
                f"{path} was found with other settings, {differing[0]}: choose another --out"
            )
        return [tuple(point) for point in known["curve"]]  # type: ignore[misc]

    def _asked(self) -> dict[str, Any]:
        if self.who == "ami":
            return settings.to_json(self._ours())
        return {"world": asdict(self.config.world), "steps": self.steps, "every": self.every}

    def _ours(self) -> Config:
        interact = self.config.interact
        assert isinstance(interact, Interact)
        interact = replace(interact, steps=self.steps, judge=self.every, ratio=self.ratio)
        return replace(self.config, interact=interact)

    def _found(self, run: Path, seed: int, console: Console) -> Curve:
        if self.who == "ami":
            return self._lived(run, seed, console)
        if self.who == "random":
            world = self.config.evaluation
            outcome = play_many(aimless, world, self.episodes, EPISODES_FROM, "cpu")
            return [(0, float(outcome.felt[:, 0].mean()), 0.0)]
        return rivals.learn(
            self.who, self.config.evaluation, steps=self.steps, every=self.every, seed=seed,
            episodes=self.episodes, first=EPISODES_FROM, device=self.device,
        )  # fmt: skip

    def _lived(self, run: Path, seed: int, console: Console) -> Curve:
        """Judged is Mode-1, which is who lives while all learn; after random motion Mode-2."""
        begun = (run / "config.json").exists()
        with closing(Report(run, console)) as report:
            train(
                self._ours(), out=run, seed=seed, device=self.device, resume=begun, report=report,
                curve=self.episodes,
            )  # fmt: skip
        rows = files.read_figures(run / "metrics.jsonl", "curve/")
        told = [row for row in rows if all(files.is_number(row.get(part)) for part in POINT)]
        return [(int(row["lived"]), row["return"], row["seconds"]) for row in told]


POINT = ("lived", "return", "seconds")
"""Of a curve, as the metrics name its parts."""


def _is_curve(found: object) -> bool:
    """Whether it is points of three numbers, one at least."""
    return isinstance(found, list) and bool(found) and all(
        isinstance(point, list) and len(point) == 3
        and all(map(files.is_number, point))
        for point in found
    )  # fmt: skip


def solved(curve: Curve, threshold: float | None) -> tuple[int, float] | None:
    """The first steps and seconds with which the threshold was reached."""
    if threshold is None:
        return None
    return next(((steps, s) for steps, mark, s in curve if mark >= threshold), None)


COLUMNS = ["world", "solved at", "who", "steps until solved", "seconds", "return at the end"]


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, contest in found.items():
        threshold = contest["solved_at"]
        for who, curves in contest["curves"].items():
            ends = [solved(curve, threshold) for curve in curves]
            never = "-" if threshold is None else "not"
            steps = [never if end is None else str(end[0]) for end in ends]
            seconds = ["-" if end is None else f"{end[1]:.0f}" for end in ends]
            last = [f"{figure(curve[-1][1])} at {curve[-1][0]}" for curve in curves]
            mark = "-" if threshold is None else f"{threshold:g}"
            rows.append([name, mark, who, *(", ".join(part) for part in (steps, seconds, last))])
    return rows
