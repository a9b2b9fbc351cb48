"""What a representation is asked about: walks through worlds, and places of which one differs from
the next in a single factor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.life import Examines, World, WorldConfig, ended, live, seen, walk
from ami_agent.probe import Sights, joined
from modules.types import Observation, by_sense

WORLDS, STEPS = 128, 12
LINES, PLACES, FEWEST = 4, 24, 8
"""For each factor: lines of places, places on each, and how many of them make a line."""


class Strolls(NamedTuple):
    """Walks of T steps through B worlds in which no episode ended meanwhile."""

    obs: Observation  # [(T + 1) B, *O], moment by moment
    factors: Tensor  # [T + 1, B, F]; F is 0 where the world doesn't say
    actions: Tensor  # [B, T, A]
    seeds: Tensor  # [B] of the episodes


class Line(NamedTuple):
    """Places along which one factor moves and all others stay."""

    factor: int
    obs: Observation  # [N, *O]
    places: Tensor  # [N], in order


class _Walk(NamedTuple):
    """Of T steps in B environments."""

    views: list[Observation]  # T + 1, each [B, *O]
    factors: Tensor  # [T + 1, B, F]
    actions: Tensor  # [B, T, A]
    whole: Tensor  # [B] bool: no episode ended meanwhile


def strolls(config: WorldConfig, seed: int) -> Strolls:
    """What is seen on walks of worlds `seed` and on."""
    walks = list(config.in_turns(WORLDS, lambda world, first: _walk(world, seed + first)))
    views = [joined(same) for same in zip(*(w.views for w in walks), strict=True)]
    whole = torch.cat([w.whole for w in walks])
    if not whole.any():
        whole[:] = True  # lives shorter than that: resets are seen as steps
    kept = whole.repeat(STEPS + 1).nonzero()[:, 0]
    parts = {name: part[kept] for name, part in by_sense(joined(views)).items()}
    return Strolls(
        parts["obs"] if isinstance(views[0], Tensor) else parts,
        torch.cat([w.factors for w in walks], 1)[:, whole],
        torch.cat([w.actions for w in walks])[whole],
        seed + whole.nonzero()[:, 0],
    )


def _walk(world: World, seed: int) -> _Walk:
    obs, info = world.reset(seed)
    views, actions = [obs], []
    factors = [_factors(info, world)]
    whole = torch.ones(world.count, dtype=torch.bool)
    for lived in islice(live(walk(world), world, obs), STEPS):
        views.append(seen(lived))
        actions.append(lived.transition.action)
        factors.append(_factors(lived.info, world))
        whole &= ~ended(lived).cpu()
    return _Walk(views, torch.stack(factors), torch.stack(actions, 1), whole)


def _factors(info: Mapping[str, Any], world: World) -> Tensor:
    if not isinstance(world.inner, Examines):
        return torch.empty(world.count, 0)
    return world.factors(info).cpu()


def put(world: World, factors: np.ndarray, seed: int) -> Sights | None:
    """What is seen where one world is as these factors `[F]` say, and how it then is: some stand on
    whole pixels, and a world may ignore the wish. None if it refuses (inside a wall)."""
    try:
        obs, info = world.reset(seed, factors=factors[None])
    except ValueError:
        return None
    return Sights(obs, world.factors(info).cpu())


def lines(config: WorldConfig, walked: Strolls) -> list[Line]:
    """For every factor some lines through where walks began, over all that was met on walks; none
    where a world can't be put as one likes."""
    count = walked.factors.shape[-1]
    if not count:
        return []
    with closing(config.build(1)) as world:
        return [
            line
            for factor in range(count)
            for start in range(min(LINES, len(walked.seeds)))
            for line in _line(world, walked, factor, start)
        ]


def _line(world: World, walked: Strolls, factor: int, start: int) -> Iterator[Line]:
    met = walked.factors[..., factor]
    wanted = walked.factors[0, start].repeat(PLACES, 1)
    wanted[:, factor] = torch.linspace(float(met.min()), float(met.max()), PLACES)
    others = torch.arange(wanted.shape[1]) != factor
    kept: list[Sights] = []
    for place in wanted:
        sight = put(world, place.numpy(), int(walked.seeds[start]))
        if sight is None or not sight.factors[0, others].allclose(place[others], atol=1e-3):
            continue
        if not kept or sight.factors[0, factor] > kept[-1].factors[0, factor] + 1e-6:
            kept.append(sight)
    if len(kept) >= FEWEST:
        places = torch.cat([sight.factors[:, factor] for sight in kept])
        yield Line(factor, joined([sight.obs for sight in kept]), places)
