"""What observations and frames show: the walls, the body and the goal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import draw
from .dynamics import HALF_WIDTH, BodyState, Maze

CELL = 6  # pixels of an image to a cell
DOT_STD = 1.0  # pixels, of the body
FRAME_MARGIN = 10  # pixels around the maze in a frame
WALL_WIDTH = 2  # pixels, half the width of a wall in a frame
MIN_RADIUS = 4.0  # pixels of the body in a frame


def image_size(size: int) -> int:
    """Cells on a side -> pixels on a side: a line more than the cells, up to a multiple of 4."""
    return -(-(CELL * size + 1) // 4) * 4


def to_image(position: Tensor, size: int) -> Tensor:
    """Positions [..., 2] -> pixels [..., 2] of the image, in whose middle the maze is."""
    return CELL * position + (image_size(size) - CELL * size - 1) // 2


def wall_grid(maze: Maze) -> Tensor:
    """What is wall, [B, 2 n + 1, 2 n + 1] bool: lines and cells by turns, both ways."""
    side = 2 * maze.size + 1
    wall = maze.solid.new_zeros(len(maze.solid), side, side)
    wall[:, 1::2, 1::2] = maze.solid
    wall[:, 1::2, ::2] = maze.vertical_walls
    wall[:, ::2, 1::2] = maze.horizontal_walls
    vertical = pad(maze.vertical_walls, (0, 0, 1, 1))
    horizontal = pad(maze.horizontal_walls, (1, 1))
    at_vertical = vertical[:, 1:] | vertical[:, :-1]
    wall[:, ::2, ::2] = at_vertical | horizontal[:, :, 1:] | horizontal[:, :, :-1]
    return wall


def draw_walls(maze: Maze) -> Tensor:
    """[B, S, S] uint8, 255 where a pixel is on a wall, in a solid cell or outside."""
    origin = int(to_image(torch.zeros(()), maze.size))
    pixel = torch.arange(image_size(maze.size), device=maze.solid.device) - origin
    source = 2 * pixel.div(CELL, rounding_mode="floor") + (pixel % CELL > 0)
    source = source.clamp(0, 2 * maze.size)
    return wall_grid(maze)[:, source][:, :, source].to(torch.uint8) * 255


def draw_image(walls: Tensor, size: int, body: BodyState) -> Tensor:
    """Walls [B, S, S] -> [B, 3, S, S] uint8: walls, bodies, and bodies one step earlier."""
    positions = to_image(torch.cat([body.position, body.previous_position]), size)
    now, before = draw.draw_dot(positions, walls.shape[-1], DOT_STD).chunk(2)
    return torch.stack([walls, now, before], 1)


def zoom(size: int) -> float:
    """Pixels of a frame to a cell."""
    return (draw.FRAME_SIZE - 2 * FRAME_MARGIN) / size


def to_pixels(position: Tensor, size: int) -> Tensor:
    """Positions [..., 2] -> `(x, y)` [..., 2] in the pixels of a frame."""
    return FRAME_MARGIN - 0.5 + zoom(size) * position


def draw_frames(
    maze: Maze, position: Tensor, goal: Tensor, goal_radius: float, half_width: float = HALF_WIDTH
) -> Tensor:
    """Bodies and goals [B, 2], the radius in cells -> [B, 320, 320, 3] uint8."""
    scale, pixels = zoom(maze.size), draw.frame_pixels(position.device)
    across = (pixels - FRAME_MARGIN + 0.5) / scale  # cells
    on_line = (across - across.round()).abs() * scale <= WALL_WIDTH
    source = torch.where(on_line, 2 * across.round(), 2 * across.floor() + 1).long()
    source = source.clamp(-1, 2 * maze.size + 1) + 1
    walls = pad(wall_grid(maze), (1, 1, 1, 1))[:, source][:, :, source].float()
    frames = draw.white_frames(len(position), position.device)
    frames = draw.blend(frames, walls - 0.5, draw.WALL_COLOUR)
    distance = draw.pixel_distance(pixels, to_pixels(goal, maze.size))
    frames = draw.blend_ring(frames, distance, scale * goal_radius)
    distance = draw.pixel_distance(pixels, to_pixels(position, maze.size))
    depth = max(MIN_RADIUS, scale * half_width) - distance
    return draw.to_bytes(draw.blend(frames, depth, draw.AGENT_COLOUR))
