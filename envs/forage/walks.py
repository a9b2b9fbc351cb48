"""Somebody who walks about, to gather experience of everything there is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, von_mises
from ..plane import direction
from .physics import FOODS, STEP, Layout, distance, towards

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
REST = 0.1  # share of the stretches
STRETCH = (10, 25)  # steps
LINGER = 3  # steps at most, where an errand led
REACHED = 0.02
SHORTEST = 0.1  # of the full step
OUTSIDE = 0.6  # how far beyond the borders an errand may lead


class Walk(NamedTuple):
    """What somebody who walks has in mind, in each of B worlds."""

    heading: Tensor  # [B, 2] unit vectors
    target: Tensor  # [B, 2] where the errand leads
    errand: Tensor  # [B] bool: on an errand
    rest: Tensor  # [B] bool: at rest
    patience: Tensor  # [B] steps until something else comes to mind
    keys: Tensor  # [B] int64


def set_out(body: Tensor, keys: Tensor) -> Walk:
    """Nothing in mind yet but a heading."""
    uniform, keys = draw(keys, 1)
    nothing = torch.zeros_like(uniform[:, 0])
    heading = direction(2 * math.pi * uniform[:, 0])
    return Walk(heading, body, nothing > 0, nothing > 0, nothing, keys)


def beyond(uniform: Tensor) -> Tensor:
    """Uniform [B, 2] -> places [B, 2], inside and outside: who goes there learns what a border
    is."""
    return uniform * (1 + 2 * OUTSIDE) - OUTSIDE


def somewhere(layout: Layout, uniform: Tensor) -> Tensor:
    """Uniform [B, 4] -> [B, 2]: the flag, the hazard or any place, and a food twice as often."""
    rows = torch.arange(len(uniform), device=uniform.device)
    food = layout.food[rows, (FOODS * uniform[:, 0]).long()]
    places = torch.stack([food, food, layout.flag, layout.hazard, beyond(uniform[:, 2:])], 1)
    return places[rows, (5 * uniform[:, 1]).long()]


def reconsider(walk: Walk, body: Tensor, layout: Layout, errands: float) -> Walk:
    """Every 10 to 25 steps something else; a tenth of it rest, of the others `errands` errands."""
    uniform, keys = draw(walk.keys, 8)
    there = walk.errand & (distance(walk.target, body) < REACHED)
    linger = ((LINGER + 1) * uniform[:, 0]).floor()
    patience = torch.where(there, torch.minimum(walk.patience, linger), walk.patience)
    renew = patience <= 0
    rest = uniform[:, 1] < REST
    errand = ~rest & (uniform[:, 2] < errands)
    stretch = STRETCH[0] + ((STRETCH[1] - STRETCH[0] + 1) * uniform[:, 3]).floor()
    target = somewhere(layout, uniform[:, 4:])
    return Walk(
        walk.heading,
        torch.where(renew[:, None], target, walk.target),
        torch.where(renew, errand, walk.errand),
        torch.where(renew, rest, walk.rest),
        torch.where(renew, stretch, patience) - 1,
        keys,
    )


def drift(heading: Tensor, uniform: Tensor) -> Tensor:
    """Headings [B, 2], uniform [B] -> headings turned a little."""
    cos, sin = direction(von_mises(uniform, KAPPA)).unbind(-1)
    x, y = heading.unbind(-1)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], -1)
    return turned / turned.square().sum(-1, keepdim=True).sqrt()


def stroll(walk: Walk, body: Tensor, layout: Layout, errands: float) -> tuple[Walk, Tensor]:
    """One more step of a walk: the new state of mind, and the actions [B, 2]. A third of the steps
    are full, the rest of every length down to a tenth."""
    walk = reconsider(walk, body, layout, errands)
    uniform, keys = draw(walk.keys, 2)
    heading = drift(walk.heading, uniform[:, 0])
    length = (SHORTEST + 1.35 * uniform[:, 1:]).clamp(max=1)
    ahead = torch.where(walk.errand[:, None], walk.target - body, STEP * heading)
    actions = towards(ahead) * length
    return walk._replace(heading=heading, keys=keys), actions * ~walk.rest[:, None]
