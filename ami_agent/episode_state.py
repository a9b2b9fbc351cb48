"""The state that an episode changes in an agent: taken out of its modules and put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import nn

from modules.types import Stateful

Carry: TypeAlias = list[dict[str, Any]]
"""For each stateful module, the attributes that an episode changes."""


def stateful_parts(roots: Iterable[object]) -> list[Stateful]:
    """The stateful objects among these and inside them, each once."""
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
    """The current state of these parts: the values themselves, not copies."""
    return [{n: vars(p)[n] for n in p.episode_state if n in vars(p)} for p in parts]


def restore(parts: Sequence[Stateful], carry: Carry) -> None:
    """Gives the parts this state, and removes attributes that it does not have."""
    for part, values in zip(parts, carry, strict=True):
        attributes = vars(part)
        for name in part.episode_state:
            attributes.pop(name, None)
        attributes.update(values)


def copy_state(carry: Carry) -> Carry:
    """A copy of the state that does not change when the agent acts: random streams and containers
    are copied; tensors are not, as none is changed in place."""
    return [{name: _copy_value(value) for name, value in values.items()} for values in carry]


def _copy_value(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        clone = torch.Generator(value.device)
        clone.set_state(value.get_state())
        return clone
    return copy(value) if isinstance(value, (list, dict)) else value
