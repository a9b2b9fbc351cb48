"""Those who know the world: simple rules, each good at one task. All return actions `[B, 2]`."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .physics import REGROWTH, STEP, distance, towards
from .states import GRID, State

MARGIN = 0.02  # between the hazard's edge and the way round it
FAR = 10.0
PAUSE = 2.0  # steps that a meal takes


def rest(state: State) -> Tensor:
    return torch.zeros_like(state.body)


def graze(state: State) -> Tensor:
    """To the food that will have grown most for the steps it takes to get there; through the hazard
    too."""
    food, here = state.layout.food, state.body[:, None]
    travel = distance(food, here) / STEP
    grown = (state.growth + travel / REGROWTH).clamp(max=1)
    best = (grown / (travel + PAUSE)).argmax(-1)
    rows = torch.arange(len(best), device=best.device)
    return towards(food[rows, best] - state.body)


def round_hazard(state: State) -> Tensor:
    """The shortest way to the flag that keeps clear of the hazard: straight where it can be, else
    along the tangent on the better side."""
    layout, body = state.layout, state.body
    way, wide = layout.flag - body, layout.radius + MARGIN
    straight = clear(body, way, layout.hazard, layout.radius + MARGIN / 2)
    side = torch.where(detour(state, 1) <= detour(state, -1), 1.0, -1.0)
    inward = layout.hazard - body
    off = inward.square().sum(-1).sqrt().clamp(min=1e-6)
    sin = (wide / off).clamp(max=1)
    cos = (1 - sin.square()).sqrt()
    x, y = (inward / off[:, None]).unbind(-1)
    # The way to the centre, turned away from it until it only touches.
    tangent = torch.stack([x * cos + side * y * sin, y * cos - side * x * sin], -1)
    return towards(torch.where(straight[:, None], way, STEP * tangent))


def clear(body: Tensor, way: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """[B] bool: the straight way [B, 2] from the body stays out of the disc."""
    length = way.square().sum(-1).clamp(min=1e-12)
    share = (((centre - body) * way).sum(-1) / length).clamp(0, 1)
    return distance(body + share[:, None] * way, centre) >= radius


def detour(state: State, side: int) -> Tensor:
    """How long [B] the way to the flag is round this side of the hazard (1: the angle about its
    centre grows); far, where the arena's border is in the way."""
    layout = state.layout
    wide = layout.radius + MARGIN
    here, there = state.body - layout.hazard, layout.flag - layout.hazard
    angle = torch.atan2(here[:, 1], here[:, 0])
    turn = (side * (torch.atan2(there[:, 1], there[:, 0]) - angle)) % (2 * math.pi)
    first, reach = tangent(here, wide)
    last, onward = tangent(there, wide)
    arc = (turn - first - last).clamp(min=0)
    share = torch.linspace(0, 1, 9, device=arc.device)
    bend = angle[:, None] + side * (first[:, None] + arc[:, None] * share)  # [B, 9]
    points = torch.stack([bend.cos(), bend.sin()], -1) * wide[:, None, None]
    points = points + layout.hazard[:, None]
    blocked = ((points < 0) | (points > 1)).flatten(1).any(-1)
    return reach + onward + wide * arc + FAR * blocked


def tangent(place: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Places [B, 2] about the centre of a disc [B] -> the angle [B] at the centre to where the
    tangent touches, and the tangent's length [B]."""
    off = place.square().sum(-1).sqrt()
    angle = torch.acos((radius / off.clamp(min=1e-6)).clamp(max=1))
    return angle, (off.square() - radius.square()).clamp(min=0).sqrt()


@lru_cache
def lanes(device: torch.device) -> Tensor:
    """From each corner (left top, right top, left bottom, right bottom) up and down the columns:
    the cells in order, [4, 36]."""
    row = torch.arange(GRID, device=device)
    order = torch.stack([row * GRID + c for c in range(GRID)])  # [column, 6]
    order[1::2] = order[1::2].flip(-1)
    grid = order.flatten()
    across = grid // GRID * GRID + GRID - 1 - grid % GRID
    down = (GRID - 1 - grid // GRID) * GRID + grid % GRID
    both = (GRID - 1 - across // GRID) * GRID + across % GRID
    return torch.stack([grid, across, down, both])


def sweep(state: State) -> Tensor:
    """To the first cell not yet visited, lane by lane from the corner nearest the start; then
    rest."""
    corner = (state.layout.start > 0.5).long()
    order = lanes(state.body.device)[corner[:, 0] + 2 * corner[:, 1]]  # [B, 36]
    left = ~state.record.visited.gather(1, order)
    following = order.gather(1, left.long().argmax(-1, keepdim=True))  # [B, 1]
    centre = torch.cat([following % GRID, following // GRID], -1) + 0.5
    return towards(centre / GRID - state.body) * left.any(-1, keepdim=True)
