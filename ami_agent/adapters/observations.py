"""What an environment's observations are made of: every leaf of its observation space is one part,
read in one way from its space.

Vectors, and what can be written as one (numbers, choices, switches), are float32, or float64 where
float32 would cut them. Pictures are
`[channels, height, width]`: bytes stay bytes, all other numbers are float32 as they are, which the
encoder puts in units of what was seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.adapters.actions import action_adapter
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.obs_layout import ImageAxes, Layout, guess_layout, image_axes
from modules.types import ConfigError

ROUNDING_TOLERANCE = 1e-5
"""Share of its range by which a number may leave its space by rounding alone."""

OutOfBounds: TypeAlias = Literal["pass", "clip", "refuse"]
"""What becomes of a finite number outside its Box."""
Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a leaf."""

log = logging.getLogger(__name__)
_already_warned: set[tuple[str, ...]] = set()  # of this process: an environment is built many times


class ModalitySpec(NamedTuple):
    """What one sense delivers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Bounds(NamedTuple):
    """Of a space, and how far rounding may lead beyond them."""

    low: np.ndarray
    high: np.ndarray
    slack: np.ndarray


class ObsField(NamedTuple):
    """One leaf of an observation: where it is found, and what is made of it."""

    path: Path
    space: spaces.Space
    modality: ModalitySpec
    convert: Callable[[Any], Any]  # [B, *leaf] -> [B, *sense.shape]
    bounds: Bounds | None  # None: no number can be outside
    out_of_bounds: OutOfBounds
    summary: str  # how it is read, for a person
    name: str = "obs"
    env: str = ""

    def __call__(self, obs: Any, what: str = "observation") -> Any:
        """Raises Stray for a number outside the space where that is refused, ValueError for another
        shape. `what` the observation is called in a warning."""
        for key in self.path:
            obs = obs[key]
        part = obs if isinstance(obs, Tensor) else np.asarray(obs)
        if tuple(part.shape[1:]) != self.space.shape:
            raise ValueError(f"its shape is {tuple(part.shape[1:])}, not {self.space.shape}")
        if self.bounds is not None and isinstance(part, np.ndarray):
            part = self._check_bounds(part, self.bounds, what)
        return self.convert(part)

    def _check_bounds(self, part: np.ndarray, bounds: Bounds, what: str) -> np.ndarray:
        """NaN and infinities are left to be refused as such."""
        outside = (part < bounds.low - bounds.slack) | (part > bounds.high + bounds.slack)
        if not outside.any() or not np.isfinite(part).all():
            return part
        first = tuple(np.argwhere(outside)[0].tolist())
        value, index = part[first], first[1:]
        low, high = (np.broadcast_to(edge, part.shape[1:])[index] for edge in bounds[:2])
        relation = f"below its low {low:g}" if value < low else f"above its high {high:g}"
        error = OutOfBoundsError(float(value), relation, index)
        if self.out_of_bounds == "refuse" or not isinstance(self.space, spaces.Box):
            raise error
        self._warn(error, what)
        if self.out_of_bounds == "pass":
            return part
        return np.clip(part, self.space.low, self.space.high).astype(part.dtype)

    def _warn(self, error: OutOfBoundsError, what: str) -> None:
        """Once for each observation of an environment."""
        handling = {"pass": "used as it is", "clip": "clipped"}[self.out_of_bounds]
        alternatives = {"pass": "clip or refuse", "clip": "pass or refuse"}[self.out_of_bounds]
        _warn_once(
            (self.env, what, self.name),
            f"{_obs_label(self.env, what, self.name)} holds {error}: this and whatever follows is "
            f"{handling} (--env.out-of-bounds {alternatives})",
        )


class OutOfBoundsError(ValueError):
    """A number outside its space."""

    def __init__(self, number: float, relation: str, index: tuple[int, ...] = ()) -> None:
        position = f" at {list(index)}" if index else ""
        super().__init__(f"{number:g}{position}, {relation}")
        self.number = number


class IgnoredField:
    """A leaf that no encoder can read and that carries nothing while it stays the same: a text, or
    an array without numbers."""

    def __init__(
        self, path: Path, name: str, space: spaces.Space, env: str, by_request: bool
    ) -> None:
        self.path, self.name, self.space, self.env, self.by_request = (
            path,
            name,
            space,
            env,
            by_request,
        )
        self.first: Any = None

    @property
    def summary(self) -> str:
        """Why it is ignored, for a person."""
        if self.by_request:
            return "ignored, as asked"
        if isinstance(self.space, spaces.Box):
            return "ignored: it holds no number"
        return f"ignored: the agent reads no text ({type(self.space).__name__})"

    def check(self, obs: Any) -> None:
        """Warns once where it is not the same text all the time."""
        if self.by_request or isinstance(self.space, spaces.Box):
            return
        for key in self.path:
            obs = obs[key]
        for text in obs:
            self.first = text if self.first is None else self.first
            if text != self.first:
                _warn_once(
                    (self.env, "text", self.name),
                    f"{_obs_label(self.env, 'observation', self.name)} varies ({self.first!r}, then "
                    f"{text!r}), and the agent reads no text: what depends on it can't be learnt",
                )
                return


def _warn_once(key: tuple[str, ...], message: str) -> None:
    if key not in _already_warned:
        _already_warned.add(key)
        log.warning(message)


def _obs_label(env: str, what: str, name: str) -> str:
    label = what if name == "obs" else f"{what} {name!r}"
    return f"environment {env!r}: {label}" if env else label


def limits(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """The lowest and the highest numbers of a space; None where there are none."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8)
    if not isinstance(space, spaces.Box):
        return None
    if space.dtype == np.uint8 and not space.low.any() and (space.high == 255).all():
        return None
    if space.dtype == np.bool_:
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (low, high) if np.isfinite(low).any() or np.isfinite(high).any() else None


