"""How a body moves, eats, tires and hurts. The world is the unit square; y grows downwards."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..plane import shrink_to_disk

STEP = 0.05  # how far a full action moves the body
FOODS = 2
MOUTH = 0.12  # how far a mouth reaches
MEAL = 0.4  # energy in a ripe food
DRAIN = 0.02  # energy that a step costs
REGROWTH = 40  # steps from nothing to ripe


class Layout(NamedTuple):
    """Where everything is in B worlds that stays where it is."""

    start: Tensor  # [B, 2] where the body begins
    flag: Tensor  # [B, 2]
    hazard: Tensor  # [B, 2] its centre
    radius: Tensor  # [B] the hazard's
    food: Tensor  # [B, 2, 2]


def distance(here: Tensor, there: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [...]."""
    return (here - there).square().sum(-1).sqrt()


def towards(way: Tensor) -> Tensor:
    """Ways to go [..., 2] -> the longest actions [..., 2] along them that don't overshoot."""
    return shrink_to_disk(way / STEP, 1.0)


def moved(body: Tensor, actions: Tensor) -> Tensor:
    """Body [..., 2], actions [..., 2] -> body; at a border it slides."""
    return (body + STEP * shrink_to_disk(actions, 1.0)).clamp(0, 1)


def regrown(growth: Tensor) -> Tensor:
    """Growth [..., 2] -> growth a step later; ripe is 1."""
    return (growth + 1 / REGROWTH).clamp(max=1)


def bites(body: Tensor, growth: Tensor, food: Tensor) -> Tensor:
    """Body [..., 2], growth [..., 2], places [..., 2, 2] -> how much is eaten of each food,
    [..., 2]: of what has grown the larger a share the nearer, all of it at its very place."""
    return growth * (1 - distance(body.unsqueeze(-2), food) / MOUTH).clamp(min=0)


def fed(energy: Tensor, eaten: Tensor) -> Tensor:
    """Energy [...] and how much food was eaten [...] -> energy a step later."""
    return ((energy - DRAIN).clamp(min=0) + MEAL * eaten).clamp(max=1)


def damage(body: Tensor, hazard: Tensor, radius: Tensor) -> Tensor:
    """Body and hazard [..., 2], its radius [...] -> what is felt [...]: more the deeper inside."""
    return (1 - distance(body, hazard) / radius).clamp(min=0)
