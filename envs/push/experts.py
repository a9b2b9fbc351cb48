"""One who knows how to push: round the block to its far side, then straight on, and keep behind
it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plane import direction, shrink_to_disk
from .physics import TERMINAL
from .things import TOUCH, Things

CLEAR = 0.03  # between a hand that goes round and the block
TURN = 0.9  # radians that the next waypoint lies further round
AIM = 0.4  # radians from behind the block, within which it is pushed
STRAIGHT = 2.5  # how hard a hand keeps behind, for each radian it is off
NEAR = 0.06  # from the goal, where a push grows weaker
CLOSE = 0.01  # near enough


def push(things: Things, goal: Tensor) -> Tensor:
    """Things and the blocks' goals [B, 2] -> actions [B, 2]."""
    left = goal - things.block
    ahead = torch.atan2(left[:, 1], left[:, 0])
    off = things.hand - things.block
    astray = torch.atan2(off[:, 1], off[:, 0]) - ahead - torch.pi
    astray = torch.atan2(astray.sin(), astray.cos())  # [B] how far from behind the block
    pace = things.pace[:, :2] / TERMINAL

    turned = astray - astray.clamp(-TURN, TURN)
    waypoint = things.block - (TOUCH + CLEAR) * direction(ahead + turned)
    round_it = (waypoint - things.hand) / TERMINAL - pace

    way, aside = direction(ahead), direction(ahead + torch.pi / 2)
    length = left.norm(dim=-1)
    strength = (length / NEAR).clamp(max=1)[:, None]
    straight_on = strength * way + STRAIGHT * astray[:, None] * aside
    done = (length < CLOSE)[:, None]
    behind = (astray.abs() < AIM)[:, None]
    return shrink_to_disk(torch.where(done, -pace, torch.where(behind, straight_on, round_it)), 1.0)
