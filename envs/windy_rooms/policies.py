"""The expert, which goes round the pit, and the behaviour policy, which gathers experience."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import direction, shrink_to_disk
from ..rng import uniform, von_mises
from .dynamics import STEP, Box, fraction_to

EXPERT_GAP = 0.02  # what the expert leaves between the pit and where a gust can blow it
BLOCKED = 1e3  # added to the length of a path that isn't open
NEAR_CORNER = 1e-3  # as near as this to a corner, the expert is there
ACROSS = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))  # corners with the pit between

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
IDLE = 0.1  # fraction of the behaviour policy's steps without action
MIN_STRENGTH = 0.1  # of the full action


class BehaviourState(NamedTuple):
    """What the behaviour policy does in B environments."""

    heading: Tensor  # [B] radians
    keys: Tensor  # [B] int64


def zone_around(pit: Box, goal: Tensor, gap: float) -> Box:
    """The pit with a gap around it, which is smaller where a goal [B, 2] is nearer."""
    to_goal = torch.maximum(pit.low - goal, goal - pit.high).amax(-1, keepdim=True)
    return pit.expanded(to_goal.clamp(0, gap))


def next_corner(zone: Box, position: Tensor, goal: Tensor) -> Tensor:
    """Positions and goals [B, 2] -> the first corner of the zone on the shortest path round it,
    [B, 2]."""
    (left, top), (right, bottom) = zone.low.unbind(-1), zone.high.unbind(-1)
    corners = torch.stack([left, top, left, bottom, right, top, right, bottom], -1)
    corners = corners.unflatten(-1, (4, 2))
    core = Box(*(side[:, None] for side in zone.expanded(-NEAR_CORNER)))
    here, there = position[:, None], goal[:, None]
    outside = ((corners < 0) | (corners > 1)).any(-1)  # the pass beside it is too narrow
    hidden = (fraction_to(core, corners, there) < 1) | outside
    to_goal = (corners - there).norm(dim=-1) + BLOCKED * hidden
    between_corners = torch.cdist(corners, corners) + BLOCKED * to_goal.new_tensor(ACROSS)
    to_corner = (corners - here).norm(dim=-1)
    unusable = (fraction_to(core, here, corners) < 1) | (to_corner < NEAR_CORNER)
    path = to_corner + BLOCKED * unusable + (between_corners + to_goal[:, None]).amin(-1)
    return corners[torch.arange(len(position), device=position.device), path.argmin(-1)]


def nearest_border(zone: Box, position: Tensor) -> Tensor:
    """Positions [B, 2] inside the zone -> the nearest ones [B, 2] on its border, in the arena."""
    border = torch.cat([zone.low, zone.high], -1)  # [B, 4]
    move = border - position.repeat(1, 2)
    nearest = (move.abs() + BLOCKED * ((border < 0) | (border > 1))).argmin(-1, keepdim=True)
    step = torch.zeros_like(move).scatter(-1, nearest, move.gather(-1, nearest))
    return position + step[:, :2] + step[:, 2:]


def expert_action(pit: Box, position: Tensor, goal: Tensor, gap: float) -> Tensor:
    """Positions and goals [B, 2] -> actions [B, 2] of the shorter path round the pit that keeps
    this gap to it."""
    zone = zone_around(pit, goal, gap)
    core = zone.expanded(-NEAR_CORNER)
    straight = fraction_to(core, position, goal) >= 1
    target = torch.where(straight[:, None], goal, next_corner(zone, position, goal))
    target = torch.where(core.contains(position)[:, None], nearest_border(zone, position), target)
    return shrink_to_disk((target - position) / STEP, 1.0)


def init_behaviour(keys: Tensor) -> BehaviourState:
    """The behaviour policy as an episode begins, with a heading."""
    u, keys = uniform(keys, 1)
    return BehaviourState(2 * math.pi * u[:, 0], keys)


def behaviour_step(behaviour: BehaviourState) -> tuple[BehaviourState, Tensor]:
    """The behaviour policy one step on, and its actions [B, 2]: its heading drifts, and it takes no
    notice of the pit. A third of the actions are full, the others have any strength down to a
    tenth, and some are zero."""
    u, keys = uniform(behaviour.keys, 3)
    heading = behaviour.heading + von_mises(u[:, 0], KAPPA)
    strength = (MIN_STRENGTH + 1.35 * u[:, 1:2]).clamp(max=1) * (u[:, 2:] >= IDLE)
    return BehaviourState(heading, keys), strength * direction(heading)
