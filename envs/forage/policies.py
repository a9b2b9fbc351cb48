"""An expert for each task, and the behaviour policy, which gathers experience."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..base import pick
from ..geometry import direction, rotate
from ..rng import integers, uniform, von_mises
from .dynamics import (
    GRID,
    NUM_FOODS,
    REGROWTH,
    STEP,
    BehaviourState,
    Layout,
    State,
    distance,
    to_action,
)

HAZARD_MARGIN = 0.02  # between the hazard's edge and the path round it
BLOCKED = 10.0  # added to the length of a path that leaves the arena
MEAL_STEPS = 2.0  # that a meal takes

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
IDLE = 0.1  # fraction of the segments
SEGMENT_STEPS = (10, 25)
LINGER = 3  # steps at most that a directed policy stays at its target
AT_TARGET = 0.02
MIN_STRENGTH = 0.1  # of the full step
OUTSIDE = 0.6  # how far beyond the borders a target may lie


def expert_eat(state: State) -> Tensor:
    """Actions [B, 2] to the food that will have grown most for the steps it takes to get there;
    through the hazard too."""
    food, here = state.layout.food, state.position[:, None]
    travel = distance(food, here) / STEP
    growth = (state.growth + travel / REGROWTH).clamp(max=1)
    best = (growth / (travel + MEAL_STEPS)).argmax(-1)
    return to_action(pick(food, best) - state.position)


def expert_flag(state: State) -> Tensor:
    """Actions [B, 2] of the shortest path to the flag that keeps clear of the hazard: straight
    where it can be, else along the tangent on the better side."""
    layout, position = state.layout, state.position
    path, radius = layout.flag - position, layout.radius + HAZARD_MARGIN
    straight = is_clear(position, path, layout.hazard, layout.radius + HAZARD_MARGIN / 2)
    side = torch.where(detour(state, 1) <= detour(state, -1), 1.0, -1.0)
    inward = layout.hazard - position
    to_centre = inward.square().sum(-1).sqrt().clamp(min=1e-6)
    sin = (radius / to_centre).clamp(max=1)
    cos = (1 - sin.square()).sqrt()
    x, y = (inward / to_centre[:, None]).unbind(-1)
    # The direction to the centre, turned away from it until the path only touches the disk.
    along = torch.stack([x * cos + side * y * sin, y * cos - side * x * sin], -1)
    return to_action(torch.where(straight[:, None], path, STEP * along))


def is_clear(position: Tensor, path: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """[B] bool: the straight path [B, 2] from the position stays out of the disk."""
    length = path.square().sum(-1).clamp(min=1e-12)
    along = (((centre - position) * path).sum(-1) / length).clamp(0, 1)
    return distance(position + along[:, None] * path, centre) >= radius


def detour(state: State, side: int) -> Tensor:
    """The length [B] of the path to the flag round this side of the hazard (1: the angle about its
    centre grows); long, where the path would leave the arena."""
    layout = state.layout
    radius = layout.radius + HAZARD_MARGIN
    here, there = state.position - layout.hazard, layout.flag - layout.hazard
    angle = torch.atan2(here[:, 1], here[:, 0])
    turn = (side * (torch.atan2(there[:, 1], there[:, 0]) - angle)) % (2 * math.pi)
    first, to_disk = tangent(here, radius)
    last, from_disk = tangent(there, radius)
    arc = (turn - first - last).clamp(min=0)
    fraction = torch.linspace(0, 1, 9, device=arc.device)
    bend = angle[:, None] + side * (first[:, None] + arc[:, None] * fraction)  # [B, 9]
    points = direction(bend) * radius[:, None, None] + layout.hazard[:, None]
    blocked = ((points < 0) | (points > 1)).flatten(1).any(-1)
    return to_disk + from_disk + radius * arc + BLOCKED * blocked


def tangent(position: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, 2] about the centre of a disk [B] -> the angle [B] at the centre to where the
    tangent touches, and the tangent's length [B]."""
    to_centre = position.square().sum(-1).sqrt()
    angle = torch.acos((radius / to_centre.clamp(min=1e-6)).clamp(max=1))
    return angle, (to_centre.square() - radius.square()).clamp(min=0).sqrt()


