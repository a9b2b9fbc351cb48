"""Somebody who walks about, to gather experience of the maze."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, von_mises
from ..plane import direction
from .experts import pursue
from .goals import pick_one
from .layouts import Maze
from .physics import Moving, Physics, cell, inside

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
REST = 0.1  # share of the stretches
STRETCH = (10, 25)  # steps
ERRAND = 6  # steps for each cell of an errand's way, and a stretch
REACHED = 0.2
SHORTEST = 0.2  # of the full action
BOUNCE = 0.2  # chance, in a step, to turn away from a wall that stops the body


class Walk(NamedTuple):
    """What somebody who walks has in mind, in each of B worlds."""

    heading: Tensor  # [B, 2] unit vectors
    target: Tensor  # [B, 2] where the errand leads
    errand: Tensor  # [B] bool: on an errand
    rest: Tensor  # [B] bool: not acting, which is coasting before it is rest
    patience: Tensor  # [B] steps until something else comes to mind
    keys: Tensor  # [B] int64


def set_out(place: Tensor, keys: Tensor) -> Walk:
    """Nothing in mind yet but a heading."""
    uniform, keys = draw(keys, 1)
    nothing = torch.zeros_like(uniform[:, 0])
    heading = direction(2 * math.pi * uniform[:, 0])
    return Walk(heading, place, nothing > 0, nothing > 0, nothing, keys)


def reconsider(walk: Walk, maze: Maze, place: Tensor, errands: float, slow: int) -> Walk:
    """Every 10 to 25 steps something else, later where bodies are slow; a tenth of the times rest,
    of the others `errands` errands to any cell, which last until one is there, or tired of it."""
    uniform, keys = draw(walk.keys, 7)
    there = walk.errand & ((walk.target - place).norm(dim=-1) < REACHED)
    renew = (walk.patience <= 0) | there
    rest = uniform[:, 0] < REST
    errand = ~rest & (uniform[:, 1] < errands)
    to = pick_one((~maze.solid).flatten(1).long(), uniform[:, 2])
    target = inside(to, maze.size, uniform[:, 3:5])
    stretch = STRETCH[0] + ((STRETCH[1] - STRETCH[0] + 1) * uniform[:, 5]).floor()
    rows = torch.arange(len(to), device=to.device)
    way = maze.far[rows, cell(place, maze.size), to]
    going = stretch + ERRAND * way * errand
    turned = direction(2 * math.pi * uniform[:, 6])
    return Walk(
        torch.where(renew[:, None], turned, walk.heading),
        torch.where(renew[:, None], target, walk.target),
        torch.where(renew, errand, walk.errand),
        torch.where(renew, rest, walk.rest),
        torch.where(renew, torch.where(rest, stretch, slow * going), walk.patience) - 1,
        keys,
    )


def drift(heading: Tensor, uniform: Tensor, slow: int) -> Tensor:
    """Headings [B, 2], uniform [B] -> headings turned a little."""
    cos, sin = direction(von_mises(uniform, slow * KAPPA)).unbind(-1)
    x, y = heading.unbind(-1)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], -1)
    return turned / turned.square().sum(-1, keepdim=True).sqrt()


def bounce(heading: Tensor, stopped: Tensor, uniform: Tensor, slow: int) -> Tensor:
    """Headings [B, 2], turned back along x, or y, where a wall has stopped a body [B, 2], now and
    then."""
    turn = stopped & (uniform[:, None] < BOUNCE / slow)
    return torch.where(turn, -heading, heading)


def stroll(
    walk: Walk, maze: Maze, physics: Physics, body: Moving, errands: float
) -> tuple[Walk, Tensor]:
    """One more step of a walk: the new state of mind, and the actions [B, 2]. A third of the
    actions are full, the rest of every strength down to a fifth."""
    slow = physics.slow
    walk = reconsider(walk, maze, body.place, errands, slow)
    uniform, keys = draw(walk.keys, 3)
    stopped = body.pace.abs() <= physics.still
    heading = drift(bounce(walk.heading, stopped, uniform[:, 2], slow), uniform[:, 0], slow)
    strength = (SHORTEST + 1.2 * uniform[:, 1:2]).clamp(max=1)
    errand = walk.errand[:, None]
    actions = torch.where(errand, pursue(maze, body, walk.target, physics.wide), heading * strength)
    return walk._replace(heading=heading, keys=keys), actions * ~walk.rest[:, None]
