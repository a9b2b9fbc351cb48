"""What the worlds look like: to the one who lives there, and to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..dot import draw_dot
from ..picture import PICTURE, distance, ink
from .layouts import Maze
from .physics import RADIUS, Body

CELL = 6  # pixels of an image to a cell
DOT = 1.0  # pixels, the standard deviation of a body
FRAME = 10  # pixels beside the maze in a picture
WALL = 2  # pixels, half the width of a wall in a picture
LEAST = 4.0  # pixels, so small at most a body is in a picture
INK = {"wall": (45, 50, 60), "goal": (30, 150, 70), "body": (30, 90, 220)}


def image_size(size: int) -> int:
    """Cells on a side -> pixels on a side: a line more than the cells, up to a multiple of 4."""
    return -(-(CELL * size + 1) // 4) * 4


def to_image(place: Tensor, size: int) -> Tensor:
    """Places [..., 2] -> pixels [..., 2] of the image; what is left over is around the maze."""
    return CELL * place + (image_size(size) - CELL * size - 1) // 2


def plan(maze: Maze) -> Tensor:
    """What is wall, [B, 2 n + 1, 2 n + 1] bool: lines and cells by turns, both ways."""
    side = 2 * maze.size + 1
    wall = maze.solid.new_zeros(len(maze.solid), side, side)
    wall[:, 1::2, 1::2] = maze.solid
    wall[:, 1::2, ::2] = maze.upright
    wall[:, ::2, 1::2] = maze.level
    ends = pad(maze.upright, (0, 0, 1, 1)), pad(maze.level, (1, 1))
    wall[:, ::2, ::2] = ends[0][:, 1:] | ends[0][:, :-1] | ends[1][:, :, 1:] | ends[1][:, :, :-1]
    return wall


def draw_walls(maze: Maze) -> Tensor:
    """[B, S, S] uint8, 255 where a pixel is on a wall, in a solid cell or outside."""
    pixels = image_size(maze.size)
    origin = int(to_image(torch.zeros(()), maze.size))
    pixel = torch.arange(pixels, device=maze.solid.device) - origin
    source = 2 * pixel.div(CELL, rounding_mode="floor") + (pixel % CELL > 0)
    source = source.clamp(0, 2 * maze.size)
    return plan(maze)[:, source][:, :, source].to(torch.uint8) * 255


def observe(walls: Tensor, size: int, body: Body) -> Tensor:
    """Walls [B, S, S] -> [B, 3, S, S] uint8: walls, bodies, and bodies one step earlier."""
    places = to_image(torch.cat([body.place, body.before]), size)
    here, before = draw_dot(places, walls.shape[-1], DOT).chunk(2)
    return torch.stack([walls, here, before], 1)


def zoom(size: int) -> float:
    """Pixels of a picture to a cell."""
    return (PICTURE - 2 * FRAME) / size


def to_picture(place: Tensor, size: int) -> Tensor:
    """Places [..., 2] -> `(x, y)` [..., 2] in the picture's pixels."""
    return FRAME - 0.5 + zoom(size) * place


def draw_picture(
    maze: Maze, place: Tensor, goal: Tensor, radius: float, half: float = RADIUS
) -> Tensor:
    """Bodies, as wide as twice `half`, and goals [B, 2], the radius of success in cells -> [B, 320,
    320, 3] uint8."""
    scale, side = zoom(maze.size), torch.arange(PICTURE, device=place.device)
    across = (side - FRAME + 0.5) / scale  # cells
    on_line = (across - across.round()).abs() * scale <= WALL
    source = torch.where(on_line, 2 * across.round(), 2 * across.floor() + 1).long()
    source = source.clamp(-1, 2 * maze.size + 1) + 1
    solid = pad(plan(maze), (1, 1, 1, 1))[:, source][:, :, source].float()
    picture = 255.0 - torch.zeros(len(place), PICTURE, PICTURE, 3, device=place.device)
    picture = ink(picture, solid - 0.5, INK["wall"])
    ring = scale * radius - distance(side, to_picture(goal, maze.size))
    picture = ink(picture, 1.5 - ring.abs(), INK["goal"])
    disc = max(LEAST, scale * half) - distance(side, to_picture(place, maze.size))
    return ink(picture, disc, INK["body"]).round().to(torch.uint8)
