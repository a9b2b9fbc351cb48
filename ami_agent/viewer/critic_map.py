"""The critic's landscape: how far from the goal it believes every place of a world to be."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.agent import Agent
from ami_agent.probing.data import reset_to_factors
from ami_agent.probing.probe import concat_obs, states_of
from ami_agent.viewer.introspect import critic_unit, critic_value
from ami_agent.viewer.record import RecordedEpisode
from modules.types import Observation

if TYPE_CHECKING:
    from ami_agent.viewer.projectors import ProbeProjector

GRID_SIZE = 31  # places along a side


class CriticMap(NamedTuple):
    """A grid of places and what the critic says of them."""

    xy: np.ndarray  # [n, n, 2] pixels of the picture
    values: np.ndarray  # [n, n]; NaN where the world lets nobody be
    unit: str  # of these
    picture: np.ndarray  # [h, w, 3] uint8: the world at the beginning


def compute_critic_map(
    agent: Agent, config: EnvConfig, projector: ProbeProjector, recorded: RecordedEpisode
) -> CriticMap | None:
    """The landscape of a life's goal, all but the body as it was at the beginning.

    None where there is none: the body doesn't move in a plane of two factors, can't be put
    anywhere, or the critic says the same of every place."""
    factors = _grid(projector, recorded.factors[0])
    if factors is None:
        return None
    with closing(config.build(1)) as env:
        places = factors.reshape(-1, factors.shape[-1])
        observations = [_obs_at(env, place, recorded.seed) for place in places]
    values = np.full(len(observations), np.nan, dtype=np.float32)
    reachable = [i for i, obs in enumerate(observations) if obs is not None]
    if reachable:
        values[reachable] = _critic_values(
            agent, concat_obs([obs for obs in observations if obs is not None]), recorded
        )
    if len(np.unique(values[reachable])) < 2:
        return None
    (picture, *_) = recorded.recorded_steps[0].pictures
    grid = values.reshape(factors.shape[:-1])
    return CriticMap(projector.xy(factors), grid, critic_unit(recorded.context), picture)


def _grid(projector: ProbeProjector, factors: np.ndarray) -> np.ndarray | None:
    """Factors [n, n, F] that differ in the two that move the body through the picture."""
    bounds = np.stack([projector.low, projector.high], 1)  # [F, 2]
    moving_factors = [
        i for i, (low, high) in enumerate(bounds) if _moves(projector, factors, i, low, high)
    ]
    if len(moving_factors) != 2:
        return None
    grid = np.tile(factors, (GRID_SIZE, GRID_SIZE, 1))
    xs, ys = np.linspace(
        bounds[moving_factors, 0], bounds[moving_factors, 1], GRID_SIZE, axis=-1
    )  # each [n]
    grid[..., moving_factors] = np.stack(np.meshgrid(xs, ys), -1)
    return grid


def _moves(projector: ProbeProjector, factors: np.ndarray, i: int, low: float, high: float) -> bool:
    pair = np.stack([factors, factors])
    pair[:, i] = low, high
    return not np.allclose(*projector.xy(pair))


def _obs_at(env: EnvAdapter, factors: np.ndarray, seed: int) -> Observation | None:
    """What is seen exactly there, [1, *O]; None where nobody can be put."""
    labelled = reset_to_factors(env, factors, seed)
    return (
        labelled.obs if labelled and np.allclose(labelled.factors[0], factors, atol=1e-3) else None
    )


def _critic_values(agent: Agent, obs: Observation, recorded: RecordedEpisode) -> np.ndarray:
    """Observations [N, *O] -> what the critics say [N]"""
    states = states_of(agent, obs, recorded.context.modality_weights).to(agent.device)
    goal, condition = (
        part.expand(len(states), -1)
        for part in (recorded.context.goal, recorded.context.task_vector[:1])
    )
    return critic_value(agent, states, recorded.context._replace(goal=goal, task_vector=condition))
