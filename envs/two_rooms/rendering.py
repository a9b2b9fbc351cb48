"""What the worlds look like: to the one who lives there, and to a person who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .. import dot
from ..picture import PICTURE, distance, ink
from .physics import Arena

Paint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Walls and dot, each `[B, S, S]` uint8 -> observation `[B, C, S, S]` uint8."""

INK = {"wall": (45, 50, 60), "goal": (30, 150, 70), "dot": (30, 90, 220), "blob": (150, 70, 190)}
FAINT = 0.35  # how much of a blob a person is shown


def two_channels(walls: Tensor, dot: Tensor) -> Tensor:
    """The dot in one channel, the walls in the other."""
    return torch.stack([dot, walls], 1)


def red_on_white(walls: Tensor, dot: Tensor) -> Tensor:
    """A red dot and black walls on white."""
    ground = ~walls  # 0 or 255, so the bits of a byte do as masks
    rest = ground & ~dot
    return torch.stack([ground | dot, rest, rest], 1)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The image that a world is seen as."""

    size: int  # S, pixels on a side
    border: tuple[int, int]  # first and last pixel of the frame, counted from each edge
    dot_std: float  # pixels
    channels: int
    paint: Paint


def draw_walls(canvas: Canvas, arena: Arena, layout: Tensor) -> Tensor:
    """Layout [B, 2] -> [B, S, S] uint8, 255 where a pixel's centre is wall or frame."""
    pixel = torch.arange(canvas.size, device=layout.device)
    edge = torch.minimum(pixel, canvas.size - 1 - pixel)  # distance to the nearer edge
    inside = edge >= canvas.border[0]
    line = inside & (edge <= canvas.border[1])
    frame = (line[:, None] & inside) | (line & inside[:, None])  # [S, S]
    wall_x, door_y = layout[:, :1], layout[:, 1:]
    column = ((pixel - wall_x).abs() <= arena.wall_width / 2) & inside  # [B, S]
    closed = ((pixel - door_y).abs() > arena.half_door) & inside
    walls = closed[:, :, None] & column[:, None, :]
    return (walls | frame).to(torch.uint8) * 255


def draw_dot(canvas: Canvas, position: Tensor) -> Tensor:
    """Position [B, 2] -> [B, S, S] uint8."""
    return dot.draw_dot(position, canvas.size, canvas.dot_std)


def draw_blobs(canvas: Canvas, places: Tensor) -> Tensor:
    """Places [B, N, 2] -> [B, 1, S, S] uint8 with N dots."""
    return dot.draw_dots(places, canvas.size, canvas.dot_std).unsqueeze(1)


def observe(canvas: Canvas, walls: Tensor, position: Tensor) -> Tensor:
    """Walls [B, S, S], position [B, 2] -> observation [B, C, S, S] uint8."""
    return canvas.paint(walls, draw_dot(canvas, position))


def to_picture(canvas: Canvas, position: Tensor) -> Tensor:
    """Positions [..., 2] in the world's pixels -> `(x, y)` [..., 2] in the picture's pixels."""
    return (position + 0.5) * (PICTURE / canvas.size) - 0.5


def draw_picture(
    canvas: Canvas, walls: Tensor, position: Tensor, goal: Tensor, radius: float, blobs: Tensor
) -> Tensor:
    """Walls [B, S, S], dot and goal [B, 2], success radius in pixels, blobs [B, N, 2] -> picture
    [B, 320, 320, 3] uint8."""
    zoom = PICTURE / canvas.size
    disc = 1.2 * zoom * canvas.dot_std
    side = torch.arange(PICTURE, device=position.device)
    source = ((side + 0.5) / zoom).long().clamp(max=canvas.size - 1)
    picture = 255.0 - torch.zeros(len(position), PICTURE, PICTURE, 3, device=position.device)
    for place in blobs.unbind(1):
        blob = disc - distance(side, to_picture(canvas, place))
        picture = ink(picture, blob.clamp(max=FAINT - 0.5), INK["blob"])
    solid = walls[:, source][:, :, source].float() / 255 - 0.5
    picture = ink(picture, solid, INK["wall"])
    ring = zoom * radius - distance(side, to_picture(canvas, goal))
    picture = ink(picture, 1.5 - ring.abs(), INK["goal"])
    here = disc - distance(side, to_picture(canvas, position))
    return ink(picture, here, INK["dot"]).round().to(torch.uint8)
