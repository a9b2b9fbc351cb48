"""How the point mass moves, is blown about and falls, and where episodes begin and lead.

The arena is the unit square; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..geometry import direction, fraction_before, shrink_to_disk
from ..rng import keys_from_seeds, splitmix64, uniform

STEP = 0.05  # how far a full action moves the point mass
MAX_GUST = 0.15  # less than a wide pass, so that no gust there meets both wall and pit
FALL_DEPTH = 0.02  # how far inside the pit's border a fall ends
MARGIN = 0.05  # from starts and goals to the walls
START_GAP, GOAL_GAP = 0.05, 0.12  # from starts and goals to the pit


class Box(NamedTuple):
    """Rectangles, their borders included."""

    low: Tensor  # [..., 2]
    high: Tensor  # [..., 2]

    def expanded(self, by: Tensor | float) -> Box:
        """Larger by so much, [..., 1], on every side."""
        return Box(self.low - by, self.high + by)

    def contains(self, position: Tensor) -> Tensor:
        """Positions [..., 2] -> [...] bool."""
        return ((position >= self.low) & (position <= self.high)).all(-1)

    def sample(self, u: Tensor) -> Tensor:
        """Uniform [..., 2] -> positions [..., 2] inside."""
        return self.low + u * (self.high - self.low)

    def select(self, index: Tensor) -> Box:
        """Of boxes [K, 2], those with the indices [B]."""
        return Box(self.low[index], self.high[index])


class PitLayout(NamedTuple):
    """What passes there are beside the pit."""

    bounds: tuple[tuple[float, float], ...]
    """Of the pit's width and height, and of its centre's x and y."""
    bottom: float
    """The largest y of starts and goals."""


PIT_LAYOUTS = {
    "wide": PitLayout(((0.16, 0.24), (0.40, 0.50), (0.47, 0.53), (0.44, 0.56)), bottom=1 - MARGIN),
    "ledge": PitLayout(((0.16, 0.24), (0.24, 0.24), (0.47, 0.53), (0.17, 0.19)), bottom=0.15),
}
"""Two passes of at least 0.19; or, above, a ledge of at most 0.07 on the straight path, from which
a gust may blow the point mass, and a wide detour below."""


def fraction_to(box: Box, start: Tensor, end: Tensor) -> Tensor:
    """The fraction of the paths from [..., 2] to [..., 2] that lies before the box; 1 where they
    never enter it, [...]."""
    return fraction_before(box.low, box.high, start, end - start)


def move_and_fall(pit: Box, position: Tensor, move: Tensor) -> Tensor:
    """Positions and moves [B, 2] -> positions. Walls stop the point mass; if it crosses the pit's
    border it falls, and no move takes it out again. Where a wall stops a move, the path is taken to
    lead straight to where it ends."""
    end = (position + move).clamp(0, 1)
    fraction = fraction_to(pit, position, end)
    inside = pit.expanded(-FALL_DEPTH)
    fallen = torch.lerp(position, end, fraction[:, None]).clamp(inside.low, inside.high)
    falls = (fraction < 1) | pit.contains(end)
    end = torch.where(falls[:, None], fallen, end)
    return torch.where(pit.contains(position)[:, None], position, end)


def step_without_wind(pit: Box, position: Tensor, actions: Tensor, mobility: float = 0.0) -> Tensor:
    """Positions and actions [B, 2] -> positions one step later. In the pit a step is shorter, by
    the factor `mobility`, and may lead out."""
    move = STEP * shrink_to_disk(actions, 1.0)
    in_pit = (position + mobility * move).clamp(0, 1)
    fallen = pit.contains(position)[:, None]
    return torch.where(fallen, in_pit, move_and_fall(pit, position, move))


def sample_gusts(keys: Tensor, prob: float, length: float) -> tuple[Tensor, Tensor]:
    """Keys [B] -> the moves [B, 2] by gusts of any direction, and the keys of the next."""
    u, keys = uniform(keys, 2)
    return length * direction(2 * math.pi * u[:, 1]) * (u[:, :1] < prob), keys


def sample_pit(seed: int, device: torch.device, layout: PitLayout = PIT_LAYOUTS["wide"]) -> Box:
    """The pit of a seed."""
    u, _ = uniform(splitmix64(keys_from_seeds([seed], device) ^ 5), 4)
    low, high = torch.tensor(layout.bounds, device=device).unbind(-1)
    size, centre = torch.lerp(low, high, u[0]).split(2)
    return Box(centre - size / 2, centre + size / 2)


def rooms(pit: Box, gap: float, bottom: float) -> Box:
    """The left and the right room, [2], without a margin at the walls and a gap at the pit."""
    (left, _), (right, _) = pit.low.tolist(), pit.high.tolist()
    low = [[MARGIN, MARGIN], [right + gap, MARGIN]]
    high = [[left - gap, bottom], [1 - MARGIN, bottom]]
    return Box(pit.low.new_tensor(low), pit.low.new_tensor(high))


def start_in_rooms(pit: Box, bottom: float) -> tuple[Box, Tensor]:
    """Left or right with equal probability."""
    return rooms(pit, START_GAP, bottom), pit.low.new_ones(2)


def start_anywhere(pit: Box, _: float) -> tuple[Box, Tensor]:
    """Everywhere outside the pit: left and right of it, above and below it."""
    (left, top), (right, bottom) = pit.low.tolist(), pit.high.tolist()
    low = pit.low.new_tensor([[0, 0], [right, 0], [left, 0], [left, bottom]])
    high = pit.low.new_tensor([[left, 1], [1, 1], [right, top], [right, 1]])
    return Box(low, high), (high - low).prod(-1)


StartRegion: TypeAlias = Callable[[Box, float], tuple[Box, Tensor]]
"""The pit, and the largest y -> boxes `[K]` to start in, and the weight of each, `[K]`."""
START_REGIONS: dict[str, StartRegion] = {"rooms": start_in_rooms, "anywhere": start_anywhere}


def sample_start(pit: Box, region: StartRegion, bottom: float, u: Tensor) -> Tensor:
    """Uniform [B, 3] -> starts [B, 2]."""
    boxes, weight = region(pit, bottom)
    cumulative = weight.cumsum(0)
    which = torch.searchsorted(cumulative, cumulative[-1] * u[:, 0], right=True)
    return boxes.select(which.clamp(max=len(weight) - 1)).sample(u[:, 1:])


def sample_goal(pit: Box, start: Tensor, bottom: float, u: Tensor) -> Tensor:
    """Starts [B, 2], uniform [B, 2] -> goals [B, 2] in the room on the pit's other side."""
    other = (2 * start[:, 0] < pit.low[0] + pit.high[0]).long()
    return rooms(pit, GOAL_GAP, bottom).select(other).sample(u)
