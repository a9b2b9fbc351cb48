"""Where the pit is, and where episodes begin and should lead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..chance import draw, keys_of, mix
from .physics import Box

RIM = 0.05  # from starts and goals to the walls
START_GAP, GOAL_GAP = 0.05, 0.12  # from them to the pit


class Passes(NamedTuple):
    """What ways lead past the pit."""

    bounds: tuple[tuple[float, float], ...]
    """Of the pit's width and height, and of its centre's x and y."""
    bottom: float
    """As far down as episodes begin and should lead."""


PASSES = {
    "wide": Passes(((0.16, 0.24), (0.40, 0.50), (0.47, 0.53), (0.44, 0.56)), bottom=1 - RIM),
    "ledge": Passes(((0.16, 0.24), (0.24, 0.24), (0.47, 0.53), (0.17, 0.19)), bottom=0.15),
}
"""Two of at least 0.19; or a ledge of at most 0.07, which a gust may throw off, on the straight way
above, and a wide detour below."""

Starts: TypeAlias = Callable[[Box, float], tuple[Box, Tensor]]
"""The pit, and how far down rooms go -> boxes `[K]` to start in, and how often in each, `[K]`."""


def spread(box: Box, uniform: Tensor) -> Tensor:
    """Boxes [...], uniform [..., 2] -> places [..., 2] in them."""
    return box.low + uniform * (box.high - box.low)


def draw_pit(layout: int, device: torch.device, passes: Passes = PASSES["wide"]) -> Box:
    """A number -> its pit."""
    uniform, _ = draw(mix(keys_of([layout], device) ^ 5), 4)
    low, high = torch.tensor(passes.bounds, device=device).unbind(-1)
    size, centre = torch.lerp(low, high, uniform[0]).split(2)
    return Box(centre - size / 2, centre + size / 2)


def rooms(pit: Box, gap: float, bottom: float) -> Box:
    """The left and the right room, [2], but for the rim and so much beside the pit."""
    (left, _), (right, _) = pit.low.tolist(), pit.high.tolist()
    low, high = [[RIM, RIM], [right + gap, RIM]], [[left - gap, bottom], [1 - RIM, bottom]]
    return Box(pit.low.new_tensor(low), pit.low.new_tensor(high))


def in_rooms(pit: Box, bottom: float) -> tuple[Box, Tensor]:
    """Left or right by chance."""
    return rooms(pit, START_GAP, bottom), pit.low.new_ones(2)


def anywhere(pit: Box, _: float) -> tuple[Box, Tensor]:
    """All that is not pit: left and right of it, above and below it."""
    (left, top), (right, bottom) = pit.low.tolist(), pit.high.tolist()
    low = pit.low.new_tensor([[0, 0], [right, 0], [left, 0], [left, bottom]])
    high = pit.low.new_tensor([[left, 1], [1, 1], [right, top], [right, 1]])
    return Box(low, high), (high - low).prod(-1)


STARTS: dict[str, Starts] = {"rooms": in_rooms, "anywhere": anywhere}


def draw_start(pit: Box, starts: Starts, bottom: float, uniform: Tensor) -> Tensor:
    """Uniform [B, 3] -> starts [B, 2]."""
    boxes, weight = starts(pit, bottom)
    below = weight.cumsum(0)
    which = torch.searchsorted(below, below[-1] * uniform[:, 0], right=True)
    which = which.clamp(max=len(weight) - 1)
    return spread(Box(boxes.low[which], boxes.high[which]), uniform[:, 1:])


def draw_goal(pit: Box, start: Tensor, bottom: float, uniform: Tensor) -> Tensor:
    """Starts [B, 2], uniform [B, 2] -> goals [B, 2] in the room on the pit's other side."""
    other = (2 * start[:, 0] < pit.low[0] + pit.high[0]).long()
    boxes = rooms(pit, GOAL_GAP, bottom)
    return spread(Box(boxes.low[other], boxes.high[other]), uniform)
