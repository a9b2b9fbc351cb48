"""Somebody who walks about, to gather experience of the floor, the wind and the pit."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ..chance import draw, von_mises
from ..plane import direction

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
REST = 0.1  # share of the steps
SHORTEST = 0.1  # of the full action


class Walk(NamedTuple):
    """What somebody who walks has in mind, in each of B worlds."""

    heading: Tensor  # [B] radians
    keys: Tensor  # [B] int64


def set_out(keys: Tensor) -> Walk:
    """Nothing in mind yet but a heading."""
    uniform, keys = draw(keys, 1)
    return Walk(2 * math.pi * uniform[:, 0], keys)


def stroll(walk: Walk) -> tuple[Walk, Tensor]:
    """One more step of a walk: the new state of mind, and the actions [B, 2]. A third of them are
    full, the rest of every strength down to a tenth; some are none at all."""
    uniform, keys = draw(walk.keys, 3)
    heading = walk.heading + von_mises(uniform[:, 0], KAPPA)
    strength = (SHORTEST + 1.35 * uniform[:, 1:2]).clamp(max=1) * (uniform[:, 2:] >= REST)
    return Walk(heading, keys), strength * direction(heading)
