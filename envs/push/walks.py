"""Somebody who plays about with the block, to gather experience of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw
from ..plane import direction, shrink_to_disk
from .things import TOUCH, Things

STRETCH = (4, 14)  # steps
SHARPNESS = 1.5  # above 1, forces are full now and then
BEYOND = (0.5, 3.0)  # how far from the block errands lead, in lengths of a touch
NEAR = 0.08  # from an errand's end, where a hand slows down


class Walk(NamedTuple):
    """What somebody who plays has in mind, in each of B worlds."""

    force: Tensor  # [B, 2] where there is no errand
    place: Tensor  # [B, 2] where the errand leads
    errand: Tensor  # [B] bool
    patience: Tensor  # [B] steps until something else comes to mind
    keys: Tensor  # [B] int64


def set_out(keys: Tensor) -> Walk:
    """Nothing in mind yet."""
    nothing = torch.zeros(len(keys), 2, device=keys.device)
    return Walk(nothing, nothing, nothing[:, 0] > 0, nothing[:, 0], keys)


def stroll(walk: Walk, things: Things, errands: float) -> tuple[Walk, Tensor]:
    """One more step: the new state of mind, and the actions [B, 2]. Every 4 to 14 steps another
    force, or, a share of the times, an errand to a place round the block: by the straight way, so
    that many of them lead through it."""
    uniform, keys = draw(walk.keys, 6)
    force = (SHARPNESS * (2 * uniform[:, :2] - 1)).clamp(-1, 1)
    far = TOUCH * (BEYOND[0] + (BEYOND[1] - BEYOND[0]) * uniform[:, 2:3])
    place = things.block + far * direction(2 * math.pi * uniform[:, 3])
    stretch = STRETCH[0] + ((STRETCH[1] - STRETCH[0] + 1) * uniform[:, 4]).floor()
    errand = uniform[:, 5] < errands
    renew = walk.patience <= 0
    walk = Walk(
        force=torch.where(renew[:, None], force, walk.force),
        place=torch.where(renew[:, None], place, walk.place),
        errand=torch.where(renew, errand, walk.errand),
        patience=torch.where(renew, stretch, walk.patience) - 1,
        keys=keys,
    )
    there = shrink_to_disk((walk.place - things.hand) / NEAR, 1.0)
    return walk, torch.where(walk.errand[:, None], there, walk.force)
