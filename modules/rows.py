"""What memory keeps of a step of B worlds: parts by name, and nothing that is not a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modules.types import Observation, Transition, UnusableInput, by_sense

DEEDS = ("action", "interoception", "terminated")
"""What is kept beside observations."""


def take(part: Tensor, index: Tensor) -> Tensor:
    """[rows, B, ...] and index [N, T] into rows * B -> [N, T, ...]."""
    each = part.shape[2:]
    flat = part.view(part.shape[0] * part.shape[1], each.numel())  # 2-D is copied far faster
    return flat.index_select(0, index.flatten().to(part.device)).view(*index.shape, *each)


def senses(obs: Observation) -> dict[str, Tensor]:
    parts = by_sense(obs).items()
    return {name if name == "obs" else f"obs.{name}": part for name, part in parts}


def observation(senses: Mapping[str, Tensor]) -> Observation:
    """What `senses` took apart."""
    named = {name.removeprefix("obs."): part for name, part in senses.items()}
    return named.get("obs", named)


def deeds(lived: Transition) -> dict[str, Tensor]:
    return {name: getattr(lived, name) for name in DEEDS}


def check_like(name: str, wanted: Tensor, given: Tensor) -> None:
    if (wanted.shape, wanted.dtype) != (given.shape, given.dtype):
        raise UnusableInput(
            f"memory keeps {name} as {wanted.dtype} {list(wanted.shape)}, "
            f"was given {given.dtype} {list(given.shape)}"
        )


def check_finite(parts: Mapping[str, Tensor]) -> None:
    numbers = {name: part for name, part in parts.items() if part.is_floating_point()}
    sound = torch.stack([part.isfinite().flatten(1).all(1) for part in numbers.values()])
    if not sound.all():
        which, world = (~sound).nonzero()[0].tolist()
        raise UnusableInput(f"{list(numbers)[which]} of world {world} is not finite")
