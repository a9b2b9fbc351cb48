"""Observation spaces: every leaf of a space is one field of the agent's observation, converted in
one way that follows from its space and its layout.

Vectors, and everything that can be written as one (numbers, choices, switches), are float32, or
float64 where float32 would round them. Images are `[channels, height, width]`: bytes stay bytes,
other numbers become float32; the encoder standardizes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
from ami_agent.adapters.spaces import Bounds, Path, bounds_of, named_leaves
from modules.types import ConfigError

MIN_IMAGE_SIDE = 8
"""Pixels of an image's side; arrays of three axes with a shorter side are vectors."""
MIN_GRAY_IMAGE_SIDE = 16
"""The same for arrays of two axes that are not bytes: sets of vectors are seldom as large."""
CHANNELS = (1, 2, 3, 4)
STACKED_CHANNELS = (6, 8, 9, 12, 16)
"""Channels of one image, and of several that are stacked along the channel axis."""
MIN_STACKED_SIDE = 32
"""Pixels of a side of stacked images; a shorter axis may be one of channels."""

Layout: TypeAlias = Literal["auto", "vector", "set", "channels-last", "channels-first", "ignore"]
"""How a user says that an array is read; `auto` leaves it to `guess_layout`."""
OutOfBounds: TypeAlias = Literal["pass", "clip", "refuse"]
"""The treatment of a finite number outside its Box."""
Convert: TypeAlias = Callable[[Any], Any]
"""`[B, *leaf]` -> `[B, *modality.shape]`"""

log = logging.getLogger(__name__)
_already_warned: set[tuple[str, ...]] = set()  # of this process: an environment is made many times


class ModalitySpec(NamedTuple):
    """Shape and dtype of one modality."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class OutOfBoundsError(ValueError):
    """A number outside its space."""

    def __init__(self, number: float, relation: str, index: tuple[int, ...] = ()) -> None:
        position = f" at {list(index)}" if index else ""
        super().__init__(f"{number:g}{position}, {relation}")
        self.number = number


class ObsField(NamedTuple):
    """One leaf of an observation: its place, its space and its conversion."""

    path: Path
    space: spaces.Space
    modality: ModalitySpec
    convert: Convert
    bounds: Bounds | None  # None: no number can be outside
    out_of_bounds: OutOfBounds
    summary: str  # of the conversion, in words
    name: str = "obs"
    env: str = ""

    def __call__(self, obs: Any, what: str = "observation") -> Any:
        """Raises OutOfBoundsError for a number outside the space where that is refused, ValueError
        for another shape. `what`: the observation's name in a warning."""
        for key in self.path:
            obs = obs[key]
        part = obs if isinstance(obs, Tensor) else np.asarray(obs)
        if tuple(part.shape[1:]) != self.space.shape:
            raise ValueError(f"its shape is {tuple(part.shape[1:])}, not {self.space.shape}")
        if self.bounds is not None and isinstance(part, np.ndarray):
            part = self._check_bounds(part, self.bounds, what)
        return self.convert(part)

    def _check_bounds(self, part: np.ndarray, bounds: Bounds, what: str) -> np.ndarray:
        """Leaves NaN and infinities to `read_obs`, which refuses them."""
        outside = (part < bounds.low - bounds.tolerance) | (part > bounds.high + bounds.tolerance)
        if not outside.any() or not np.isfinite(part).all():
            return part
        first = tuple(np.argwhere(outside)[0].tolist())
        value, index = part[first], first[1:]
        low, high = (np.broadcast_to(edge, part.shape[1:])[index] for edge in bounds[:2])
        relation = f"below its low {low:g}" if value < low else f"above its high {high:g}"
        error = OutOfBoundsError(float(value), relation, index)
        if self.out_of_bounds == "refuse" or not isinstance(self.space, spaces.Box):
            raise error
        handling = {"pass": "used as they are", "clip": "clipped"}[self.out_of_bounds]
        alternatives = {"pass": "clip or refuse", "clip": "pass or refuse"}[self.out_of_bounds]
        _warn_once(
            (self.env, what, self.name),
            f"{_obs_label(self.env, what, self.name)} holds {error}: this and later ones are "
            f"{handling} (--env.out-of-bounds {alternatives})",
        )
        if self.out_of_bounds == "pass":
            return part
        return np.clip(part, self.space.low, self.space.high).astype(part.dtype)


