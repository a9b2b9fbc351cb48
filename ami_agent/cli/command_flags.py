"""The flags of every command, as settings, what must hold of them, and the help of settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import docstring_parser
import torch
import tyro

from ami_agent.ablation.executors import parse_resources
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.imports import absolute_import
from ami_agent.argument_checks import check_device
from ami_agent.cli import config_flags
from ami_agent.cli.config_flags import AnySettings
from ami_agent.config import Config
from ami_agent.evaluation.evaluate import BASELINES, FIRST_EVAL_SEED
from ami_agent.hardware import num_cores
from ami_agent.storage.run_dir import write_json
from ami_agent.training import LoadDataset
from ami_agent.training.precision import Precision
from modules.types import EPISODES, SEEDS, BadSetting, ConfigError, Settings, shorten

Device: TypeAlias = str
"""A device of PyTorch (cpu, cuda, cuda:1, mps), or "auto": cuda where there is one, or else cpu."""
Mode = Literal["react", "plan", "auto"]


@dataclass(frozen=True, kw_only=True)
class EnvFlags:
    """The environment of a recipe for any environment, and recorded data of it."""

    env: EnvConfig
    data: LoadDataset = field(default_factory=LoadDataset)
    """Recorded episodes, from which the agent learns without acting."""


@dataclass(frozen=True, kw_only=True)
class JsonFlags(Settings):
    """What every command takes."""

    json: str = ""
    """A file for the results."""


@dataclass(frozen=True, kw_only=True)
class CommandFlags(JsonFlags):
    """What every command that computes takes."""

    threads: int | None = None
    """Processor threads of PyTorch; if not given, OMP_NUM_THREADS or else one. Results depend on
    their number in the last digits; --resume keeps that of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        count, cores = self.threads, num_cores()
        if count is not None and not (type(count) is int and 1 <= count <= cores):
            expected = f"a whole number from 1 to {cores}, the cores that this process may use"
            raise BadSetting("threads", count, expected)


@dataclass(frozen=True, kw_only=True)
class RecipeFlags(CommandFlags):
    """The settings of a recipe, and the user's own code that they need."""

    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that define environments and components, which flags then name:
    `--planner my_planner.MyPlannerConfig`. Also as --env.import."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainFlags(RecipeFlags):
    """Trains a recipe, checkpoints it, and evaluates it at the end."""

    out: str = ""
    """Run folder; runs/RECIPE/SEED if not given."""
    seed: Annotated[int, SEEDS] = 0
    resume: bool = False
    """Continue a run that was interrupted, with its settings and its seed: other flags need not be
    given again."""
    device: Device = "auto"
    precision: Precision | None = None
    """Of the networks of the losses: float32, the default, or bf16 (bfloat16 in matrix products),
    which is for GPUs. Planning and evaluation are float32; --resume keeps that of the run."""
    episodes: Annotated[int, EPISODES] = 100
    """Episodes of the evaluation at the end."""
    save_every: Annotated[float, (0.0, 1e9)] = 60.0
    """Seconds between checkpoints."""
    eval_every_stage: Annotated[int, (0, EPISODES[1])] = 0
    """Episodes of an evaluation after every training stage (Mode-2), and at intervals within an
    online stage (the mode that acts there). Evaluations take time."""
    keep_replay_buffer: bool = False
    """Keep the replay buffer in the run folder, for other runs to learn from (`--data.run DIR`)."""


