"""Gymnasium spaces as the agent meets them: how each leaf of an observation space is read, which
follows from its space and its layout. `tensors.py` reads the observations and writes the actions.

Vectors, and everything that can be written as one (numbers, choices, switches), are float32, or
float64 where float32 would round them. Images are `[channels, height, width]`: bytes stay bytes,
other numbers become float32; the encoder standardizes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from operator import getitem
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gymnasium import spaces

from ami_agent.adapters.tensors import (
    Bounds,
    Convert,
    Interface,
    ModalitySpec,
    ObsField,
    OutOfBounds,
    Path,
    action_adapter,
    as_bytes,
    as_is,
    obs_label,
    to_bytes,
    to_downsampled,
    to_floats,
    to_vectors,
    warn_once,
)
from modules.types import ConfigError

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


MIN_WHITE = 64
"""The highest byte of an image below which means of pixels are not rounded to bytes."""


ROUNDING_TOLERANCE = 1e-5
"""Fraction of its range by which a number may leave its space through rounding."""


Layout: TypeAlias = Literal["auto", "vector", "set", "channels-last", "channels-first", "ignore"]
"""How a user says that an array is read; `auto` leaves it to `guess_layout`."""


Conversion: TypeAlias = tuple[ModalitySpec, Convert, str]
"""What a leaf becomes, the function that converts it, and a summary in words."""


@dataclass
class IgnoredField:
    """A leaf that no encoder can read, a text or an array without numbers, or that the user leaves
    out."""

    path: Path
    name: str
    env: str
    summary: str  # why it is ignored, in words
    is_text: bool
    first: Any = None

    def check(self, obs: Any) -> None:
        """Warns once where a text varies, for only a constant text carries no information."""
        for text in reduce(getitem, self.path, obs) if self.is_text else ():
            self.first = text if self.first is None else self.first
            if text != self.first:
                warn_once(
                    (self.env, "text", self.name),
                    f"{obs_label(self.env, 'observation', self.name)} varies ({self.first!r}, "
                    f"then {text!r}), and the agent reads no text: it can't learn what depends on "
                    "it",
                )
                return


def interface_to(
    observation_space: spaces.Space, action_space: spaces.Space, **reading: Any
) -> Interface:
    """How the agent reads these spaces; ConfigError where it can't observe them or act in them.
    `reading`: as `obs_fields` takes it."""
    fields = obs_fields(observation_space, **reading)
    return Interface(observation_space, action_space, fields, action_adapter(action_space))


def obs_fields(
    space: spaces.Space, stack: int = 1, *, layouts: Mapping[str, Layout] | None = None,
    downsample: int = 1, out_of_bounds: OutOfBounds = "pass", env: str = "",
) -> dict[str, ObsField]:  # fmt: skip
    """One field for each leaf, by name, "obs" where there is but one. `stack`: every leaf holds so
    many frames along its first axis. `downsample`: an image becomes smaller by this factor. Raises
    ConfigError for leaves that can't be read."""
    layouts = layouts or {}
    named = named_leaves(space)
    if unknown := [name for name in layouts if name not in named]:
        raise ConfigError(
            f"obs_layout names {unknown[0]!r}; the observations are {', '.join(named) or 'none'}"
        )
    found = {}
    for name, (path, leaf) in named.items():
        layout = layouts.get(name, "auto")
        if not reason_to_ignore(leaf, layout, is_only_leaf=len(named) == 1):
            what = "observations are" if not path else f"observation {name!r} is"
            conversion = conversion_of(what, leaf, stack, layout)
            if downsample > 1 and len(conversion[0].shape) == 3:
                conversion = _downsampled(leaf, conversion, downsample)
            bounds = bounds_of(leaf)
            found[name] = ObsField(path, leaf, *conversion, bounds, out_of_bounds, name, env)
    if not found:
        raise ConfigError(f"observations are {space}: there is nothing to observe")
    return found


def ignored_fields(
    space: spaces.Space, layouts: Mapping[str, Layout] | None = None, env: str = ""
) -> list[IgnoredField]:
    """The leaves that `obs_fields` leaves out."""
    named, found = named_leaves(space), []
    for name, (path, leaf) in named.items():
        layout = (layouts or {}).get(name, "auto")
        if reason := reason_to_ignore(leaf, layout, is_only_leaf=len(named) == 1):
            is_text = layout != "ignore" and not isinstance(leaf, spaces.Box)
            found.append(IgnoredField(path, name, env, reason, is_text))
    return found


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


def _downsampled(space: spaces.Space, conversion: Conversion, factor: int) -> Conversion:
    """The conversion of an image, followed by means over squares of `factor` pixels a side."""
    (shape, dtype), convert, summary = conversion
    channels, *sides = shape
    height, width = (-(-side // factor) for side in sides)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and space.high.max() < MIN_WHITE:
        dtype = torch.float32
    smaller = ModalitySpec((channels, height, width), dtype)
    what, _, order = summary.rpartition(", ")
    summary = f"{what}, downsampled to {height}x{width}, {order}"
    downsample = partial(to_downsampled, convert=convert, factor=factor, dtype=dtype)
    return smaller, downsample, summary


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
