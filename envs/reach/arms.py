"""What an arm is: angles, and where they put its elbow and its fingertip; and back.

Places are `(x, y)` in lengths of the stretched arm, the shoulder at the origin, y down. The
shoulder turns all the way round; the elbow's angle is 0 where the arm is stretched.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..plane import direction

LINK = 0.5  # the length of each of two links
BEND = 2.6  # radians; the elbow bends so far either way
NEAREST = 2 * LINK * math.cos(BEND / 2)  # as near as this to the shoulder comes a fingertip


class Arm(NamedTuple):
    """Arms of B worlds, as they move."""

    angle: Tensor  # [B, 2] radians, of shoulder and elbow
    pace: Tensor  # [B, 2] radians a step
    before: Tensor  # [B, 2] the angles one step earlier


def resting(angle: Tensor) -> Arm:
    """Arms at rest, angles [B, 2]."""
    return Arm(angle, torch.zeros_like(angle), angle)


def joints(angle: Tensor) -> Tensor:
    """Angles [..., 2] -> the places of elbow and fingertip, [..., 2, 2]."""
    shoulder, elbow = angle.unbind(-1)
    middle = LINK * direction(shoulder)
    return torch.stack([middle, middle + LINK * direction(shoulder + elbow)], -2)


def fingertip(angle: Tensor) -> Tensor:
    """Angles [..., 2] -> places [..., 2]."""
    return joints(angle)[..., 1, :]


def turn(angle: Tensor) -> Tensor:
    """Angles [...] -> the same, from -pi to pi."""
    return torch.atan2(angle.sin(), angle.cos())


def reaching(place: Tensor, side: Tensor) -> Tensor:
    """Places [B, 2] -> the angles [B, 2] that bring a fingertip there, or as near as the arm can;
    `side` [B], 1 or -1, is where the elbow bends to. The triangle of shoulder, elbow and place has
    two sides of equal length."""
    bend = 2 * (place.norm(dim=-1) / (2 * LINK)).clamp(max=1).acos()
    elbow = side * bend.clamp(max=BEND)
    x, y = place.unbind(-1)
    return torch.stack([turn(torch.atan2(y, x) - elbow / 2), elbow], -1)


def bent(elbow: Tensor, tip: Tensor) -> Tensor:
    """Places of elbows and fingertips [B, 2] -> the angles [B, 2] that put them there."""
    upper, lower = (torch.atan2(way[:, 1], way[:, 0]) for way in (elbow, tip - elbow))
    return torch.stack([upper, turn(lower - upper)], -1)