@dataclass(frozen=True, kw_only=True)
class RunFolderFlags(CommandFlags):
    """The code that may be imported, of what a run folder names."""

    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that define environments and components, also as --env.import. A run
    folder imports nothing by itself."""
    trust: bool = False
    """Import whatever the run folder names."""


ALIASES = {"--env.id": "--env", "--env.import": "--import"}
"""Flags of `train`, and what they are called where a run folder is read."""
DATA_ALIASES = {"--keys": "--data.keys"}
"""Short forms of flags of `data`."""
TRAIN_ALIASES = {"--data": "--data.path", **DATA_ALIASES}
"""Short forms of flags of `train`."""


def resolve_aliases(argv: Sequence[str], aliases: Mapping[str, str] = ALIASES) -> list[str]:
    """The flags by the names that they have for a run folder, or by those of `aliases`."""
    split = [arg.partition("=") for arg in argv]
    return [aliases.get(flag, flag) + sign + value for flag, sign, value in split]


@dataclass(frozen=True, kw_only=True)
class EpisodeFlags(RunFolderFlags):
    """The episodes in which the agent of a run acts."""

    mode: Mode | Literal["both"] = "plan"
    task: str = ""
    """One of the recipe's tasks; its first one if not given."""
    episodes: Annotated[int, EPISODES] = 100
    seed: Annotated[int, SEEDS] = FIRST_EVAL_SEED
    env: str = ""
    """Another environment than the one the recipe is evaluated in, also as --env.id."""
    variant: str = ""
    """Another variant of the environment."""


@dataclass(frozen=True, kw_only=True)
class EvalFlags(EpisodeFlags):
    """Success, steps and milliseconds per action, beside random actions and the oracle."""

    mode: Mode = "plan"
    seed: int = FIRST_EVAL_SEED
    """Seed of the first episode; episode i has seed + i."""
    accept_other_spaces: bool = False
    """Evaluate although the bounds of actions or observations are not those of training."""
    device: Device = "auto"
    baselines: tuple[Literal["random", "oracle"], ...] = BASELINES
    """Policies that act in the same episodes; the oracle where the environment has one. No name:
    none."""
    memory: str = ""
    """Folder of the lasting memory with which the episodes begin, of as many environments as there
    are lifetimes; written by --save-memory or by controller.save_memory."""
    save_memory: str = ""
    """Folder for the lasting memory of the lifetimes when their last episode has ended."""
    compile: bool = False
    """Plan by compiled functions; compiling them takes a minute or more."""


@dataclass(frozen=True, kw_only=True)
class ShowFlags(EpisodeFlags):
    """Planning rollouts as pictures: per episode a PNG and a GIF, and a page for all."""

    mode: Mode | Literal["both"] = "plan"
    """"both": plan and react side by side, on the same seeds."""
    episodes: int = 3
    mp4: bool = False
    """Films as mp4 as well as GIF; needs ffmpeg (extra `film`)."""
    live: bool = False
    """Draw each step while the agent acts in the terminal, serve a workbench to browsers of this
    machine, and write no pictures."""
    port: Annotated[int, (0, 65_535)] = 0
    """The port of the workbench; a free one if not given."""
    beside: str = ""
    """The folder of another run, whose agent plans in the same states on the workbench."""
    out: str = ""
    """Folder of the pictures; show/ in the run folder if not given."""
    device: Device = "auto"
    json: str = ""
    """A file that says where the page is and what it shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.live and (self.mp4 or self.out):
            raise ConfigError("--live writes no pictures: leave --mp4 and --out away")
        if self.port and not self.live:
            raise ConfigError("--port is the port of the page that --live serves: give --live too")
        if self.beside and not self.live:
            raise ConfigError("--beside is for the workbench that --live serves: give --live too")


@dataclass(frozen=True, kw_only=True)
class ListFlags(JsonFlags):
    """Lists recipes, environments, components and the classes for each."""


@dataclass(frozen=True, kw_only=True)
class BenchFlags(JsonFlags):
    """Lists the benchmarks; `ami bench NAME --help` describes one."""


@dataclass(frozen=True, kw_only=True)
class StudyFlags(CommandFlags):
    """Trains and evaluates the Configs that a function returns, FILE.py:FUNCTION."""

    seeds: Annotated[int, (1, 10_000)] = 3
    episodes: Annotated[int, EPISODES] = 100
    workers: Annotated[int, (1, 1000)] = 1
    """Runs at the same time, each in its own process."""
    ray: str = ""
    """Address of a Ray cluster for the runs; "local" starts one on this machine."""
    resources: tuple[str, ...] = ()
    """What each run takes of a node of the Ray cluster, as CPU=2 GPU=0.25; by default a CPU for
    each thread and, unless --device is cpu, a GPU. With a GPU, --device auto is cuda."""
    out: str = ""
    """Folder of the study; runs/ablate-NAME if not given."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_resources(self.resources)
        if self.resources and not self.ray:
            raise ConfigError("--resources are those of a Ray cluster: give --ray too")


