"""Gymnasium spaces as the agent meets them: how each leaf of an observation space is converted,
which follows from its space and its layout, and how an action `[..., A]` in [-1, 1] becomes what
`env.step` takes. `observations.py` reads the observations.

Vectors, and everything that can be written as one (numbers, choices, switches), are float32, or
float64 where float32 would round them. Images are `[channels, height, width]`: bytes stay bytes,
other numbers become float32; the encoder standardizes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from modules.types import ConfigError

MAX_CHOICES = 2**14
"""Options of all discrete actions together: each is one number of the agent's action."""
MAX_INTEGER_RANGE = 2**24
"""Integers between the bounds of an action: float32 represents no more of them exactly."""
NUMERIC_KINDS = "biuf"
"""Kinds of NumPy arrays that hold numbers: booleans, integers, floats."""

MIN_IMAGE_SIDE = 8
"""Pixels of an image's side; arrays of three axes with a shorter side are vectors."""
MIN_GRAY_IMAGE_SIDE = 16
"""Pixels of an image's side where an array has two axes and is not of bytes: sets of vectors are
seldom as large."""
CHANNELS = (1, 2, 3, 4)
STACKED_CHANNELS = (6, 8, 9, 12, 16)
"""Channels of one image, and of several that are stacked along the channel axis."""
MIN_STACKED_SIDE = 32
"""Pixels of a side of stacked images; a shorter axis may be one of channels."""
ROUNDING_TOLERANCE = 1e-5
"""Fraction of its range by which a number may leave its space through rounding."""

Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a leaf."""
Layout: TypeAlias = Literal["auto", "vector", "set", "channels-last", "channels-first", "ignore"]
"""How a user says that an array is read; `auto` leaves it to `guess_layout`."""
Convert: TypeAlias = Callable[[Any], Any]
"""`[B, *leaf]` -> `[B, *modality.shape]`"""


class ModalitySpec(NamedTuple):
    """Shape and dtype of one modality."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


Conversion: TypeAlias = tuple[ModalitySpec, Convert, str]
"""What a leaf becomes, the function that converts it, and a summary in words."""


class Bounds(NamedTuple):
    """The lowest and the highest numbers of a space, and the tolerance for rounding."""

    low: np.ndarray
    high: np.ndarray
    tolerance: Any = 0.0


def named_leaves(space: spaces.Space) -> dict[str, tuple[Path, spaces.Space]]:
    """The leaves by name, "obs" where there is but one; ConfigError for two of the same name."""
    found: dict[str, tuple[Path, spaces.Space]] = {}
    for path, leaf in leaves(space):
        name = "/".join(str(key).replace(".", "_") for key in path) if path else "obs"
        name = "obs_" if path and name == "obs" else name  # "obs" is reserved for a single leaf
        if name in found:
            raise ConfigError(f"two parts of the observation would both be called {name!r}")
        found[name] = (path, leaf)
    return found


def leaves(space: spaces.Space, path: Path = ()) -> Iterator[tuple[Path, spaces.Space]]:
    """The parts of a space that hold no others, each with its path."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield path, space
        return
    parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in parts:
        yield from leaves(part, (*path, key))


def reason_to_ignore(leaf: spaces.Space, layout: Layout, is_only_leaf: bool) -> str:
    """Why no encoder reads a leaf, in words; empty where one does."""
    if layout == "ignore":
        return "ignored, by --env.obs-layout"
    if is_only_leaf:
        return ""
    if isinstance(leaf, spaces.Box):
        return "" if prod(leaf.shape) else "ignored: it holds no number"
    return f"ignored: the agent reads no text ({type(leaf).__name__})" if _is_text(leaf) else ""


def _is_text(space: spaces.Space) -> bool:
    """Whether a space is one of texts; its class need not be Gymnasium's."""
    if isinstance(space, spaces.Text):
        return True
    if type(space).__module__.startswith("gymnasium."):
        return False
    with suppress(Exception):  # third-party code may raise anything
        return isinstance(space.sample(), str)
    return False


