"""Where an episode begins and where it should lead: pairs of cells so far apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .layouts import Maze

SHORT = 3  # cells to go at most

Band: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Cells of a maze's longest way `[B]` -> fewest and most cells to go `[B]`."""


def farthest(longest: Tensor) -> Tensor:
    """The longest ways [B] -> the fewest cells [B] of a long one: three fifths of it, rounded up,
    and more than a short one where it can be."""
    return torch.maximum((3 * longest + 4) // 5, longest.clamp(max=SHORT + 1))


BANDS: dict[str, Band] = {
    "any": lambda longest: (torch.ones_like(longest), longest),
    "short": lambda longest: (torch.ones_like(longest), torch.full_like(longest, SHORT)),
    "medium": lambda longest: (torch.full_like(longest, SHORT + 1), farthest(longest) - 1),
    "long": lambda longest: (farthest(longest), longest),
}


def missed(maze: Maze, band: Band) -> Tensor:
    """By how many cells the way from each cell to each misses the band, [B, N, N]; by thousands
    where there is none."""
    low, high = (bound[:, None, None] for bound in band(maze.longest))
    return torch.maximum(low - maze.far, maze.far - high).clamp(min=0)


def pick_one(weight: Tensor, uniform: Tensor) -> Tensor:
    """Weights [B, N], whole numbers, and uniform [B] -> one of N, [B]."""
    below = weight.cumsum(-1)
    place = (uniform * below[:, -1]).floor().long()
    return torch.searchsorted(below, place[:, None], right=True).squeeze(-1)


def draw_start(off: Tensor, uniform: Tensor) -> Tensor:
    """What pairs miss [B, N, N], uniform [B] -> a cell [B]: the more goals in the band a cell has,
    the more often. Where the band is empty, the pairs that miss it by least are in it."""
    return pick_one((off == off.amin((1, 2), keepdim=True)).sum(-1), uniform)


def draw_goal(off: Tensor, start: Tensor, uniform: Tensor) -> Tensor:
    """What pairs miss [B, N, N], starts [B], uniform [B] -> a cell [B] in the band, or of those
    that miss it by least."""
    mine = off[torch.arange(len(off), device=off.device), start]
    return pick_one((mine == mine.amin(-1, keepdim=True)).long(), uniform)
