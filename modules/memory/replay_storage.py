"""How the replay buffer stores the steps of B environments: as tensors by name, which it checks."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from modules.types import ConfigError, Observation, Transition, as_dict

STEP_PARTS = ("action", "interoception", "terminated")
"""The fields of a transition that are stored beside its observation."""


class Storage(Protocol):
    """Where steps are stored instead of the memory of a device: tensors on the host."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...

    def prefetch(self, part: Tensor, index: Tensor) -> None:
        """The buffer calls this before it reads rows of `part` `[rows, B, ...]`, with their indices
        into rows * B."""


class Parts(NamedTuple):
    """Which parts of a window are read; the others come back with no steps."""

    obs: Collection[str] | None = None
    """Modalities of the observation, by name; None: all."""
    actions: bool = True
    interoception: bool = True


ALL_PARTS, OBS_ONLY = Parts(), Parts(actions=False, interoception=False)


def gather_rows(part: Tensor, index: Tensor) -> Tensor:
    """`[rows, B, ...]`, indices `[N, T]` into rows * B -> `[N, T, ...]`."""
    shape = part.shape[2:]
    flat = part.view(part.shape[0] * part.shape[1], shape.numel())  # index_select is fastest in 2-D
    return flat.index_select(0, index.flatten().to(part.device)).view(*index.shape, *shape)


def obs_parts(obs: Observation) -> dict[str, Tensor]:
    parts = as_dict(obs).items()
    return {name if name == "obs" else f"obs.{name}": part for name, part in parts}


def from_obs_parts(parts: Mapping[str, Tensor]) -> Observation:
    """The inverse of `obs_parts`."""
    named = {name.removeprefix("obs."): part for name, part in parts.items()}
    return named.get("obs", named)


def step_parts(transition: Transition) -> dict[str, Tensor]:
    return {name: getattr(transition, name) for name in STEP_PARTS}


def can_store(stored: torch.dtype, given: torch.dtype) -> bool:
    """Whether `stored` represents every number of type `given` exactly, as float64 does float32."""
    both_float = stored.is_floating_point and given.is_floating_point
    return stored == given or (both_float and torch.promote_types(stored, given) == stored)


def check_stacks(
    name: str, obs: Tensor, next_obs: Tensor, first: Tensor, resets: Tensor, stack: int
) -> None:
    """Raises ConfigError if older frames could not be rebuilt from earlier rows. Episodes that
    begin with `obs` (`first` `[B]`) or with `next_obs` (`resets` `[B]`) must repeat their first
    frame; in all others `next_obs` must be `obs` shifted by one new frame."""
    size = obs.shape[1] // stack
    first, resets = (m.to(obs.device).view(-1, *[1] * (obs.ndim - 1)) for m in (first, resets))
    expected = torch.where(resets, next_obs[:, size:], obs[:, size:])
    expected_first = torch.where(first, obs[:, size:], obs[:, :-size])
    if not (next_obs[:, :-size].equal(expected) and obs[:, :-size].equal(expected_first)):
        raise ConfigError(
            f"{name} is not a stack of {stack} frames, the latest last, that begins with the first "
            "frame repeated (as FrameStackObservation's with padding_type reset)"
        )


def check_like(name: str, stored: Tensor, given: Tensor) -> None:
    if stored.shape != given.shape or not can_store(stored.dtype, given.dtype):
        raise ConfigError(
            f"the replay buffer keeps {name} as {stored.dtype} {list(stored.shape)}, "
            f"but was given {given.dtype} {list(given.shape)}"
        )


def check_finite(parts: Mapping[str, Tensor]) -> None:
    floats = {name: part for name, part in parts.items() if part.is_floating_point()}
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in floats.values()])
    if not finite.all():
        which, env = (~finite).nonzero()[0].tolist()
        raise ConfigError(f"{list(floats)[which]} of environment {env} is not finite")


def checksum(parts: Mapping[str, Tensor], start: int) -> int:
    """CRC-32 of the bytes of these tensors, which continues another."""
    for name in sorted(parts):
        numbers = parts[name].detach().cpu().contiguous().numpy()
        start = zlib.crc32(numbers.reshape(-1).view("u1").data, start)
    return start
