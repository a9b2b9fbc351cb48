"""Where things are, drawn anew for every episode from its world's own luck.

Constraints hold by construction where they must, and else by taking the first of a fixed number of
candidates that meets them, or the one that misses them by least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..chance import draw, mix
from .physics import FOODS, Layout, distance

RIM = 0.05  # that everything but the hazard keeps from the borders
JOURNEY = 0.6  # least distance from start to flag
RADIUS = (0.14, 0.20)  # of the hazard; 0.4 of the journey is 0.04 more than the largest
SHARE = (0.4, 0.6)  # of the straight way from start to flag, where the hazard lies
APART = 0.15  # between foods
FROM_HAZARD = 0.05
FROM_FLAG = 0.1
CANDIDATES = 24

SPLITS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda life: life,
    "train": lambda life: life & ~1,
    "test": lambda life: life | 1,
}
"""A layout's luck [B] is an even number in "train" and an odd one in "test": no two are shared."""


def spread(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Uniform [...] in [0, 1) -> numbers [...] between the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def chosen(candidates: Tensor, clearance: Tensor) -> Tensor:
    """Candidates [B, K, ...], how well each meets the rules [B, K] -> the first that does, or the
    one that misses by least, [B, ...]."""
    best = clearance.clamp(max=0).argmax(-1)  # of equals, the first
    return candidates[torch.arange(len(best), device=best.device), best]


def draw_journey(uniform: Tensor) -> Tensor:
    """Uniform [B, 4 K] -> start and flag, [B, 2 places, 2], far enough apart."""
    ends = spread(uniform, (RIM, 1 - RIM)).unflatten(-1, (CANDIDATES, 2, 2))
    # The corner across is far enough from anywhere, should no candidate be.
    start = ends[:, -1:, 0]
    corner = torch.where(start < 0.5, 1 - RIM, RIM)
    ends = torch.cat([ends, torch.stack([start, corner], 2)], 1)
    return chosen(ends, distance(ends[:, :, 0], ends[:, :, 1]) - JOURNEY)


def draw_hazard(uniform: Tensor, start: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform [B, 3], ends [B, 2] -> centre [B, 2] and radius [B], across the straight way."""
    radius = spread(uniform[:, 0], RADIUS)
    way = flag - start
    ahead = way / distance(flag, start).unsqueeze(-1)
    aside = torch.stack([-ahead[:, 1], ahead[:, 0]], -1)
    offset = aside * (radius * (uniform[:, 2] - 0.5)).unsqueeze(-1)
    middle = start + way * spread(uniform[:, 1:2], SHARE)
    centre = middle + offset
    outside = ((centre < 0) | (centre > 1)).any(-1, keepdim=True)
    return torch.where(outside, middle - offset, centre), radius


def draw_food(uniform: Tensor, flag: Tensor, hazard: Tensor, radius: Tensor) -> Tensor:
    """Uniform [B, 4 K] -> places [B, 2, 2], each chosen with regard to those before it."""
    places = spread(uniform, (RIM, 1 - RIM)).unflatten(-1, (FOODS, CANDIDATES, 2))
    around = torch.stack([flag, hazard], 1)  # [B, n, 2] what to keep away from, and how far
    reach = torch.stack([torch.full_like(radius, FROM_FLAG), radius + FROM_HAZARD], 1)
    for candidates in places.unbind(1):
        gap = distance(candidates[:, :, None], around[:, None]) - reach[:, None]
        place = chosen(candidates, gap.amin(-1))
        around = torch.cat([around, place[:, None]], 1)
        reach = torch.cat([reach, torch.full_like(radius, APART)[:, None]], 1)
    return around[:, 2:]


def draw_layout(life: Tensor, split: str) -> Layout:
    """Keys [B] -> layouts of the split."""
    keys = mix(SPLITS[split](life))
    uniform, _ = draw(keys, 3 + 4 * CANDIDATES + 2 * FOODS * CANDIDATES)
    crossing, journey, meals = uniform.split([3, 4 * CANDIDATES, 2 * FOODS * CANDIDATES], dim=-1)
    start, flag = draw_journey(journey).unbind(1)
    hazard, radius = draw_hazard(crossing, start, flag)
    return Layout(start, flag, hazard, radius, draw_food(meals, flag, hazard, radius))
