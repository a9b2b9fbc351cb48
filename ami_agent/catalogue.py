"""What there is: recipes, worlds, and the classes that can stand in each box."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import gymnasium

from ami_agent.build import Config
from ami_agent.recipes import RECIPES

Table = tuple[str, list[str], list[tuple[str, ...]]]


def choices(kind: type = Config) -> dict[str, dict[str, type]]:
    """Every field that may be one of several classes: its choices by name, read off its type."""
    found: dict[str, dict[str, type]] = {}
    for name, hint in get_type_hints(kind).items():
        members: list[Any] = [m for m in get_args(hint) if dataclasses.is_dataclass(m)]
        if members:
            found[name] = {_short(m): m for m in members}
            for member in members:
                found |= {f"{name}.{inner}": m for inner, m in choices(member).items()}
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= {f"{name}.{inner}": m for inner, m in choices(hint).items()}
    return found


def _short(kind: Any) -> str:
    """`GradientPlanner.Config` -> `GradientPlanner`"""
    return kind.__qualname__.removesuffix(".Config")


def tables() -> list[Table]:
    """Title, columns and rows of each."""
    worlds = sorted(name for name in gymnasium.registry if name.startswith("ami/"))
    return [
        ("recipes", ["recipe", "what"], [(n, first_line(f)) for n, f in RECIPES.items()]),
        ("worlds", ["id"], [(name,) for name in worlds]),
        (
            "boxes",
            ["box", "what can stand there"],
            [(n, ", ".join(c)) for n, c in choices().items()],
        ),
    ]


def first_line(what: Any) -> str:
    """What something says it is."""
    return (what.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
