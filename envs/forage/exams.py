"""Questions about the border with answers from the true physics: does a push move, or not?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of, mix
from .layouts import RIM, spread
from .physics import STEP
from .states import State, advance, begin, observe, to_factors

QUESTIONS = 64
PUSHES = 5


def push(state: State, body: Tensor) -> DynamicsTest:
    """What five full steps to the right do to bodies [N, 2] in these worlds."""
    before = end = state._replace(body=body)
    actions = torch.tensor([1.0, 0.0], device=body.device).repeat(len(body), PUSHES, 1)
    for action in actions.unbind(1):
        end = advance(end, action)
    return DynamicsTest(observe(before), actions, to_factors(before), to_factors(end))


def exams(split: str, seed: int, device: torch.device) -> dict[str, DynamicsTest]:
    """Pushes at the "border", from 0.2 to 2 full steps before it, and in the "open"."""
    life = keys_of(range(seed, seed + QUESTIONS), device)
    state, (uniform, _) = begin(life, split), draw(mix(life ^ 8), 4)
    edge = torch.stack(
        [1 - STEP * spread(uniform[:, 0], (0.2, 2.0)), spread(uniform[:, 1], (RIM, 1 - RIM))], -1
    )
    middle = torch.stack([spread(uniform[:, 2], (0.3, 0.6)), spread(uniform[:, 3], (0.3, 0.7))], -1)
    return {"border": push(state, edge), "open": push(state, middle)}
