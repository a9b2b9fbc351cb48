"""What an episode changes in an agent, taken out of its components and put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import nn

from modules.types import Stateful

Carry: TypeAlias = list[dict[str, Any]]
"""For each stateful component, the attributes that an episode changes."""


def stateful_parts(roots: Iterable[object]) -> list[Stateful]:
    """The stateful components among these and inside them, each once."""
    found: dict[int, Stateful] = {}
    queue = list(roots)
    while queue:
        part = queue.pop(0)
        if isinstance(part, Mapping):
            queue += part.values()
        elif isinstance(part, (list, tuple, nn.ModuleList)):
            queue += part
        elif isinstance(part, Stateful) and id(part) not in found:
            found[id(part)] = part
            queue += (value for n, value in vars(part).items() if n not in part.episode_state)
    return list(found.values())


def take(parts: Sequence[Stateful]) -> Carry:
    """The state that the components hold; the values themselves."""
    return [{n: vars(p)[n] for n in p.episode_state if n in vars(p)} for p in parts]


def restore(parts: Sequence[Stateful], carry: Carry) -> None:
    """The components hold this state and nothing of another."""
    for part, values in zip(parts, carry, strict=True):
        attributes = vars(part)
        for name in part.episode_state:
            attributes.pop(name, None)
        attributes.update(values)


def copy_state(carry: Carry) -> Carry:
    """The same state in values that stay as they are when the agent acts: random streams and
    containers are copied; tensors are never changed in place."""
    return [{name: _copy_value(value) for name, value in values.items()} for values in carry]


def _copy_value(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        clone = torch.Generator(value.device)
        clone.set_state(value.get_state())
        return clone
    return copy(value) if isinstance(value, (list, dict)) else value