class IgnoredField:
    """A leaf that no encoder can read: a text, or an array without numbers; or one that the user
    leaves out."""

    def __init__(
        self, path: Path, name: str, space: spaces.Space, env: str, by_request: bool
    ) -> None:
        self.path, self.name, self.space = path, name, space
        self.env, self.by_request = env, by_request
        self.first: Any = None

    @property
    def summary(self) -> str:
        """Why it is ignored, in words."""
        if self.by_request:
            return "ignored, by --env.obs-layout"
        if isinstance(self.space, spaces.Box):
            return "ignored: it holds no number"
        return f"ignored: the agent reads no text ({type(self.space).__name__})"

    def check(self, obs: Any) -> None:
        """Warns once where a text varies, for only a constant text carries no information."""
        if self.by_request or isinstance(self.space, spaces.Box):
            return
        for key in self.path:
            obs = obs[key]
        for text in obs:
            self.first = text if self.first is None else self.first
            if text != self.first:
                _warn_once(
                    (self.env, "text", self.name),
                    f"{_obs_label(self.env, 'observation', self.name)} varies ({self.first!r}, "
                    f"then {text!r}), and the agent reads no text: it can't learn what depends on "
                    "it",
                )
                return


def _warn_once(key: tuple[str, ...], message: str) -> None:
    if key not in _already_warned:
        _already_warned.add(key)
        log.warning(message)


def _obs_label(env: str, what: str, name: str) -> str:
    label = what if name == "obs" else f"{what} {name!r}"
    return f"environment {env!r}: {label}" if env else label


def obs_fields(
    space: spaces.Space, stack: int = 1, *, layouts: Mapping[str, Layout] | None = None,
    out_of_bounds: OutOfBounds = "pass", env: str = "",
) -> dict[str, ObsField]:  # fmt: skip
    """One field for each leaf, by name, "obs" where there is but one. `stack`: every leaf holds so
    many frames along its first axis. Raises ConfigError for leaves that can't be read."""
    layouts = layouts or {}
    leaves = named_leaves(space)
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
        raise ConfigError(f"observations are {space}: there is nothing to observe")
    return found


def ignored_fields(
    space: spaces.Space, layouts: Mapping[str, Layout] | None = None, env: str = ""
) -> list[IgnoredField]:
    """The leaves that `obs_fields` leaves out."""
    leaves, layouts = named_leaves(space), layouts or {}
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
    """Also for a space class that is not Gymnasium's."""
    if isinstance(space, spaces.Text):
        return True
    if type(space).__module__.startswith("gymnasium."):
        return False
    with suppress(Exception):  # third-party code may raise anything
        return isinstance(space.sample(), str)
    return False


def read_obs(fields: Mapping[str, ObsField], obs: Any, what: str) -> dict[str, Tensor]:
    """The observations `[B, *O]` of each field; EnvError where they are not of their space."""
    found = {}
    for name, reader in fields.items():
        label = _obs_label(reader.env, what, name)
        try:
            part = found[name] = torch.as_tensor(reader(obs, what))
            is_valid, reason = part.shape[1:] == reader.modality.shape, ""
        except OutOfBoundsError as out_of_bounds:
            is_box = isinstance(reader.space, spaces.Box)
            alternative = ", or set --env.out-of-bounds to pass or clip" if is_box else ""
            raise EnvError(
                f"{label} holds {out_of_bounds}, outside its space {reader.space}: correct the "
                f"environment or its observation_space{alternative}"
            ) from None
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            is_valid, reason = False, f": {error}"
        if not is_valid:
            raise EnvError(f"{label} is not of its space {reader.space}{reason}")
        if part.is_floating_point() and not part.isfinite().all():
            raise EnvError(f"{label} holds NaN or infinity")
    return found


