"""The images that are observed. Lengths are their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import draw

CUT_OFF, ROUND_UP = 0.0, 1 - 1e-5  # a brightness below 1e-5 is none


def two_channels(canvas: Canvas, walls: Tensor, position: Tensor) -> Tensor:
    """The point mass in one channel, the walls in the other."""
    dot = draw.draw_dot(position, canvas.size, canvas.dot_std, rounding=canvas.rounding)
    return torch.stack([dot, walls], 1)


def red_on_white(canvas: Canvas, walls: Tensor, position: Tensor) -> Tensor:
    """A red point mass over black walls on white; its peak is at the nearest pixel. The rounding is
    upwards: what is left of white is cut off."""
    dot = draw.draw_dot(
        position, canvas.size, canvas.dot_std, rounding=canvas.rounding, peak_on_pixel=True
    )
    ground = ~walls  # 0 or 255, so the bits of a byte do as masks
    rest = ground & ~dot
    return torch.stack([ground | (dot - (dot > 0).byte()), rest, rest], 1)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The image that is observed."""

    size: int  # S, pixels on a side
    border: tuple[int, int]  # first and last pixel of the outer walls, counted from each edge
    half_wall: float  # half the width of the wall, between the middles of pixels
    half_door: float
    dot_std: float
    channels: int
    paint: Callable[[Canvas, Tensor, Tensor], Tensor]
    """Walls [B, S, S] uint8, position [B, 2] -> observation `[B, C, S, S]` uint8."""
    walls_to_edge: bool = True  # of the image, beyond the outer walls
    rounding: float = CUT_OFF  # added to the brightness of a dot before its fraction is cut off

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (self.channels, self.size, self.size), np.uint8)

    def draw_walls(self, layout: Tensor) -> Tensor:
        """Layout [B, 2] -> [B, S, S] uint8, 255 where a pixel's centre is on a wall."""
        pixel = torch.arange(self.size, device=layout.device)
        to_edge = torch.minimum(pixel, self.size - 1 - pixel)
        inside = to_edge >= (0 if self.walls_to_edge else self.border[0])
        line = (to_edge >= self.border[0]) & (to_edge <= self.border[1])
        outer = (line[:, None] & inside) | (line & inside[:, None])  # [S, S]
        wall_x, door_y = layout[:, :1], layout[:, 1:]
        column = ((pixel - wall_x).abs() <= self.half_wall) & inside  # [B, S]
        closed = ((pixel - door_y).abs() > self.half_door) & inside
        walls = closed[:, :, None] & column[:, None, :]
        return (walls | outer).to(torch.uint8) * 255

    def observe(self, walls: Tensor, position: Tensor) -> Tensor:
        """Walls [B, S, S], position [B, 2] -> observation [B, C, S, S] uint8."""
        return self.paint(self, walls, position)

    def draw_dots(self, positions: Tensor) -> Tensor:
        """Positions [B, N, 2] -> [B, 1, S, S] uint8 with N dots."""
        return draw.draw_dots(positions, self.size, self.dot_std).unsqueeze(1)

    def to_pixels(self, position: Tensor) -> Tensor:
        """Positions [..., 2] in the image's pixels -> `(x, y)` [..., 2] in a frame's pixels."""
        return (position + 0.5) * (draw.FRAME_SIZE / self.size) - 0.5
