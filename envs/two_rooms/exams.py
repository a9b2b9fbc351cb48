"""Questions about the wall with answers from the true physics: does a push pass, or not?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, keys_of
from .physics import Arena
from .rendering import draw_walls, observe
from .states import draw_layouts, to_factors
from .variants import Variant

QUESTIONS = 64
PUSHES = 5


def beside_door(arena: Arena, layout: Tensor, uniform: Tensor) -> Tensor:
    """Layout [N, 2], uniform [N] -> y [N] away from the door, above or below it."""
    gap = arena.half_door + arena.clearance
    start, end = arena.low + arena.clearance, arena.high - arena.clearance
    above = (layout[:, 1] - gap - start).clamp(min=0)
    below = (end - layout[:, 1] - gap).clamp(min=0)
    place = uniform * (above + below)
    return torch.where(place < above, start + place, layout[:, 1] + gap + place - above)


def in_door(arena: Arena, layout: Tensor, uniform: Tensor) -> Tensor:
    """Layout [N, 2], uniform [N] -> y [N] in the middle four fifths of the opening."""
    return layout[:, 1] + 0.8 * arena.half_door * (2 * uniform - 1)


def push(variant: Variant, layout: Tensor, position: Tensor) -> DynamicsTest:
    """What five full steps to the right do to dots [N, 2]."""
    arena, canvas = variant.arena, variant.canvas
    actions = torch.tensor([variant.motion.bound, 0.0], device=layout.device)
    actions = actions.repeat(len(layout), PUSHES, 1)
    end = position
    for action in actions.unbind(1):
        end = variant.motion.contact(arena, end, variant.motion.move(action), layout)
    return DynamicsTest(
        obs=observe(canvas, draw_walls(canvas, arena, layout), position),
        actions=actions,
        start_factors=to_factors(arena, position, layout),
        end_factors=to_factors(arena, end, layout),
    )


def exams(variant: Variant, rows: Tensor, seed: int) -> dict[str, DynamicsTest]:
    """Pushes "wall": against it; "door": through it. From 0.2 to 2 full steps before the wall."""
    uniform, _ = draw(keys_of(range(seed, seed + QUESTIONS), rows.device), 3)
    layout = draw_layouts(rows, uniform[:, 0])
    x = layout[:, 0] - variant.arena.half_wall - variant.motion.reach * (0.2 + 1.8 * uniform[:, 1])
    heights = {"wall": beside_door, "door": in_door}
    return {
        name: push(variant, layout, torch.stack([x, y(variant.arena, layout, uniform[:, 2])], -1))
        for name, y in heights.items()
    }
