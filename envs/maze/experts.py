"""One who knows the maze: from opening to opening along the shortest way, cutting corners."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plane import shrink_to_disk
from .layouts import Maze
from .physics import KEPT, PUSH, RADIUS, TERMINAL, Moving, cell, centre

MARGIN = 0.05  # between a body and the ends of the walls it passes
BRAKE = 0.4  # of the way that is left, as the pace towards the goal


def next_cell(maze: Maze, here: Tensor, there: Tensor) -> Tensor:
    """Cells [B] -> the first cell on the shortest way, [B]; the same once one is there."""
    rows = torch.arange(len(here), device=here.device)
    left = maze.far[rows, there]  # [B, N]
    nearer = (maze.far[rows, here] == 1) & (left < left.gather(1, here[:, None]))
    return torch.where(here == there, here, nearer.int().argmax(-1))


def through(gate: Tensor, ahead: Tensor, place: Tensor, beyond: Tensor, wide: float) -> Tensor:
    """Where the straight way from a place to one beyond comes through the middle of an opening, or
    as near to that as a body of half that width can; all [B, 2], `ahead` 1 along the axis that
    leads through."""
    near = ((gate - place).abs() * ahead).sum(-1, keepdim=True)
    off = ((beyond - gate).abs() * ahead).sum(-1, keepdim=True)
    point = torch.lerp(place, beyond, near / (near + off).clamp(min=1e-6))
    slack = (1 - ahead) * (0.5 - wide - MARGIN)
    return torch.minimum(torch.maximum(point, gate - slack), gate + slack)


def pursue(maze: Maze, body: Moving, goal: Tensor, wide: float = RADIUS) -> Tensor:
    """Bodies and goals [B, 2] -> actions [B, 2]: at full speed to the last opening, then slower
    the nearer."""
    here, there = cell(body.place, maze.size), cell(goal, maze.size)
    first = next_cell(maze, here, there)
    second = next_cell(maze, first, there)
    mine, middle, onward = (centre(c, maze.size) for c in (here, first, second))
    last = (first == there)[:, None]
    beyond = torch.where(last, goal, (middle + onward) / 2)
    point = through((mine + middle) / 2, (middle - mine).abs(), body.place, beyond, wide)
    point = torch.where((here == there)[:, None], goal, point)
    way = point - body.place
    length = way.norm(dim=-1, keepdim=True)
    left = length + (goal - point).norm(dim=-1, keepdim=True)
    speed = torch.where(last, (BRAKE * left).clamp(max=TERMINAL), TERMINAL)
    wanted = way / length.clamp(min=1e-6) * speed
    return shrink_to_disk((wanted - KEPT * body.pace) / PUSH, 1.0)
