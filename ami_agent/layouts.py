"""How the array of a Box observation is read: as a vector, a set of things alike, or a picture."""

from __future__ import annotations

from math import prod
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from modules.types import UnusableInput

Layout: TypeAlias = Literal["auto", "vector", "set", "channels-last", "channels-first", "ignore"]
"""What a user may say of an observation; `auto` leaves it to `guess`."""

SMALL = 8
"""Pixels to a side; arrays of three axes with a shorter side are numbers, not pictures."""
PLANE = 16
"""The same for arrays of two axes that are not bytes: tables of things are seldom as large."""
CHANNELS = (1, 2, 3, 4)
STACKED = (6, 8, 9, 12, 16)
"""Channels of one picture, and of several that are stacked along the axis of channels."""
WIDE = 32
"""Pixels to a side of pictures that are stacked: fewer may be channels."""


class Picture(NamedTuple):
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


def guess(space: spaces.Box, inner: tuple[int, ...]) -> Layout:
    """The likeliest layout of an array of shape `inner`, of which the leading axes of the space may
    be frames. Gymnasium's convention, channels last, holds unless the shape says otherwise."""
    if len(inner) == 2:
        if _is_plane(space, inner):
            return "channels-last"
        return "set" if space.dtype == np.float32 else "vector"
    if len(inner) < 3:
        return "vector"
    first, middle, last = inner[-3:]
    tried: tuple[Layout, ...] = ("channels-last", "channels-first")
    if _first_are_channels(first, middle, last):
        tried = ("channels-first", "channels-last")
    sides = {"channels-last": (first, middle), "channels-first": (middle, last)}
    return next((layout for layout in tried if min(sides[layout]) >= SMALL), "vector")


def _first_are_channels(first: int, middle: int, last: int) -> bool:
    """Two equal sides are those of a picture; else few are channels and many are pixels."""
    if (first == middle) != (middle == last):
        return middle == last
    if last in CHANNELS:
        return False
    return first in CHANNELS or (first in STACKED and last >= WIDE)


def _is_plane(space: spaces.Box, sides: tuple[int, ...]) -> bool:
    """Whether two axes are those of a picture with one channel. All pixels have the same finite
    bounds; numbers of different kinds, or without bounds, are none."""
    if space.dtype == np.uint8:
        return min(sides) >= SMALL
    low, high = space.low.flat[0], space.high.flat[0]
    same = bool((space.low == low).all() and (space.high == high).all())
    return min(sides) >= PLANE and same and bool(np.isfinite(low) and np.isfinite(high))


def picture(what: str, inner: tuple[int, ...], frames: int, layout: Layout) -> Picture:
    """The axes of an array that is read so; UnusableInput where it has too few."""
    if len(inner) < 2:
        raise UnusableInput(
            f"{what} of shape {inner}, which can't be read as {layout}: an image has 2 axes or more"
        )
    if len(inner) == 2:
        return Picture(frames, 1, *inner, last=layout == "channels-last")
    frames, inner = frames * prod(inner[:-3]), inner[-3:]
    last = layout == "channels-last"
    height, width = inner[:2] if last else inner[1:]
    return Picture(frames, inner[2] if last else inner[0], height, width, last)
