"""What there is: recipes, worlds, and the classes that can stand in each box."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import gymnasium

from ami_agent.config import Config, class_name
from ami_agent.recipes import RECIPES

Table = tuple[str, list[str], list[tuple[str, ...]]]


def component_choices(cls: type = Config) -> dict[str, dict[str, type]]:
    """Every field that may be one of several classes: its choices by name, read off its type."""
    choices: dict[str, dict[str, type]] = {}
    for name, hint in get_type_hints(cls).items():
        members: list[Any] = [
            member for member in get_args(hint) if dataclasses.is_dataclass(member)
        ]
        if members:
            choices[name] = {class_name(member): member for member in members}
            for member in members:
                choices |= {
                    f"{name}.{inner}": member for inner, member in component_choices(member).items()
                }
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            choices |= {
                f"{name}.{inner}": member for inner, member in component_choices(hint).items()
            }
    return choices


def tables() -> list[Table]:
    """Title, columns and rows of each."""
    env_ids = sorted(name for name in gymnasium.registry if name.startswith("ami/"))
    return [
        ("recipes", ["recipe", "what"], [(n, first_line(f)) for n, f in RECIPES.items()]),
        ("envs", ["id"], [(name,) for name in env_ids]),
        (
            "components",
            ["component", "what can stand there"],
            [(n, ", ".join(c)) for n, c in component_choices().items()],
        ),
    ]


def first_line(obj: Any) -> str:
    """What something says it is."""
    return (obj.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
