"""`ami data`: inspects, converts and makes recorded episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ami_agent.cli.args import check_json_path
from ami_agent.config_io import parse
from ami_agent.data.convert import convert
from ami_agent.data.inspect import inspect, validation_of
from ami_agent.data.reader import open_recording
from ami_agent.logger import ConsoleLogger, print_line, print_table
from ami_agent.storage.run_dir import write_json
from modules.types import SEEDS, STEPS, ConfigError, validate_ranges


@dataclass(frozen=True, kw_only=True)
class InspectFlags:
    """Shows what recorded episodes hold: how many and how long, columns with shapes and ranges, how
    many terminate."""

    keys: dict[str, str] = field(default_factory=dict)
    """Which columns are what, as `--data.keys` of `ami train`."""
    out: str = ""
    """A PNG of the lengths, and of trajectories or frames."""
    json: str = ""
    """A file for the same figures."""


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """Converts recorded episodes; the ending of the result decides its layout."""

    keys: dict[str, str] = field(default_factory=dict)
    """Which columns are what, as `--data.keys` of `ami train`."""


@dataclass(frozen=True, kw_only=True)
class MakeFlags:
    """Makes a data set of OGBench again by the package's own rule."""

    out: str
    """The .npz file; its validation set lies beside it, as -val.npz."""
    episodes: int = 0
    """Episodes of training; 0 is the official number."""
    seed: int = 0

    def __post_init__(self) -> None:
        validate_ranges(self, episodes=STEPS, seed=SEEDS)


def inspect_command(names: Sequence[str], argv: Sequence[str], console: Console) -> None:
    (place,) = names
    flags = parse(InspectFlags(), argv, "ami data inspect PATH")
    check_json_path(flags.json)
    found = inspect(open_recording(place, flags.keys), ConsoleLogger(console))
    print_table(console, place, ["what", ""], list(found.facts().items()))
    columns = ["column", "what", "shape", "dtype", "range"]
    print_table(console, "columns", columns, found.rows())
    if flags.json:
        write_json(Path(flags.json), found.to_json())
    if flags.out:
        from ami_agent.data.draw import draw_inspection  # drawing is slow to import

        print_line(console, f"open {draw_inspection(Path(flags.out), found)}")


def convert_command(names: Sequence[str], argv: Sequence[str], console: Console) -> None:
    source, target = names
    flags = parse(ConvertFlags(), argv, "ami data convert A B")
    recording, logger = open_recording(source, flags.keys), ConsoleLogger(console)
    convert(recording, Path(target), logger)
    print_line(console, f"{target}: {len(recording.lengths):,} episodes")
    if (validation := validation_of(recording)) and Path(target).suffix == ".npz":
        beside = Path(target).with_name(f"{Path(target).stem}-val.npz")
        convert(open_recording(str(validation), flags.keys), beside, logger)


def make_command(names: Sequence[str], argv: Sequence[str], console: Console) -> None:
    suite, dataset = names
    if suite != "ogbench":
        raise ConfigError(f"data of {suite!r} can't be made; those of ogbench can")
    from ami_agent.data.ogbench import make_ogbench

    flags = parse(MakeFlags(out=f"{dataset}.npz"), argv, "ami data make ogbench DATASET")
    make_ogbench(
        dataset, Path(flags.out), episodes=flags.episodes, seed=flags.seed, console=console
    )


Command = Callable[[Sequence[str], Sequence[str], Console], None]
COMMANDS: dict[str, tuple[Command, tuple[str, ...]]] = {
    "inspect": (inspect_command, ("PATH",)),
    "convert": (convert_command, ("A", "B")),
    "make": (make_command, ("ogbench", "DATASET")),
}
"""The commands, and the names that each needs before its flags."""


def data_command(name: str, argv: Sequence[str], console: Console) -> None:
    usages = {verb: " ".join(["ami data", verb, *names]) for verb, (_, names) in COMMANDS.items()}
    if name not in COMMANDS:
        raise ConfigError(f"no command ami data {name!r}; there are {', '.join(usages.values())}")
    command, expected = COMMANDS[name]
    is_help = bool(argv) and argv[0] in ("-h", "--help")
    names = list(argv[: len(expected)])
    if is_help:
        command([""] * len(expected), argv, console)
    elif len(names) < len(expected) or any(each.startswith("-") for each in names):
        raise ConfigError(f"it must be {usages[name]} [--flag ...]")
    else:
        command(names, argv[len(expected) :], console)
