"""One who knows the arm: to the angles that put the fingertip at its goal, and rest there."""

from __future__ import annotations

import torch
from torch import Tensor

from .arms import Arm, reaching, turn
from .physics import TERMINAL

STIFF = 3.0  # torque for each radian that is left
DAMPED = 1.0  # torque against each terminal speed


def nearer(angle: Tensor, goal: Tensor) -> Tensor:
    """Angles and places [B, 2] -> how far both joints have to turn [B, 2], the elbow bent to
    whichever side that is less for."""
    side = torch.ones_like(goal[:, 0])
    both = torch.stack([reaching(goal, side), reaching(goal, -side)], 1)  # [B, 2, 2]
    left = both - angle[:, None]
    left = torch.stack([turn(left[..., 0]), left[..., 1]], -1)  # an elbow can't go round
    rows = torch.arange(len(goal), device=goal.device)
    return left[rows, left.abs().amax(-1).argmin(-1)]


def bring(arm: Arm, goal: Tensor) -> Tensor:
    """Arms and goals [B, 2] -> actions [B, 2]: a spring and a damper at each joint."""
    left = nearer(arm.angle, goal)
    return (STIFF * left - DAMPED * arm.pace / TERMINAL).clamp(-1, 1)