def _obs_field(what: str, path: Path, space: spaces.Space, stack: int, layout: Layout) -> ObsField:
    if isinstance(space, spaces.Box):
        modality, convert, summary = _box_field(what, space, stack, layout)
    elif layout != "auto":
        raise ConfigError(
            f"{what} {space}, which can't be read as {layout}: of other spaces than Box the only "
            "obs_layout is ignore"
        )
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        adapter = action_adapter(space)  # one-hot, as discrete actions are
        modality, convert = _vector(adapter.size), adapter.from_env
        summary = f"one-hot, {adapter.size} numbers"
    elif isinstance(space, spaces.MultiBinary):
        modality, convert = _vector(prod(space.shape)), _flat
        summary = f"vector, {prod(space.shape)} switches"
    else:
        raise ConfigError(
            f"{what} {space}; the agent observes Box, Discrete, MultiDiscrete, MultiBinary, and "
            "Dict or Tuple of these: wrap the environment so that it delivers one of them "
            "(gymnasium.wrappers.TransformObservation), or ignore a part of a Dict "
            "(--env.obs-layout NAME ignore)"
        )
    return ObsField(path, space, modality, convert, bounds_of(space), "pass", summary)


def _vector(size: int, dtype: torch.dtype = torch.float32) -> ModalitySpec:
    return ModalitySpec((size,), dtype)


def _box_field(
    what: str, space: spaces.Box, stack: int, layout: Layout
) -> tuple[ModalitySpec, Convert, str]:
    shape = space.shape
    if not prod(shape):
        raise ConfigError(f"{what} {space}: there is nothing to observe")
    num_frames = stack if len(shape) > 1 and stack > 1 else 1
    frame_shape = shape[1:] if num_frames > 1 else shape
    if layout == "auto":
        layout = guess_layout(space, frame_shape)
        layout = "vector" if layout == "set" and num_frames > 1 else layout
    if layout in ("channels-last", "channels-first"):
        axes = _image_axes(f"{what} {space}", frame_shape, num_frames, layout)
        return *_image_field(space, axes), axes.summary(space.dtype)
    if layout == "set":
        if len(shape) != 2:
            raise ConfigError(f"{what} {space}, which can't be read as set: a set has 2 axes")
        summary = f"set, {shape[0]} vectors of {shape[1]} numbers each, {space.dtype}"
        convert = _as_is if space.dtype == np.float32 else _as_floats
        return ModalitySpec(shape, torch.float32), convert, summary
    shape_note = f" (shape {shape})" if len(shape) > 1 else ""
    count_text = f"{prod(shape)} number{'s' if prod(shape) > 1 else ''}"
    # float32 rounds a clock in seconds since 1970, float64, to steps of two minutes
    is_double = not np.can_cast(space.dtype, np.float32)
    is_plain_vector = len(shape) == 1 and space.dtype == np.float32
    convert = _as_is if is_plain_vector else partial(_flat, double=is_double)
    modality = _vector(prod(shape), torch.float64 if is_double else torch.float32)
    return modality, convert, f"vector, {count_text}{shape_note}, {space.dtype}"


def guess_layout(space: spaces.Box, shape: tuple[int, ...]) -> Layout:
    """The most likely layout of an array of this shape, which is the space's without an axis of
    stacked frames. Gymnasium's convention, channels last, holds unless the shape contradicts."""
    if len(shape) == 2:
        if _is_gray_image(space, shape):
            return "channels-last"
        return "set" if space.dtype == np.float32 else "vector"
    if len(shape) < 3:
        return "vector"
    first, middle, last = shape[-3:]
    candidates: tuple[Layout, ...] = ("channels-last", "channels-first")
    if _first_are_channels(first, middle, last):
        candidates = ("channels-first", "channels-last")
    sides = {"channels-last": (first, middle), "channels-first": (middle, last)}
    return next((layout for layout in candidates if min(sides[layout]) >= MIN_IMAGE_SIDE), "vector")


