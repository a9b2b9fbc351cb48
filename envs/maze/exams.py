"""Questions about walls with answers from the true physics: does a push pass, or not?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of, mix
from .goals import pick_one
from .layouts import Maze
from .physics import RADIUS, TERMINAL, Physics, centre
from .rendering import draw_walls
from .senses import Senses
from .states import to_factors

QUESTIONS = 64
PUSHES = 5
WAYS = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # right, left, down, up


def sides(maze: Maze) -> tuple[Tensor, Tensor]:
    """The four sides of every cell, [B, N, 4] bool: those with a wall, and those of the maze."""
    upright, level = maze.upright, maze.level
    walled = [upright[:, :, 1:], upright[:, :, :-1], level[:, 1:], level[:, :-1]]
    border = torch.zeros(maze.size, maze.size, 4, dtype=torch.bool, device=upright.device)
    border[:, -1, 0] = border[:, 0, 1] = border[-1, :, 2] = border[0, :, 3] = True
    return torch.stack(walled, -1).flatten(1, 2), border.flatten(0, 1).expand(len(upright), -1, -1)


def choices(maze: Maze) -> dict[str, Tensor]:
    """Which sides [B, N, 4] a push may be asked about: walls between two cells, those around the
    maze where there are no others, and openings."""
    walled, border = sides(maze)
    free = ~maze.solid.flatten(1)[..., None]
    wall, inner = walled & free, walled & free & ~border
    some = inner.flatten(1).any(-1)[:, None, None]
    return {"wall": torch.where(some, inner, wall), "open": ~walled & free}


def push(
    maze: Maze, physics: Physics, senses: Senses, chosen: Tensor, uniform: Tensor
) -> DynamicsTest:
    """What five full actions from rest do to bodies before a side that may be chosen [N, cells, 4],
    from 0.05 of the terminal speed to all of it before where a wall would stop them."""
    side = pick_one(chosen.flatten(1).long(), uniform[:, 0])
    ahead = torch.tensor(WAYS, device=uniform.device)[side % 4]
    gap = TERMINAL * (0.05 + 0.95 * uniform[:, 1:2])
    aside = (1 - 2 * RADIUS) * (uniform[:, 2:] - 0.5) * (1 - ahead.abs())
    place = centre(side // 4, maze.size) + ahead * (0.5 - RADIUS - gap) + aside
    body = end = physics.put(place, torch.zeros_like(place))
    for _ in range(PUSHES):
        end = physics.moved(maze, end, ahead)
    return DynamicsTest(
        obs=senses.sense(draw_walls(maze), body),
        actions=ahead[:, None].repeat(1, PUSHES, 1),
        start_factors=to_factors(maze.size, body),
        end_factors=to_factors(maze.size, end),
    )


def exams(maze: Maze, physics: Physics, senses: Senses, keys: Tensor) -> dict[str, DynamicsTest]:
    """Mazes and keys [N] -> pushes against a "wall" and through what is "open"."""
    uniform, _ = draw(mix(keys ^ 8), 3)
    asked = choices(maze).items()
    return {name: push(maze, physics, senses, may, uniform) for name, may in asked}


def exam_keys(seed: int, device: torch.device) -> Tensor:
    """The luck [N] that exams are made of."""
    return keys_of(range(seed, seed + QUESTIONS), device)
