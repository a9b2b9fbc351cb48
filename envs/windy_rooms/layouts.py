"""Where the pit is, and where episodes begin and should lead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..chance import draw, keys_of, mix
from .physics import Box

BOUNDS = ((0.16, 0.24), (0.40, 0.50), (0.47, 0.53), (0.44, 0.56))
"""Of a pit's width and height, and of its centre's x and y: every pass is at least 0.19 wide."""
RIM = 0.05  # from starts and goals to the walls
START_GAP, GOAL_GAP = 0.05, 0.12  # from them to the pit

Starts: TypeAlias = Callable[[Box], tuple[Box, Tensor]]
"""The pit -> boxes `[K]` to start in, and how often in each, `[K]`."""


def spread(box: Box, uniform: Tensor) -> Tensor:
    """Boxes [...], uniform [..., 2] -> places [..., 2] in them."""
    return box.low + uniform * (box.high - box.low)


def draw_pit(layout: int, device: torch.device) -> Box:
    """A number -> its pit."""
    uniform, _ = draw(mix(keys_of([layout], device) ^ 5), 4)
    low, high = torch.tensor(BOUNDS, device=device).unbind(-1)
    size, centre = torch.lerp(low, high, uniform[0]).split(2)
    return Box(centre - size / 2, centre + size / 2)


def rooms(pit: Box, gap: float) -> Box:
    """The left and the right room, [2], but for the rim and so much beside the pit."""
    (left, _), (right, _) = pit.low.tolist(), pit.high.tolist()
    low, high = [[RIM, RIM], [right + gap, RIM]], [[left - gap, 1 - RIM], [1 - RIM, 1 - RIM]]
    return Box(pit.low.new_tensor(low), pit.low.new_tensor(high))


def in_rooms(pit: Box) -> tuple[Box, Tensor]:
    """Left or right by chance."""
    return rooms(pit, START_GAP), pit.low.new_ones(2)


def anywhere(pit: Box) -> tuple[Box, Tensor]:
    """All that is not pit: left and right of it, above and below it."""
    (left, top), (right, bottom) = pit.low.tolist(), pit.high.tolist()
    low = pit.low.new_tensor([[0, 0], [right, 0], [left, 0], [left, bottom]])
    high = pit.low.new_tensor([[left, 1], [1, 1], [right, top], [right, 1]])
    return Box(low, high), (high - low).prod(-1)


STARTS: dict[str, Starts] = {"rooms": in_rooms, "anywhere": anywhere}


def draw_start(pit: Box, starts: Starts, uniform: Tensor) -> Tensor:
    """Uniform [B, 3] -> starts [B, 2]."""
    boxes, weight = starts(pit)
    below = weight.cumsum(0)
    which = torch.searchsorted(below, below[-1] * uniform[:, 0], right=True)
    which = which.clamp(max=len(weight) - 1)
    return spread(Box(boxes.low[which], boxes.high[which]), uniform[:, 1:])


def draw_goal(pit: Box, start: Tensor, uniform: Tensor) -> Tensor:
    """Starts [B, 2], uniform [B, 2] -> goals [B, 2] in the room on the pit's other side."""
    other = (2 * start[:, 0] < pit.low[0] + pit.high[0]).long()
    boxes = rooms(pit, GOAL_GAP)
    return spread(Box(boxes.low[other], boxes.high[other]), uniform)