def _first_are_channels(first: int, middle: int, last: int) -> bool:
    """Two equal axes are the sides of an image; else the short axis holds the channels."""
    if (first == middle) != (middle == last):
        return middle == last
    if last in CHANNELS:
        return False
    return first in CHANNELS or (first in STACKED_CHANNELS and last >= MIN_STACKED_SIDE)


def _is_gray_image(space: spaces.Box, sides: tuple[int, ...]) -> bool:
    """Whether two axes are those of an image with one channel: its pixels have the same finite
    bounds."""
    if space.dtype == np.uint8:
        return min(sides) >= MIN_IMAGE_SIDE
    low, high = space.low.flat[0], space.high.flat[0]
    is_uniform = bool((space.low == low).all() and (space.high == high).all())
    is_finite = bool(np.isfinite(low) and np.isfinite(high))
    return min(sides) >= MIN_GRAY_IMAGE_SIDE and is_uniform and is_finite


class ImageAxes(NamedTuple):
    """The axes of an image `[*frames, height, width, channels]` or `[*frames, channels, ...]`."""

    frames: int
    channels: int
    height: int
    width: int
    last: bool  # the channels are the last axis

    @property
    def shape(self) -> tuple[int, int, int]:
        """The encoder's input: the channels of all frames, one behind the other."""
        return (self.frames * self.channels, self.height, self.width)

    def summary(self, dtype: Any) -> str:
        frames = f"{self.frames} frames, " if self.frames > 1 else ""
        channels = f"{self.channels} channel{'s' if self.channels > 1 else ''}"
        order = "last" if self.last else "first"
        return f"image, {self.height}x{self.width}, {frames}{channels}, {dtype}, channels {order}"


def _image_axes(what: str, shape: tuple[int, ...], frames: int, layout: Layout) -> ImageAxes:
    """The axes of an array in this layout; ConfigError where it has too few."""
    if len(shape) < 2:
        raise ConfigError(
            f"{what} of shape {shape}, which can't be read as {layout}: an image has 2 axes or more"
        )
    last = layout == "channels-last"
    if len(shape) == 2:
        return ImageAxes(frames, 1, *shape, last=last)
    frames, shape = frames * prod(shape[:-3]), shape[-3:]
    height, width = shape[:2] if last else shape[1:]
    return ImageAxes(frames, shape[2] if last else shape[0], height, width, last)


def _image_field(space: spaces.Box, axes: ImageAxes) -> tuple[ModalitySpec, Convert]:
    if space.dtype not in (np.uint8, np.bool_):
        convert = partial(_to_floats, shape=axes.shape, last=axes.last, origin=_origin(space))
        return ModalitySpec(axes.shape, torch.float32), convert
    if space.dtype == np.uint8 and not axes.last and space.shape == axes.shape:
        return ModalitySpec(axes.shape, torch.uint8), _as_bytes
    convert = partial(_to_bytes, shape=axes.shape, last=axes.last)
    return ModalitySpec(axes.shape, torch.uint8), convert


def _origin(space: spaces.Box) -> np.ndarray | None:
    """Subtracted from the numbers of an image whose range is narrow beside their size, so that
    float32 would round their differences."""
    if np.can_cast(space.dtype, np.float32) or space.dtype == np.uint64:
        return None
    is_integer = np.issubdtype(space.dtype, np.integer)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = space.low.astype(float), space.high.astype(float)
        is_narrow = abs(low) > high - low
    return np.where(is_narrow, space.low, 0).astype(np.int64 if is_integer else np.float64)


def _as_is(part: Any) -> Any:
    return part


def _flat(part: Any, double: bool = False) -> np.ndarray:
    part = np.asarray(part)
    return part.reshape(len(part), -1).astype(np.float64 if double else np.float32)


def _as_floats(part: Any) -> np.ndarray:
    return np.asarray(part).astype(np.float32)


def _channels_first(part: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    if last and part.ndim > 3:  # arrays of two axes have no channels to move
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