@dataclass(frozen=True, kw_only=True)
class AblateFlags(StudyFlags, RecipeFlags):
    """Trains and evaluates a recipe and its variants."""

    without: tuple[str, ...] = ()
    """Parts to remove, one variant each."""
    swap: tuple[str, ...] = ()
    """Components to replace, as component=class, one variant each."""


@dataclass(frozen=True, kw_only=True)
class ProbeFlags(RunFolderFlags):
    """Measures the representation: collapse, read-outs, dynamics tests and a scorecard."""

    seed: Annotated[int, SEEDS] = 0
    perturbations: str = ""
    """FILE.py:FUNCTION that returns perturbations by name, each a function of observations; by
    default noise and, for images, shift, dim and mirror."""
    device: Device = "auto"


def parse(
    default: AnySettings, argv: Sequence[str], program: str, beside: Sequence[Any] = ()
) -> AnySettings:
    """The flags of a command, whose threads are set; ConfigError, too, for results that can't be
    written. `beside`: as in `config_flags.parse`."""
    flags = config_flags.parse(default, argv, program, beside)
    check_file_path("--json", vars(flags)["json"])
    if threads := vars(flags).get("threads"):
        torch.set_num_threads(threads)
    return flags


def write_results(path: str, results: Mapping[str, Any]) -> None:
    """Writes the file of `--json`, if there is one."""
    if path:
        write_json(Path(path), results, follow_links=True)


def resolve_device(name: Device) -> str:
    """The device of that name; ConfigError for one that PyTorch does not find here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        check_device(name)
    except ConfigError:
        raise ConfigError(
            f"--device {shorten(name)}: PyTorch finds no such device here; use auto or cpu, or "
            "another that it finds (cuda, cuda:1, mps)"
        ) from None
    return name


def check_file_path(flag: str, path: str) -> None:
    """Raises ConfigError, before the work begins, for a file of results that can't be written."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path or ".")
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL
        raise ConfigError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None
    file = Path(path).resolve()
    is_file = not file.is_dir() and file.parent.is_dir()
    if path and not is_file:
        raise ConfigError(f"{flag} {path}: it must be a file in a folder that exists")
    if path and not os.access(path if os.path.exists(path) else file.parent, os.W_OK):
        raise ConfigError(f"{flag} {path}: this file may not be written")


def with_absolute_imports(env: EnvConfig) -> EnvConfig:
    """The environment with its imports as absolute paths, which are found from any folder."""
    return replace(env, imports=tuple(map(absolute_import, env.imports)))


def with_imports(config: Config, files: Sequence[str]) -> Config:
    """The settings with environments that import these files and modules as well."""
    names = tuple(map(absolute_import, files))
    env, eval_env = (
        replace(env, imports=tuple(dict.fromkeys([*env.imports, *names])))
        for env in (config.env, config.eval_env)
    )
    return replace(config, env=env, eval_env=eval_env)


def setting_help(config: Config, path: str) -> str:
    """The help of a setting, `actor.planner.horizon`: the docstring of the field, or of the field
    that holds it where that is a mapping; of a stage, or of a choice of class (`path._type`), the
    first paragraph of the docstring of the class. Empty where there is none."""
    settings: Any = config
    *outer, last = path.split(".")
    for name in outer:
        inner = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, 0)
        if not is_dataclass(inner) and name != "stages":
            return first_paragraph(_docstring(type(settings), name))
        settings = inner
    if isinstance(settings, Mapping):
        settings, last = settings.get(last), "_type"
    return first_paragraph(_docstring(type(settings), last))


def _docstring(cls: type, name: str) -> str | None:
    if name == "_type":  # of the settings of a class, the class itself
        owner = cls.__qualname__.removesuffix("Config")
        return getattr(sys.modules[cls.__module__], owner, cls).__doc__
    owners = filter(is_dataclass, cls.__mro__)
    fields = (each for owner in owners for each in docstring_parser.parse_from_object(owner).params)
    return next((field.description for field in fields if field.arg_name == name), None)


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())
