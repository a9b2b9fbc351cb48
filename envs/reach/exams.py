"""Questions with answers from the true physics: what does each joint do to the fingertip?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of, mix
from .arms import fingertip, joints, resting
from .physics import Arms
from .senses import Numbers, Sight
from .states import draw_angles, to_factors

QUESTIONS = 64
PUSHES = 5


def push(arms: Arms, senses: Sight | Numbers, angle: Tensor, action: Tensor) -> DynamicsTest:
    """What five times an action [N, 2] does to resting arms [N, 2]."""
    arm = end = resting(angle)
    for _ in range(PUSHES):
        end = arms(end, action)
    actions = action[:, None].repeat(1, PUSHES, 1)
    return DynamicsTest(senses.sense(arm), actions, to_factors(arm), to_factors(end))


def exams(
    arms: Arms, senses: Sight | Numbers, seed: int, device: torch.device
) -> dict[str, DynamicsTest]:
    """A full torque on one joint alone, the "shoulder" or the "elbow", to the side that takes the
    fingertip to the right."""
    uniform, _ = draw(mix(keys_of(range(seed, seed + QUESTIONS), device) ^ 8), 2)
    angle = draw_angles(uniform)
    below = fingertip(angle)[:, 1]  # what is below a joint goes left as the joint's angle grows
    heights = {"shoulder": below, "elbow": below - joints(angle)[:, 0, 1]}
    asked = {}
    for i, (name, height) in enumerate(heights.items()):
        action = torch.zeros_like(angle)
        action[:, i] = torch.where(height > 0, -1.0, 1.0)
        asked[name] = push(arms, senses, angle, action)
    return asked