def _bounds(space: spaces.Space) -> Bounds | None:
    """Between numbers that the space allows there is room for rounding, not for other numbers."""
    found = limits(space)
    if found is None:
        return None
    low, high = found
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return Bounds(low, high, np.zeros(()))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
        size = np.maximum(np.where(np.isfinite(low), abs(low), abs(high)), 1.0)
    return Bounds(low, high, ROUNDING_TOLERANCE * np.where(np.isfinite(span), span, size))


def obs_fields(
    space: spaces.Space, stack: int = 1, *, layouts: Mapping[str, Layout] | None = None,
    out_of_bounds: OutOfBounds = "pass", env: str = "",
) -> dict[str, ObsField]:  # fmt: skip
    """One for each leaf, by name; an observation of one leaf is called "obs". `stack`: every leaf
    is so many moments, one behind the other. Raises ConfigError for what can't be read."""
    layouts = layouts or {}
    leaves = _named_leaves(space)
    if unknown := [name for name in layouts if name not in leaves]:
        raise ConfigError(
            f"obs_layout names {unknown[0]!r}; the observations are {', '.join(leaves) or 'none'}"
        )
    found = {}
    for name, (path, leaf) in leaves.items():
        layout = layouts.get(name, "auto")
        if not _is_ignored(leaf, layout, is_only_leaf=len(leaves) == 1):
            what = "observations are" if not path else f"observation {name!r} is"
            read = _obs_field(what, path, leaf, stack, layout)
            found[name] = read._replace(name=name, env=env, out_of_bounds=out_of_bounds)
    if not found:
        raise ConfigError(f"observations are {space}: there is nothing to see")
    return found


def ignored_fields(
    space: spaces.Space, layouts: Mapping[str, Layout] | None = None, env: str = ""
) -> list[IgnoredField]:
    """The leaves that `readers` leaves out."""
    leaves, layouts = _named_leaves(space), layouts or {}
    return [
        IgnoredField(path, name, leaf, env, layouts.get(name) == "ignore")
        for name, (path, leaf) in leaves.items()
        if _is_ignored(leaf, layouts.get(name, "auto"), is_only_leaf=len(leaves) == 1)
    ]


