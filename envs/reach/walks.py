"""Somebody who moves an arm about, to gather experience of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw

REST = 0.25  # share of the stretches; shorter ones it coasts, longer ones it comes to rest
STRETCH = (3, 12)  # steps
SHARPNESS = 1.5  # above 1, torques are full now and then


class Walk(NamedTuple):
    """What somebody who moves has in mind, in each of B worlds."""

    torque: Tensor  # [B, 2]
    patience: Tensor  # [B] steps until something else comes to mind
    keys: Tensor  # [B] int64


def set_out(keys: Tensor) -> Walk:
    """Nothing in mind yet."""
    nothing = torch.zeros(len(keys), 2, device=keys.device)
    return Walk(nothing, nothing[:, 0], keys)


def stroll(walk: Walk) -> tuple[Walk, Tensor]:
    """One more step: the new state of mind, and the actions [B, 2]. Every 3 to 12 steps another
    torque for each joint, a third of them full; a quarter of the time there is none at all."""
    uniform, keys = draw(walk.keys, 4)
    torque = (SHARPNESS * (2 * uniform[:, :2] - 1)).clamp(-1, 1)
    torque = torque * (uniform[:, 2:3] >= REST)
    stretch = STRETCH[0] + ((STRETCH[1] - STRETCH[0] + 1) * uniform[:, 3]).floor()
    renew = walk.patience <= 0
    torque = torch.where(renew[:, None], torque, walk.torque)
    return Walk(torque, torch.where(renew, stretch, walk.patience) - 1, keys), torque
