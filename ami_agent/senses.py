"""What a world's observations are made of, as a mind's senses: every leaf of the space is one.

Vectors and what can be written as one (numbers, choices, switches) arrive as float32, or as float64
where float32 would cut them; pictures as bytes `[channels, height, width]`, whatever their axes and
numbers were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.deeds import deeds
from ami_agent.guard import Failed
from modules.types import UnusableInput

SMALL = 8
"""Pixels to a side; what has fewer is no picture."""
BEYOND = 0.01
"""Share of its range by which a number may leave its space before it counts as a fault."""


Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a leaf."""


class Sense(NamedTuple):
    """What one sense delivers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Reader(NamedTuple):
    """One leaf of an observation: where it is found, and what is made of it."""

    path: Path
    space: spaces.Space
    sense: Sense
    convert: Callable[[Any], Any]  # [B, *leaf] -> [B, *sense.shape]
    limits: tuple[np.ndarray, np.ndarray] | None  # that no number may be beyond; None: all may be

    def __call__(self, obs: Any) -> Any:
        """Raises Stray for a number far outside the space."""
        for key in self.path:
            obs = obs[key]
        if self.limits is not None and isinstance(obs, np.ndarray):
            low, high = self.limits
            outside = (obs < low) | (obs > high)
            if outside.any():
                raise Stray(float(obs[outside][0]))
        return self.convert(obs)


class Stray(ValueError):
    """A number outside its space."""

    def __init__(self, number: float) -> None:
        super().__init__(number)
        self.number = number


def limits(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """What lies a little outside is rounding; what lies far outside is a fault."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if not isinstance(space, spaces.Box):
        return None
    if space.dtype == np.uint8 and not space.low.any() and (space.high == 255).all():
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    slack = BEYOND * np.where(np.isfinite(span), span, 1.0)
    return low - slack, high + slack


def readers(space: spaces.Space, stack: int = 1) -> dict[str, Reader]:
    """One for each leaf, by name; a world with one sense calls it "obs". `stack`: every leaf is so
    many moments, one behind the other. Raises UnusableInput for what no sense can be made of."""
    leaves = dict(_leaves(space))
    if not leaves:
        raise UnusableInput(f"observations are {space}: there is nothing to see")
    if list(leaves) == [()]:
        return {"obs": _reader("observations are", (), space, stack)}
    found = {}
    for path, leaf in leaves.items():
        name = "/".join(str(key).replace(".", "_") for key in path)
        name = "obs_" if name == "obs" else name  # "obs" alone is what a single sense is called
        if name in found:
            raise UnusableInput(f"two parts of the observation would both be called {name!r}")
        found[name] = _reader(f"observation {name!r} is", path, leaf, stack)
    return found


def told_by(senses: Mapping[str, Reader], obs: Any, what: str) -> dict[str, Tensor]:
    """What each reads off observations, `[B, *O]`; Failed where these are not what they should
    be."""
    found = {}
    for name, reader in senses.items():
        told = what if name == "obs" else f"{what} {name!r}"
        try:
            part = found[name] = torch.as_tensor(reader(obs))
            fits = part.shape[1:] == reader.sense.shape
        except Stray as stray:
            raise Failed(
                f"{told} holds {stray.number:g}, outside its space {reader.space}: mend the world, "
                "or its observation_space"
            ) from None
        except (TypeError, ValueError, LookupError, RuntimeError):
            fits = False
        if not fits:
            raise Failed(f"{told} is not of its space {reader.space}")
        if part.is_floating_point() and not part.isfinite().all():
            raise Failed(f"{told} holds NaN or infinity")
    return found


def _leaves(space: spaces.Space, path: Path = ()) -> Iterator[tuple[tuple, spaces.Space]]:
    parts: Mapping[Any, spaces.Space] | None = None
    if isinstance(space, spaces.Dict):
        parts = dict(space.spaces)
    elif isinstance(space, spaces.Tuple):
        parts = dict(enumerate(space.spaces))
    if parts is None:
        yield path, space
        return
    for key, part in parts.items():
        yield from _leaves(part, (*path, key))


