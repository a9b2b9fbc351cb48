"""A run folder is not a program: what its settings name is imported only where the user names it
too, or trusts the folder."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium

from ami_agent.build import Config
from ami_agent.life import WorldConfig
from modules.types import UnusableInput

OURS = ("gymnasium", "envs")
"""Packages whose environments need no naming."""


def trusted(
    config: Config, folder: Path, imports: Sequence[str], trust: bool, flag: str = "--import"
) -> Config:
    """The settings of a folder, with what the user named (`imports`: files x.py, or modules) in the
    place of what they name; UnusableInput where they name more, unless the user trusts them."""
    named = tuple(absolute(name) for name in imports)
    worlds = (config.world, config.evaluation)
    missing = {w: None for world in worlds for w in _wanted(world) if not _known(w, named)}
    if missing and not trust:
        those = " ".join(shlex.quote(name) for name in missing)
        raise UnusableInput(
            f"{folder} needs code that is not imported unless you name it: {flag} {those} (in "
            f'Python: imports=("{next(iter(missing))}",)); a file or module of the same name '
            "elsewhere will do, and --trust (trust=True) allows whatever this folder names"
        )
    world, evaluation = (_renamed(world, named) for world in worlds)
    return replace(config, world=world, evaluation=evaluation)


def absolute(name: str) -> str:
    """The same file from whichever folder; modules are as they are."""
    return str(Path(name).absolute()) if name.endswith(".py") else name


def _wanted(world: WorldConfig) -> Iterator[str]:
    """Files and modules that are imported where this environment is made."""
    yield from world.imports
    module, _, name = world.id.rpartition(":")  # Gymnasium imports what stands before a colon
    if module:
        yield module
    inner, colon, _ = str(world.options.get("env_id", "")).rpartition(":")  # and Gym, within it
    if colon:
        yield inner
    spec = gymnasium.registry.get(name)
    for entry in (spec.entry_point, spec.vector_entry_point) if spec else ():
        package = entry.partition(":")[0].partition(".")[0] if isinstance(entry, str) else OURS[0]
        if package not in OURS and package not in sys.modules:
            yield package


def _known(wanted: str, named: Sequence[str]) -> bool:
    """Whether it was named, or runs in this process already."""
    if any(_answers(name, wanted) for name in named):
        return True
    if not wanted.endswith(".py"):
        return wanted in sys.modules
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return wanted in files


def _answers(named: str, wanted: str) -> bool:
    """Whether the one was named where the other is wanted: the same module or file, wherever it
    lies, or the package of a module."""
    return named == wanted or wanted.startswith(f"{named}.") or _stem(named) == _stem(wanted)


def _stem(name: str) -> str:
    """`f` of /home/somebody/f.py, C:\\\\somebody\\\\f.py and package.f"""
    return re.split(r"[/\\.]", name.removesuffix(".py"))[-1]


def _renamed(world: WorldConfig, named: Sequence[str]) -> WorldConfig:
    """With what was named in the place of what it answers."""
    kept = [w for w in world.imports if not any(_stem(w) == _stem(name) for name in named)]
    module, _, bare = world.id.rpartition(":")
    answered = any(_answers(name, module) for name in named)
    return replace(
        world, imports=tuple(dict.fromkeys([*named, *kept])), id=bare if answered else world.id
    )
