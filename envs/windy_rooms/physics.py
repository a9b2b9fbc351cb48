"""How a body moves, is blown about and falls. The world is the unit square; y grows downwards."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw
from ..plane import direction, shrink_to_disk

STEP = 0.05  # how far a full action moves the body
LONGEST_GUST = 0.15  # less than a wide pass: there none meets both wall and pit
DEPTH = 0.02  # how far inside the pit's border the fallen lie
TINY = 1e-9


class Box(NamedTuple):
    """Rectangles, their borders included."""

    low: Tensor  # [..., 2]
    high: Tensor  # [..., 2]

    def grown(self, by: Tensor | float) -> Box:
        """Wider by so much, [..., 1], on every side."""
        return Box(self.low - by, self.high + by)

    def holds(self, place: Tensor) -> Tensor:
        """Places [..., 2] -> [...] bool."""
        return ((place >= self.low) & (place <= self.high)).all(-1)


class Wind(NamedTuple):
    """Gusts of any direction, so that on average nothing happens."""

    chance: float  # in a step
    length: float

    def blow(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B] -> how far a step's gusts throw bodies, [B, 2], and the keys of the next."""
        uniform, keys = draw(keys, 2)
        blows = uniform[:, :1] < self.chance
        return self.length * direction(2 * math.pi * uniform[:, 1]) * blows, keys


def share_to(box: Box, start: Tensor, end: Tensor) -> Tensor:
    """The share of the ways from [..., 2] to [..., 2] that lies before the box; 1 where it never
    comes to one, [...]."""
    way = end - start
    pace = torch.where(way.abs() < TINY, TINY, way)
    one, other = (box.low - start) / pace, (box.high - start) / pace
    enter = torch.minimum(one, other).amax(-1)
    leave = torch.maximum(one, other).amin(-1)
    hit = (enter < leave) & (leave > 0) & (enter < 1)
    return torch.where(hit, enter.clamp(min=0), 1.0)


def moved(pit: Box, body: Tensor, move: Tensor) -> Tensor:
    """Bodies and moves [B, 2] -> bodies; walls stop them, the pit swallows whoever crosses its
    border, and nobody is moved out of it. Where a wall stops a move, its whole way is taken to lead
    straight to where it ends."""
    end = (body + move).clamp(0, 1)
    share = share_to(pit, body, end)
    inside = pit.grown(-DEPTH)
    entered = torch.lerp(body, end, share[:, None]).clamp(inside.low, inside.high)
    falls = (share < 1) | pit.holds(end)
    end = torch.where(falls[:, None], entered, end)
    return torch.where(pit.holds(body)[:, None], body, end)


def stepped(pit: Box, body: Tensor, actions: Tensor, wade: float = 0.0) -> Tensor:
    """Bodies and actions [B, 2] -> bodies one step later, in calm weather. Who is in the pit moves
    by `wade` of a step, and may come out."""
    move = STEP * shrink_to_disk(actions, 1.0)
    waded = (body + wade * move).clamp(0, 1)
    return torch.where(pit.holds(body)[:, None], waded, moved(pit, body, move))