def _reader(what: str, path: Path, space: spaces.Space, stack: int) -> Reader:
    if isinstance(space, spaces.Box):
        sense, convert = _box(what, space, stack)
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        chosen = deeds(space)  # a choice is seen as it is made
        sense, convert = _vector(chosen.size), chosen.from_world
    elif isinstance(space, spaces.MultiBinary):
        sense, convert = _vector(prod(space.shape)), _flat
    else:
        raise UnusableInput(
            f"{what} {space}; the agent sees Box, Discrete, MultiDiscrete, MultiBinary, and Dict "
            "or Tuple of these: wrap the world so that it shows one of them "
            "(gymnasium.wrappers.TransformObservation)"
        )
    return Reader(path, space, sense, convert, limits(space))


def _vector(size: int, dtype: torch.dtype = torch.float32) -> Sense:
    return Sense((size,), dtype)


def _precision(dtype: Any) -> torch.dtype:
    """Of numbers of that type until they are centred: float32 cuts float64 and large integers, a
    clock in seconds since 1970 to steps of two minutes."""
    exact = np.can_cast(dtype, np.float32)
    return torch.float32 if exact else torch.float64


def _box(what: str, space: spaces.Box, stack: int) -> tuple[Sense, Callable[[Any], Any]]:
    shape = space.shape
    if not prod(shape):
        raise UnusableInput(f"{what} {space}: there is nothing to see")
    moments = stack if len(shape) > 1 and stack > 1 else 1
    inner = shape[1:] if moments > 1 else shape
    if len(inner) > 3 and _pictorial(inner[-3:], space.dtype):  # stacked by the world itself
        moments, inner = moments * prod(inner[:-3]), inner[-3:]
    if _pictorial(inner, space.dtype):
        return _picture(what, space, inner, moments)
    if len(shape) == 2 and moments == 1 and space.dtype == np.float32:
        return Sense(shape, torch.float32), _as_is  # a set of things alike
    if len(shape) == 1 and space.dtype == np.float32:
        return Sense(shape, torch.float32), _as_is
    precision = _precision(space.dtype)
    return _vector(prod(shape), precision), partial(_flat, double=precision == torch.float64)


def _pictorial(shape: tuple[int, ...], dtype: Any) -> bool:
    if len(shape) == 2:
        return dtype == np.uint8 and min(shape) >= SMALL
    return len(shape) == 3 and sorted(shape)[1] >= SMALL


def _picture(
    what: str, space: spaces.Box, inner: tuple[int, ...], moments: int
) -> tuple[Sense, Callable[[Any], Any]]:
    """Channels are the shorter of the first and the last axis."""
    last = len(inner) == 3 and inner[2] < inner[0]
    if len(inner) == 2:
        channels, height, width = (1, *inner)
    else:
        channels, height, width = (inner[2], *inner[:2]) if last else inner
    low, high = float(space.low.min()), float(space.high.max())
    whole = space.dtype == np.uint8
    if not whole and not (np.isfinite(low) and np.isfinite(high) and high > low):
        raise UnusableInput(f"{what} {space}, a picture without finite bounds; it needs some")
    sense = Sense((moments * channels, height, width), torch.uint8)
    if whole and not last and moments == 1 and len(inner) == 3:
        return sense, _as_is
    units = (0.0, 255.0) if whole else (low, high)
    return sense, partial(_to_picture, shape=sense.shape, last=last, units=units)


def _as_is(part: Any) -> Any:
    return part


def _flat(part: Any, double: bool = False) -> np.ndarray:
    part = np.asarray(part)
    return part.reshape(len(part), -1).astype(np.float64 if double else np.float32)


def _to_picture(
    part: Any, shape: tuple[int, ...], last: bool, units: tuple[float, float]
) -> np.ndarray:
    part = np.asarray(part)
    if last:
        part = np.moveaxis(part, -1, -3)
    part = part.reshape(len(part), *shape)
    if part.dtype == np.uint8:
        return np.ascontiguousarray(part)
    share = (part.astype(np.float32) - units[0]) / (units[1] - units[0])
    return (255 * share.clip(0, 1)).round().astype(np.uint8)
