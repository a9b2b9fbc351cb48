"""The critic's landscape: how far from the goal it believes every place of a world to be."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ami_agent.agent import Agent
from ami_agent.life import World, WorldConfig
from ami_agent.probe import joined, states_of
from ami_agent.show.episodes import Life
from ami_agent.show.thoughts import critic, unit
from ami_agent.strolls import put
from modules.types import Observation

if TYPE_CHECKING:
    from ami_agent.show.views import ReadOut

SIDE = 31  # places along a side


class Landscape(NamedTuple):
    """A grid of places and what the critic says of them."""

    xy: np.ndarray  # [n, n, 2] pixels of the picture
    to_go: np.ndarray  # [n, n]; NaN where the world lets nobody be
    unit: str  # of these
    picture: np.ndarray  # [h, w, 3] uint8: the world at the beginning


def survey(agent: Agent, config: WorldConfig, readout: ReadOut, life: Life) -> Landscape | None:
    """The landscape of a life's goal, all but the body as it was at the beginning.

    None where there is none: the body doesn't move in a plane of two factors, can't be put
    anywhere, or the critic says the same of every place."""
    factors = _grid(readout, life.factors[0])
    if factors is None:
        return None
    with closing(config.build(1)) as world:
        places = factors.reshape(-1, factors.shape[-1])
        seen = [_at(world, place, life.seed) for place in places]
    to_go = np.full(len(seen), np.nan, dtype=np.float32)
    free = [i for i, obs in enumerate(seen) if obs is not None]
    if free:
        to_go[free] = _ask(agent, joined([obs for obs in seen if obs is not None]), life)
    if len(np.unique(to_go[free])) < 2:
        return None
    (picture, *_) = life.instants[0].pictures
    grid = to_go.reshape(factors.shape[:-1])
    return Landscape(readout.xy(factors), grid, unit(life.focus), picture)


def _grid(readout: ReadOut, factors: np.ndarray) -> np.ndarray | None:
    """Factors [n, n, F] that differ in the two that move the body through the picture."""
    ends = np.stack([readout.low, readout.high], 1)  # [F, 2]
    moving = [i for i, (low, high) in enumerate(ends) if _moves(readout, factors, i, low, high)]
    if len(moving) != 2:
        return None
    grid = np.tile(factors, (SIDE, SIDE, 1))
    across, down = np.linspace(ends[moving, 0], ends[moving, 1], SIDE, axis=-1)  # each [n]
    grid[..., moving] = np.stack(np.meshgrid(across, down), -1)
    return grid


def _moves(readout: ReadOut, factors: np.ndarray, i: int, low: float, high: float) -> bool:
    both = np.stack([factors, factors])
    both[:, i] = low, high
    return not np.allclose(*readout.xy(both))


def _at(world: World, factors: np.ndarray, seed: int) -> Observation | None:
    """What is seen exactly there, [1, *O]; None where nobody can be put."""
    sight = put(world, factors, seed)
    return sight.obs if sight and np.allclose(sight.factors[0], factors, atol=1e-3) else None


def _ask(agent: Agent, obs: Observation, life: Life) -> np.ndarray:
    """Observations [N, *O] -> what the critics say [N]"""
    states = states_of(agent, obs, life.focus.gains).to(agent.device)
    goal, told = (
        part.expand(len(states), -1) for part in (life.focus.goal, life.focus.condition[:1])
    )
    return critic(agent, states, life.focus._replace(goal=goal, condition=told))