@lru_cache
def lanes(device: torch.device) -> Tensor:
    """From each corner (left top, right top, left bottom, right bottom) up and down the columns:
    the cells in order, [4, 36]."""
    row = torch.arange(GRID, device=device)
    order = torch.stack([row * GRID + c for c in range(GRID)])  # [column, 6]
    order[1::2] = order[1::2].flip(-1)
    cells = order.flatten()
    across = cells // GRID * GRID + GRID - 1 - cells % GRID
    down = (GRID - 1 - cells // GRID) * GRID + cells % GRID
    both = (GRID - 1 - across // GRID) * GRID + across % GRID
    return torch.stack([cells, across, down, both])


def expert_explore(state: State) -> Tensor:
    """Actions [B, 2] to the first cell not yet visited, lane by lane from the corner nearest the
    start; none when all are visited."""
    corner = (state.layout.start > 0.5).long()
    order = lanes(state.position.device)[corner[:, 0] + 2 * corner[:, 1]]  # [B, 36]
    left = ~state.record.visited.gather(1, order)
    following = order.gather(1, left.long().argmax(-1, keepdim=True))  # [B, 1]
    centre = torch.cat([following % GRID, following // GRID], -1) + 0.5
    return to_action(centre / GRID - state.position) * left.any(-1, keepdim=True)


EXPERTS: dict[str, Callable[[State], Tensor]] = {
    "eat": expert_eat,
    "flag": expert_flag,
    "explore": expert_explore,
    "stay": lambda state: torch.zeros_like(state.position),
}


def init_behaviour(position: Tensor, keys: Tensor) -> BehaviourState:
    """The behaviour policy as an episode begins, with a heading."""
    u, keys = uniform(keys, 1)
    zero = torch.zeros_like(u[:, 0])
    heading = direction(2 * math.pi * u[:, 0])
    return BehaviourState(heading, position, zero > 0, zero > 0, zero, keys)


def sample_target(layout: Layout, u: Tensor) -> Tensor:
    """Uniform [B, 4] -> [B, 2]: the flag, the hazard or any position, and a food twice as often.
    Some positions are outside, so that the policy meets borders."""
    food = pick(layout.food, (NUM_FOODS * u[:, 0]).long())
    anywhere = u[:, 2:] * (1 + 2 * OUTSIDE) - OUTSIDE
    targets = torch.stack([food, food, layout.flag, layout.hazard, anywhere], 1)
    return pick(targets, (5 * u[:, 1]).long())


def resample(
    behaviour: BehaviourState, position: Tensor, layout: Layout, directed_fraction: float
) -> BehaviourState:
    """Every 10 to 25 steps the policy is resampled: idle in a tenth of the segments, directed in
    `directed_fraction` of the others, else drifting."""
    u, keys = uniform(behaviour.keys, 8)
    arrived = behaviour.directed & (distance(behaviour.target, position) < AT_TARGET)
    linger = ((LINGER + 1) * u[:, 0]).floor()
    left = behaviour.steps_left
    left = torch.where(arrived, torch.minimum(left, linger), left)
    renew = left <= 0
    idle = u[:, 1] < IDLE
    directed = ~idle & (u[:, 2] < directed_fraction)
    target = sample_target(layout, u[:, 4:])
    return BehaviourState(
        heading=behaviour.heading,
        target=torch.where(renew[:, None], target, behaviour.target),
        directed=torch.where(renew, directed, behaviour.directed),
        idle=torch.where(renew, idle, behaviour.idle),
        steps_left=torch.where(renew, integers(u[:, 3], SEGMENT_STEPS), left) - 1,
        keys=keys,
    )


def behaviour_step(
    behaviour: BehaviourState, position: Tensor, layout: Layout, directed_fraction: float
) -> tuple[BehaviourState, Tensor]:
    """The behaviour policy one step on, and its actions [B, 2]. A third of the steps are full, the
    others have any length down to a tenth."""
    behaviour = resample(behaviour, position, layout, directed_fraction)
    u, keys = uniform(behaviour.keys, 2)
    heading = rotate(behaviour.heading, von_mises(u[:, 0], KAPPA))
    strength = (MIN_STRENGTH + 1.35 * u[:, 1:]).clamp(max=1)
    directed = behaviour.directed[:, None]
    ahead = torch.where(directed, behaviour.target - position, STEP * heading)
    actions = to_action(ahead) * strength * ~behaviour.idle[:, None]
    return behaviour._replace(heading=heading, keys=keys), actions