def _is_ignored(leaf: spaces.Space, layout: Layout, is_only_leaf: bool) -> bool:
    if layout == "ignore":
        return True
    if is_only_leaf:
        return False
    return not prod(leaf.shape) if isinstance(leaf, spaces.Box) else _is_text(leaf)


def _is_text(space: spaces.Space) -> bool:
    """Also of a space that is its author's own kind."""
    if isinstance(space, spaces.Text):
        return True
    if type(space).__module__.startswith("gymnasium."):
        return False
    with suppress(Exception):  # a stranger's code may raise anything
        return isinstance(space.sample(), str)
    return False


def read_obs(obs_fields: Mapping[str, ObsField], obs: Any, what: str) -> dict[str, Tensor]:
    """What each reads off observations, `[B, *O]`; Failed where these are not what they should
    be."""
    found = {}
    for name, reader in obs_fields.items():
        label = _obs_label(reader.env, what, name)
        try:
            part = found[name] = torch.as_tensor(reader(obs, what))
            is_valid, reason = part.shape[1:] == reader.modality.shape, ""
        except OutOfBoundsError as out_of_bounds:
            box = isinstance(reader.space, spaces.Box)
            other = ", or --env.out-of-bounds pass or clip" if box else ""
            raise EnvError(
                f"{label} holds {out_of_bounds}, outside its space {reader.space}: mend the environment, or "
                f"its observation_space{other}"
            ) from None
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            is_valid, reason = False, f": {error}"
        if not is_valid:
            raise EnvError(f"{label} is not of its space {reader.space}{reason}")
        if part.is_floating_point() and not part.isfinite().all():
            raise EnvError(f"{label} holds NaN or infinity")
    return found


def _named_leaves(space: spaces.Space) -> dict[str, tuple[Path, spaces.Space]]:
    """The leaves of a space by name; ConfigError for two of the same."""
    leaves = dict(_leaves(space))
    if list(leaves) == [()]:
        return {"obs": ((), space)}
    found: dict[str, tuple[Path, spaces.Space]] = {}
    for path, leaf in leaves.items():
        name = "/".join(str(key).replace(".", "_") for key in path)
        name = "obs_" if name == "obs" else name  # "obs" alone is what a single leaf is called
        if name in found:
            raise ConfigError(f"two parts of the observation would both be called {name!r}")
        found[name] = (path, leaf)
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


def _obs_field(what: str, path: Path, space: spaces.Space, stack: int, layout: Layout) -> ObsField:
    if isinstance(space, spaces.Box):
        modality, convert, summary = _box_field(what, space, stack, layout)
    elif layout != "auto":
        raise ConfigError(
            f"{what} {space}, which can't be read as {layout}: obs_layout is for a Box, and to "
            "ignore what is not needed"
        )
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        adapter = action_adapter(space)  # a choice is seen as it is made
        modality, convert = _vector(adapter.size), adapter.from_env
        summary = f"one-hot, {adapter.size} numbers"
    elif isinstance(space, spaces.MultiBinary):
        modality, convert = _vector(prod(space.shape)), _flat
        summary = f"vector, {prod(space.shape)} switches"
    else:
        raise ConfigError(
            f"{what} {space}; the agent sees Box, Discrete, MultiDiscrete, MultiBinary, and Dict "
            "or Tuple of these: wrap the world so that it shows one of them "
            "(gymnasium.wrappers.TransformObservation), or leave a part of a Dict out "
            "(--env.obs-layout NAME ignore)"
        )
    return ObsField(path, space, modality, convert, _bounds(space), "pass", summary)


def _vector(size: int, dtype: torch.dtype = torch.float32) -> ModalitySpec:
    return ModalitySpec((size,), dtype)


def _precision(dtype: Any) -> torch.dtype:
    """Of numbers of that type until they are centred: float32 cuts float64 and large integers, a
    clock in seconds since 1970 to steps of two minutes."""
    exact = np.can_cast(dtype, np.float32)
    return torch.float32 if exact else torch.float64


