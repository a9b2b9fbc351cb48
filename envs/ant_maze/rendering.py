"""What the worlds look like to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..maze.layouts import Maze
from ..maze.rendering import INK, to_picture
from ..maze.rendering import draw_picture as draw_maze
from ..picture import PICTURE, beside, ink
from .ants import HIP, LEGS, Ant, feet, heading
from .physics import CELL, REACHED

TORSO = 0.25 / CELL  # cells
LINE = 2.0  # pixels, half the width of a leg


def draw_picture(maze: Maze, ant: Ant, goal: Tensor) -> Tensor:
    """[B, 320, 320, 3] uint8"""
    picture = draw_maze(maze, ant.place, goal, REACHED, TORSO).float()
    joints = torch.cat([hips(ant.pose)[:, :, None], feet(ant.pose)], 2)  # [B, 4, 3, 2]
    points = to_picture(ant.place[:, None, None] + joints / CELL, maze.size)
    ends = torch.stack([points[:, :, :-1], points[:, :, 1:]], 3).flatten(1, 2)
    off = beside(torch.arange(PICTURE, device=goal.device), ends)
    return ink(picture, LINE - off, INK["body"]).round().to(torch.uint8)


def hips(pose: Tensor) -> Tensor:
    """Poses [B, 13] -> where legs begin about the torso, in metres, [B, 4, 2]."""
    around = heading(pose)[:, None] + torch.pi * pose.new_tensor(LEGS)
    return HIP * torch.stack([around.cos(), around.sin()], -1)
