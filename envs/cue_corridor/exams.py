"""Questions about the walls with answers from the true physics: does a push pass, or not?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of
from .corridor import FORK, LEFT, LIT, RIGHT, STEP, TOP, is_lit, slide
from .rendering import observe
from .states import State, conceive

QUESTIONS = 64
PUSHES = 5
HALF_STEM = (RIGHT - LEFT) / 2
MARGIN = 1.0  # pixels kept from the top and from the fork


def before_wall(uniform: Tensor) -> Tensor:
    """Uniform [N, 2] -> places [N, 2] in the middle half of the dark stem, from 0.2 to 1.5 full
    steps before its right wall."""
    x = RIGHT - STEP * (0.2 + 1.3 * uniform[:, 0])
    y = FORK + (LIT - FORK) * (0.25 + 0.5 * uniform[:, 1])
    return torch.stack([x, y], -1)


def before_arm(uniform: Tensor) -> Tensor:
    """Uniform [N, 2] -> places [N, 2] in the left half of the junction."""
    x = LEFT + HALF_STEM * uniform[:, 0]
    y = TOP + MARGIN + (FORK - TOP - 2 * MARGIN) * uniform[:, 1]
    return torch.stack([x, y], -1)


def push(state: State, visible: bool) -> DynamicsTest:
    """What five full steps to the right do to bodies [N]."""
    actions = torch.tensor([1.0, 0.0], device=state.life.device).repeat(len(state.life), PUSHES, 1)
    end = state.position
    for action in actions.unbind(1):
        end = slide(end, STEP * action)
    return DynamicsTest(
        obs=observe(state.position, state.cue, is_lit(state.position) | visible),
        actions=actions,
        start_factors=state.factors,
        end_factors=state._replace(position=end).factors,
    )


def exams(seed: int, device: torch.device, visible: bool) -> dict[str, DynamicsTest]:
    """Pushes "wall": against the stem's wall; "open": from the junction into the right arm."""
    keys = keys_of(range(seed, seed + QUESTIONS), device)
    uniform, _ = draw(keys, 2)
    state = conceive(keys, errands=0.0)
    places = {"wall": before_wall(uniform), "open": before_arm(uniform)}
    return {name: push(state._replace(position=at), visible) for name, at in places.items()}
