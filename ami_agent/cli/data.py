"""`ami data`: inspects, converts and makes recorded episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import tyro
from rich.console import Console

from ami_agent.cli.command_flags import (
    DATA_ALIASES,
    JsonFlags,
    parse,
    resolve_aliases,
    write_results,
)
from ami_agent.data.convert import convert
from ami_agent.data.inspect import inspect, validation_of
from ami_agent.data.reader import open_recording
from ami_agent.logger import ConsoleLogger, print_line, print_table
from modules.types import SEEDS, STEPS, ConfigError, validate_ranges

Results: TypeAlias = dict[str, Any]
Keys: TypeAlias = Annotated[dict[str, str], tyro.conf.arg(name="data.keys")]


@dataclass(frozen=True, kw_only=True)
class InspectFlags(JsonFlags):
    """Shows what recorded episodes hold: how many and how long, columns with shapes and ranges, how
    many terminate."""

    keys: Keys = field(default_factory=dict)
    """Which columns are what, as in `ami train` (--data.keys); also as --keys."""
    out: str = ""
    """A PNG of the lengths, and of trajectories or frames."""


@dataclass(frozen=True, kw_only=True)
class ConvertFlags(JsonFlags):
    """Converts recorded episodes; the ending of the result decides its layout."""

    keys: Keys = field(default_factory=dict)
    """Which columns are what, as in `ami train` (--data.keys); also as --keys."""


@dataclass(frozen=True, kw_only=True)
class MakeFlags(JsonFlags):
    """Makes a data set of OGBench again by the package's own rule."""

    out: str = ""
    """The .npz file; DATASET.npz if not given. Its validation set lies beside it, as -val.npz."""
    episodes: int = 0
    """Episodes of training; 0 is the official number."""
    seed: int = 0

    def __post_init__(self) -> None:
        validate_ranges(self, episodes=STEPS, seed=SEEDS)


def inspect_command(names: Sequence[str], flags: InspectFlags, console: Console) -> Results:
    (place,) = names
    found = inspect(open_recording(place, flags.keys), ConsoleLogger(console))
    print_table(console, place, ["what", ""], list(found.facts().items()))
    columns = ["column", "what", "shape", "dtype", "range"]
    print_table(console, "columns", columns, [[n, *c.cells()] for n, c in found.columns.items()])
    for line in found.warnings():
        print_line(console, line)
    if flags.out:
        from ami_agent.data.plot import draw_inspection  # drawing is slow to import

        print_line(console, f"open {draw_inspection(Path(flags.out), found)}")
    return found.to_json()


def convert_command(names: Sequence[str], flags: ConvertFlags, console: Console) -> Results:
    source, target = names[0], Path(names[1])
    logger = ConsoleLogger(console)
    recording = open_recording(source, flags.keys)
    validation = validation_of(recording) if target.suffix == ".npz" else None
    convert(recording, target, logger)
    if validation is not None:
        beside = target.with_name(f"{target.stem}-val.npz")
        convert(open_recording(str(validation), flags.keys), beside, logger)
    steps = {"episodes": len(recording.lengths), "steps": recording.num_steps}
    return {"path": str(target), "source": source, **steps}


def make_command(names: Sequence[str], flags: MakeFlags, console: Console) -> Results:
    suite, dataset = names
    if suite != "ogbench":
        raise ConfigError(f"data of {suite!r} can't be made; those of ogbench can")
    from ami_agent.data.make_ogbench import make_ogbench  # its environments are slow to import

    out = Path(flags.out or f"{dataset}.npz")
    make_ogbench(dataset, out, episodes=flags.episodes, seed=flags.seed, console=console)
    return {"path": str(out), "dataset": dataset, "seed": flags.seed}


class Command(NamedTuple):
    run: Callable[[Sequence[str], Any, Console], Results]
    flags: Any  # their defaults
    names: tuple[str, ...]  # that stand before the flags


COMMANDS = {
    "inspect": Command(inspect_command, InspectFlags(), ("PATH",)),
    "convert": Command(convert_command, ConvertFlags(), ("A", "B")),
    "make": Command(make_command, MakeFlags(), ("ogbench", "DATASET")),
}


def data_command(name: str, argv: Sequence[str], console: Console) -> None:
    usages = {verb: " ".join(["ami data", verb, *c.names]) for verb, c in COMMANDS.items()}
    if name not in COMMANDS:
        raise ConfigError(f"no command ami data {name!r}; there are {', '.join(usages.values())}")
    command = COMMANDS[name]
    is_help = bool(argv) and argv[0] in ("-h", "--help")
    num_names = 0 if is_help else len(command.names)
    names = argv[:num_names]
    if len(names) < num_names or any(each.startswith("-") for each in names):
        needed = " and ".join(command.names)
        raise ConfigError(f"ami data {name} needs {needed} first: {usages[name]} [--flag ...]")
    flags = parse(command.flags, resolve_aliases(argv[num_names:], DATA_ALIASES), usages[name])
    write_results(flags.json, command.run(names, flags, console))
