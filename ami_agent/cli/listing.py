"""The tables of `ami list`: recipes, environments, and the classes for each component."""

from __future__ import annotations

from typing import Any

import gymnasium

from ami_agent.config_io import component_choices
from ami_agent.recipes import RECIPES

Table = tuple[str, list[str], list[tuple[str, ...]]]


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
