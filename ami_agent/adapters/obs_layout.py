"""How the array of a Box observation is read: as a vector, a set of things alike, or a picture."""

from __future__ import annotations

from math import prod
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from modules.types import ConfigError

Layout: TypeAlias = Literal["auto", "vector", "set", "channels-last", "channels-first", "ignore"]
"""What a user may say of an observation; `auto` leaves it to `guess`."""

MIN_IMAGE_SIDE = 8
"""Pixels to a side; arrays of three axes with a shorter side are numbers, not pictures."""
MIN_GRAY_IMAGE_SIDE = 16
"""The same for arrays of two axes that are not bytes: tables of things are seldom as large."""
CHANNELS = (1, 2, 3, 4)
STACKED_CHANNELS = (6, 8, 9, 12, 16)
"""Channels of one picture, and of several that are stacked along the axis of channels."""
MIN_STACKED_SIDE = 32
"""Pixels to a side of pictures that are stacked: fewer may be channels."""


class ImageAxes(NamedTuple):
    """The axes of a picture `[*frames, height, width, channels]` or `[*frames, channels, ...]`."""

    frames: int
    channels: int
    height: int
    width: int
    last: bool  # the channels are the last axis

    @property
    def shape(self) -> tuple[int, int, int]:
        """As an encoder reads it: frames lie behind each other as channels."""
        return (self.frames * self.channels, self.height, self.width)

    def summary(self) -> str:
        frames = f"{self.frames} frames, " if self.frames > 1 else ""
        channels = f"{self.channels} channel{'s' if self.channels > 1 else ''}"
        order = "last" if self.last else "first"
        return f"image, {self.height}x{self.width}, {frames}{channels}, {{}}, channels {order}"


def guess_layout(space: spaces.Box, shape: tuple[int, ...]) -> Layout:
    """The likeliest layout of an array of shape `inner`, of which the leading axes of the space may
    be frames. Gymnasium's convention, channels last, holds unless the shape says otherwise."""
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
    """Two equal sides are those of a picture; else few are channels and many are pixels."""
    if (first == middle) != (middle == last):
        return middle == last
    if last in CHANNELS:
        return False
    return first in CHANNELS or (first in STACKED_CHANNELS and last >= MIN_STACKED_SIDE)


def _is_gray_image(space: spaces.Box, sides: tuple[int, ...]) -> bool:
    """Whether two axes are those of a picture with one channel. All pixels have the same finite
    bounds; numbers of different kinds, or without bounds, are none."""
    if space.dtype == np.uint8:
        return min(sides) >= MIN_IMAGE_SIDE
    low, high = space.low.flat[0], space.high.flat[0]
    same = bool((space.low == low).all() and (space.high == high).all())
    return (
        min(sides) >= MIN_GRAY_IMAGE_SIDE and same and bool(np.isfinite(low) and np.isfinite(high))
    )


def image_axes(what: str, shape: tuple[int, ...], frames: int, layout: Layout) -> ImageAxes:
    """The axes of an array that is read so; ConfigError where it has too few."""
    if len(shape) < 2:
        raise ConfigError(
            f"{what} of shape {shape}, which can't be read as {layout}: an image has 2 axes or more"
        )
    if len(shape) == 2:
        return ImageAxes(frames, 1, *shape, last=layout == "channels-last")
    frames, shape = frames * prod(shape[:-3]), shape[-3:]
    last = layout == "channels-last"
    height, width = shape[:2] if last else shape[1:]
    return ImageAxes(frames, shape[2] if last else shape[0], height, width, last)