def bounds_of(space: spaces.Space) -> Bounds | None:
    """The bounds of a space; None where no number can be outside."""
    if isinstance(space, spaces.Discrete):
        return Bounds(np.asarray(space.start), np.asarray(space.start + space.n - 1))
    if isinstance(space, spaces.MultiDiscrete):
        return Bounds(space.start, space.start + space.nvec - 1)
    if isinstance(space, spaces.MultiBinary):
        return Bounds(np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8))
    if not isinstance(space, spaces.Box) or space.dtype == np.bool_:
        return None
    if space.dtype == np.uint8 and not space.low.any() and (space.high == 255).all():
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    if not np.issubdtype(space.dtype, np.floating):
        return Bounds(low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
        size = np.maximum(np.where(np.isfinite(low), abs(low), abs(high)), 1.0)
    return Bounds(low, high, ROUNDING_TOLERANCE * np.where(np.isfinite(span), span, size))


def conversion_of(what: str, space: spaces.Space, stack: int, layout: Layout) -> Conversion:
    """The conversion of a leaf; ConfigError where it can't be read. `what`: its subject and verb
    in a message. `stack`: the leaf holds so many frames along its first axis."""
    if isinstance(space, spaces.Box):
        return _box_conversion(what, space, stack, layout)
    if layout != "auto":
        raise ConfigError(
            f"{what} {space}, which can't be read as {layout}: of other spaces than Box the only "
            "obs_layout is ignore"
        )
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        adapter = action_adapter(space)  # one-hot, as discrete actions are
        modality = ModalitySpec((adapter.size,))
        return modality, adapter.from_env, f"one-hot, {adapter.size} numbers"
    if isinstance(space, spaces.MultiBinary):
        size = prod(space.shape)
        return ModalitySpec((size,)), partial(to_vectors, shape=(-1,)), f"vector, {size} switches"
    raise ConfigError(
        f"{what} {space}; the agent observes Box, Discrete, MultiDiscrete, MultiBinary, and "
        "Dict or Tuple of these: wrap the environment so that it delivers one of them "
        "(gymnasium.wrappers.TransformObservation), or ignore a part of a Dict "
        "(--env.obs-layout NAME ignore)"
    )


def _box_conversion(what: str, space: spaces.Box, stack: int, layout: Layout) -> Conversion:
    shape = space.shape
    if not prod(shape):
        raise ConfigError(f"{what} {space}: there is nothing to observe")
    num_frames = stack if len(shape) > 1 and stack > 1 else 1
    frame_shape = shape[1:] if num_frames > 1 else shape
    if layout == "auto":
        layout = guess_layout(space, frame_shape)
        layout = "vector" if layout == "set" and num_frames > 1 else layout
    if layout in ("channels-last", "channels-first"):
        return _image_conversion(f"{what} {space}", space, frame_shape, num_frames, layout)
    if layout == "set":
        if len(shape) != 2:
            raise ConfigError(f"{what} {space}, which can't be read as set: a set has 2 axes")
        summary = f"set, {shape[0]} vectors of {shape[1]} numbers each, {space.dtype}"
        convert = as_is if space.dtype == np.float32 else partial(to_vectors, shape=shape)
        return ModalitySpec(shape), convert, summary
    shape_note = f" (shape {shape})" if len(shape) > 1 else ""
    count_text = f"{prod(shape)} number{'s' if prod(shape) > 1 else ''}"
    # float32 rounds a clock in seconds since 1970, float64, to steps of two minutes
    is_double = not np.can_cast(space.dtype, np.float32)
    is_plain_vector = len(shape) == 1 and space.dtype == np.float32
    convert = as_is if is_plain_vector else partial(to_vectors, shape=(-1,), double=is_double)
    modality = ModalitySpec((prod(shape),), torch.float64 if is_double else torch.float32)
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


def _image_conversion(
    what: str, space: spaces.Box, shape: tuple[int, ...], frames: int, layout: Layout
) -> Conversion:
    """An image `[*frames, height, width, channels]` or `[*frames, channels, height, width]`; the
    encoder's input has the channels of all frames, one behind the other. `shape`: of one frame."""
    if len(shape) < 2:
        raise ConfigError(
            f"{what} of shape {shape}, which can't be read as {layout}: an image has 2 axes or more"
        )
    # an array of two axes has one channel, and no axis of channels to move
    last = layout == "channels-last" and len(shape) > 2
    frames *= prod(shape[:-3])
    axes = shape[-3:] if len(shape) > 2 else (1, *shape)
    height, width, channels = axes if last else (*axes[1:], axes[0])
    frames_text = f"{frames} frames, " if frames > 1 else ""
    channels_text = f"{channels} channel{'s' if channels > 1 else ''}"
    order = layout.replace("-", " ")
    summary = f"image, {height}x{width}, {frames_text}{channels_text}, {space.dtype}, {order}"
    image_shape = (frames * channels, height, width)
    if space.dtype not in (np.uint8, np.bool_):
        shaped = partial(to_floats, shape=image_shape, last=last, origin=image_origin(space))
        return ModalitySpec(image_shape), shaped, summary
    is_plain = space.dtype == np.uint8 and not last and space.shape == image_shape
    convert = as_bytes if is_plain else partial(to_bytes, shape=image_shape, last=last)
    return ModalitySpec(image_shape, torch.uint8), convert, summary


def image_origin(space: spaces.Box) -> np.ndarray | None:
    """Subtracted from the numbers of an image whose range is narrow beside their size, so that
    float32 would round their differences."""
    if np.can_cast(space.dtype, np.float32) or space.dtype == np.uint64:
        return None
    is_integer = np.issubdtype(space.dtype, np.integer)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = space.low.astype(float), space.high.astype(float)
        is_narrow = abs(low) > high - low
    return np.where(is_narrow, space.low, 0).astype(np.int64 if is_integer else np.float64)


def as_is(part: Any) -> Any:
    return part


def to_vectors(part: Any, shape: tuple[int, ...], double: bool = False) -> np.ndarray:
    part = np.asarray(part)
    return part.reshape(len(part), *shape).astype(np.float64 if double else np.float32)


def _channels_first(part: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    part = np.moveaxis(part, -1, -3) if last else part
    return part.reshape(len(part), *shape)


def as_bytes(part: Any) -> Any:
    """Raises ValueError for numbers that are no bytes."""
    if isinstance(part, Tensor) or part.dtype == np.uint8:
        return part
    converted = part.astype(np.uint8)
    if (converted != part).any():
        raise ValueError("it holds numbers that are no bytes")
    return converted


def to_bytes(part: Any, shape: tuple[int, ...], last: bool) -> np.ndarray:
    part = _channels_first(np.asarray(part), shape, last)
    part = 255 * part.astype(np.uint8) if part.dtype == np.bool_ else as_bytes(part)
    return np.ascontiguousarray(part)


def to_floats(
    part: Any, shape: tuple[int, ...], last: bool, origin: np.ndarray | None
) -> np.ndarray:
    part = np.asarray(part)
    part = part if origin is None else part - origin
    return np.ascontiguousarray(_channels_first(part, shape, last), np.float32)


class BoxAdapter:
    """A Box: each bounded number is scaled to [-1, 1]. `size`: A."""

    choices: tuple[int, ...] = ()  # no discrete action

    def __init__(self, space: spaces.Box) -> None:
        if not prod(space.shape):
            raise ConfigError(f"actions are {space}: there is no number to choose")
        self.size, self.shape, self.dtype = prod(space.shape), space.shape, space.dtype
        unit = np.result_type(space.dtype, np.float32)
        self.low, self.high = space.low.astype(unit), space.high.astype(unit)
        with np.errstate(over="ignore", invalid="ignore"):
            span = self.high - self.low
        is_integer = not np.issubdtype(self.dtype, np.floating)
        if not np.isfinite(span).all() or (is_integer and (span > MAX_INTEGER_RANGE).any()):
            raise ConfigError(
                f"actions {space} have no bounds, or bounds too far apart: wrap the environment in "
                "gymnasium.wrappers.TransformAction(env, lambda a: a, Box(low, high))"
            )

    def to_env(self, action: np.ndarray) -> np.ndarray:
        fraction = (action.reshape(*action.shape[:-1], *self.shape) + 1) / 2
        native = (self.low + fraction * (self.high - self.low)).clip(self.low, self.high)
        is_float = np.issubdtype(self.dtype, np.floating)
        return (native if is_float else native.round()).astype(self.dtype)

    def from_env(self, action: Any) -> np.ndarray:
        action = np.asarray(action)
        fraction = (action - self.low) / np.maximum(self.high - self.low, 1e-12)
        return (2 * fraction - 1).reshape(*_batch_shape(action, self.shape), -1).astype(np.float32)


class DiscreteAdapter:
    """Discrete actions as one-hot vectors, one behind the other; the option with the largest number
    is chosen. `choices`: the number of options of each action; `size`: of all, A."""

    def __init__(self, sizes: Any, start: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self.choices = tuple(int(n) for n in np.asarray(sizes).flatten())
        if sum(self.choices) > MAX_CHOICES:
            raise ConfigError(
                f"the discrete actions have {sum(self.choices)} options, more than {MAX_CHOICES}: "
                "wrap the environment so that it takes numbers or several smaller choices"
            )
        self.size, self.shape, self.dtype = sum(self.choices), shape, dtype
        self.start = np.asarray(start).flatten()
        self.offsets = np.concatenate([[0], np.cumsum(self.choices)[:-1]]).astype(np.int64)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        parts = np.split(action, self.offsets[1:], -1)
        chosen = np.stack([part.argmax(-1) for part in parts], -1) + self.start
        return chosen.reshape(*action.shape[:-1], *self.shape).astype(self.dtype)

    def from_env(self, action: Any) -> np.ndarray:
        batch_shape = _batch_shape(np.asarray(action), self.shape)
        chosen = np.asarray(action).reshape(*batch_shape, -1) - self.start
        one_hot = np.zeros((*batch_shape, self.size), np.float32)
        np.put_along_axis(one_hot, chosen.astype(np.int64) + self.offsets, 1.0, -1)
        return one_hot


ActionAdapter: TypeAlias = BoxAdapter | DiscreteAdapter
"""Converts actions between the agent and the environment."""


def _batch_shape(action: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of actions that each have this shape."""
    return action.shape[: action.ndim - len(shape)]


def action_adapter(space: spaces.Space) -> ActionAdapter:
    """The adapter for this space; ConfigError for a space that the agent can't act in."""
    if isinstance(space, spaces.Box):
        return BoxAdapter(space)
    if isinstance(space, spaces.Discrete):
        return DiscreteAdapter(space.n, space.start, (), space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return DiscreteAdapter(space.nvec, space.start, space.shape, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return DiscreteAdapter([2] * prod(space.shape), 0, space.shape, space.dtype)
    raise ConfigError(
        f"actions are {space}; the agent acts in Box, Discrete, MultiDiscrete and MultiBinary: "
        "wrap the environment so that it takes one of them (gymnasium.wrappers.TransformAction)"
    )
