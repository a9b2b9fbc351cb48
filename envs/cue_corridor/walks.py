"""Somebody to move the body: one who knows the right arm, and ones who gather experience."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, truncated_normal, von_mises
from ..plane import direction
from .corridor import ARM_LEFT, ARM_RIGHT, FORK, LEFT, RIGHT, STEP, in_bar

MARGIN = 0.5  # pixels left between the way and the corner it bends around
KAPPA = 5.0  # of the heading's noise
MEAN, STD, LOW, HIGH = 0.7 * STEP, 0.4 * STEP, 0.05 * STEP, STEP  # lengths of steps


class Walk(NamedTuple):
    """What somebody who walks has in mind, in each of B worlds."""

    last: Tensor  # [B, 2] the last move asked for, in pixels
    right: Tensor  # [B] bool: the arm that the errand leads to
    errand: Tensor  # [B] bool: on an errand, or aimless
    keys: Tensor  # [B] int64


def set_out(keys: Tensor, errands: float) -> Walk:
    """With chance `errands` an errand to either arm, for the whole episode; and a heading."""
    uniform, keys = draw(keys, 3)
    heading = direction(2 * math.pi * uniform[:, 0])
    return Walk(heading, uniform[:, 1] < 0.5, uniform[:, 2] < errands, keys)


def next_waypoint(position: Tensor, right: Tensor) -> Tensor:
    """Places [B, 2], which arm [B] bool -> [B, 2]: the bend into that arm, or the arm's end."""
    side = torch.where(right, RIGHT - MARGIN, LEFT + MARGIN)
    bend = torch.stack([side, torch.full_like(side, FORK - MARGIN)], -1)
    end = torch.stack([torch.where(right, ARM_RIGHT, ARM_LEFT), position[:, 1]], -1)
    return torch.where(in_bar(position).unsqueeze(-1), end, bend)


def wander(position: Tensor, walk: Walk) -> Walk:
    """One more step: the new state of mind; its `last` [B, 2] is the move to make.

    A heading that is the errand's, or else drifts, with von Mises noise; steps of truncated normal
    length. Source of the form: PLDM, arXiv 2502.14819.
    """
    uniform, keys = draw(walk.keys, 2)
    way = next_waypoint(position, walk.right) - position
    ahead = torch.where(walk.errand.unsqueeze(-1), way, walk.last)
    heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(uniform[:, 0], KAPPA)
    length = truncated_normal(uniform[:, 1:], mean=MEAN, std=STD, low=LOW, high=HIGH)
    return walk._replace(last=direction(heading) * length, keys=keys)