def _box_field(
    what: str, space: spaces.Box, stack: int, layout: Layout
) -> tuple[ModalitySpec, Callable[[Any], Any], str]:
    shape = space.shape
    if not prod(shape):
        raise ConfigError(f"{what} {space}: there is nothing to see")
    num_frames = stack if len(shape) > 1 and stack > 1 else 1
    frame_shape = shape[1:] if num_frames > 1 else shape
    if layout == "auto":
        layout = guess_layout(space, frame_shape)
        layout = "vector" if layout == "set" and num_frames > 1 else layout
    if layout in ("channels-last", "channels-first"):
        axes = image_axes(f"{what} {space}", frame_shape, num_frames, layout)
        return *_image_field(space, axes), axes.summary().format(space.dtype)
    if layout == "set":
        if len(shape) != 2:
            raise ConfigError(f"{what} {space}, no set of things alike: that has 2 axes")
        summary = f"set, {shape[0]} things of {shape[1]} numbers each, {space.dtype}"
        convert = _as_is if space.dtype == np.float32 else _as_floats
        return ModalitySpec(shape, torch.float32), convert, summary
    shape_note = f" (shape {shape})" if len(shape) > 1 else ""
    count_text = f"{prod(shape)} number{'s' if prod(shape) > 1 else ''}"
    precision = _precision(space.dtype)
    is_plain_vector = len(shape) == 1 and space.dtype == np.float32
    convert = _as_is if is_plain_vector else partial(_flat, double=precision == torch.float64)
    return (
        _vector(prod(shape), precision),
        convert,
        f"vector, {count_text}{shape_note}, {space.dtype}",
    )


def _image_field(space: spaces.Box, axes: ImageAxes) -> tuple[ModalitySpec, Callable[[Any], Any]]:
    if space.dtype not in (np.uint8, np.bool_):
        convert = partial(_to_floats, shape=axes.shape, last=axes.last, origin=_offset(space))
        return ModalitySpec(axes.shape, torch.float32), convert
    if space.dtype == np.uint8 and not axes.last and space.shape == axes.shape:
        return ModalitySpec(axes.shape, torch.uint8), _as_bytes
    convert = partial(_to_bytes, shape=axes.shape, last=axes.last)
    return ModalitySpec(axes.shape, torch.uint8), convert


def _offset(space: spaces.Box) -> np.ndarray | None:
    """What is taken off the numbers of a picture where their bounds lie closer together than they
    are large, and float32 could not tell them apart."""
    if np.can_cast(space.dtype, np.float32) or space.dtype == np.uint64:
        return None
    is_integer = np.issubdtype(space.dtype, np.integer)
    with np.errstate(over="ignore", invalid="ignore"):
        is_narrow = abs(space.low.astype(float)) > space.high.astype(float) - space.low.astype(
            float
        )
    return np.where(is_narrow, space.low, 0).astype(np.int64 if is_integer else np.float64)


def _as_is(part: Any) -> Any:
    return part


def _flat(part: Any, double: bool = False) -> np.ndarray:
    part = np.asarray(part)
    return part.reshape(len(part), -1).astype(np.float64 if double else np.float32)


def _as_floats(part: Any) -> np.ndarray:
    return np.asarray(part).astype(np.float32)


def _channels_first(part: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    if last and part.ndim > 3:  # of two axes there are no channels to move
        part = np.moveaxis(part, -1, -3)
    return part.reshape(len(part), *shape)


def _as_bytes(part: Any) -> Any:
    """Raises ValueError for numbers that are no bytes."""
    if isinstance(part, Tensor) or part.dtype == np.uint8:
        return part
    converted = part.astype(np.uint8)
    if (converted != part).any():
        raise ValueError("it holds numbers that are no bytes")
    return converted


def _to_bytes(part: Any, shape: tuple[int, ...], last: bool) -> np.ndarray:
    part = _channels_first(np.asarray(part), shape, last)
    part = 255 * part.astype(np.uint8) if part.dtype == np.bool_ else _as_bytes(part)
    return np.ascontiguousarray(part)


def _to_floats(
    part: Any, shape: tuple[int, ...], last: bool, origin: np.ndarray | None
) -> np.ndarray:
    part = np.asarray(part)
    part = part if origin is None else part - origin
    return np.ascontiguousarray(_channels_first(part, shape, last), np.float32)
