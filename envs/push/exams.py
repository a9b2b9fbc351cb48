"""Questions with answers from the true physics: what does a push do in the open, and to the
block?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of, mix
from .physics import Table
from .senses import Numbers, Sight
from .states import to_factors
from .things import TOUCH, Things, resting

QUESTIONS = 64
PUSHES = 5
BLOCKS = (0.3, 0.6)  # where blocks are, in both directions
OPEN = 0.15  # so much further down a hand passes by


def push(table: Table, senses: Sight | Numbers, start: Things) -> DynamicsTest:
    """What five full steps to the right do to things at rest."""
    end = start
    actions = start.place.new_tensor([1.0, 0.0]).repeat(len(start.place), PUSHES, 1)
    for action in actions.unbind(1):
        end = table(end, action)
    return DynamicsTest(senses.sense(start), actions, to_factors(start), to_factors(end))


def exams(
    table: Table, senses: Sight | Numbers, seed: int, device: torch.device
) -> dict[str, DynamicsTest]:
    """Full steps to the right of a hand that is beside the "block", straight against it, and of
    one that passes by in the "open"."""
    uniform, _ = draw(mix(keys_of(range(seed, seed + QUESTIONS), device) ^ 8), 2)
    low, high = BLOCKS
    block = low + (high - low) * uniform
    beside = block - uniform.new_tensor([TOUCH, 0.0])
    past = beside + uniform.new_tensor([0.0, OPEN])
    hands: dict[str, Tensor] = {"block": beside, "open": past}
    return {name: push(table, senses, resting(hand, block)) for name, hand in hands.items()}
