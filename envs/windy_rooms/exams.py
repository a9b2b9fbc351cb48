"""Questions with answers from the true physics, in calm weather: where do steps lead?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of
from .layouts import RIM, spread
from .physics import STEP, Box, stepped
from .senses import Senses

QUESTIONS = 64
PUSHES = 5
GAPS = (0.01, 0.05)  # between the pit and who walks along it


def push(pit: Box, senses: Senses, halfway: Tensor) -> DynamicsTest:
    """What five full steps to the right do to bodies that should come through [N, 2] halfway."""
    actions = halfway.new_tensor([1.0, 0.0]).repeat(len(halfway), PUSHES, 1)
    before = after = halfway - PUSHES / 2 * STEP * actions[:, 0]
    for action in actions.unbind(1):
        after = stepped(pit, after, action)
    return DynamicsTest(senses.sense(before), actions, before, after)


def exams(pit: Box, senses: Senses, seed: int) -> dict[str, DynamicsTest]:
    """Pushes in the "open" middle of a room, and at the "edge", along an end of the pit and
    beyond it."""
    uniform, _ = draw(keys_of(range(seed, seed + QUESTIONS), pit.low.device), 3)
    far = uniform[:, 0] < 0.5  # right, and below
    room = torch.where(far, (1 + pit.high[0]) / 2, pit.low[0] / 2)
    gap = spread(Box(*uniform.new_tensor(GAPS)), uniform[:, 1])
    end = torch.where(far, pit.high[1] + gap, pit.low[1] - gap)
    height = spread(Box(*uniform.new_tensor((RIM, 1 - RIM))), uniform[:, 2])
    middle = ((pit.low[0] + pit.high[0]) / 2).expand_as(end)
    return {
        "open": push(pit, senses, torch.stack([room, height], -1)),
        "edge": push(pit, senses, torch.stack([middle, end], -1)),
    }
