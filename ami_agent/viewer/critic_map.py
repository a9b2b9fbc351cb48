"""The critic map: the goal critic's value at every position of an environment."""

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

GRID_SIZE = 31  # positions along a side


class CriticMap(NamedTuple):
    """A grid of positions and the critic's value at each."""

    xy: np.ndarray  # [n, n, 2] in pixels of the picture
    values: np.ndarray  # [n, n]; NaN where the agent can't be, such as in a wall
    unit: str  # of the values
    picture: np.ndarray  # [h, w, 3] uint8: the first frame of the episode


def compute_critic_map(
    agent: Agent, config: EnvConfig, projector: ProbeProjector, recorded: RecordedEpisode
) -> CriticMap | None:
    """The map for the goal of an episode; all but the agent's position is as in its first step.

    None where the agent's position is not given by just two factors, where the environment can't
    be reset to factors, and where the critic has the same value everywhere."""
    factors = _grid(projector, recorded.factors[0])
    if factors is None:
        return None
    with closing(config.build(1)) as env:
        rows = factors.reshape(-1, factors.shape[-1])
        observations = [_obs_at(env, row, recorded.seed) for row in rows]
    values = np.full(len(observations), np.nan, dtype=np.float32)
    free = {i: obs for i, obs in enumerate(observations) if obs is not None}
    if free:
        values[list(free)] = _critic_values(agent, concat_obs(list(free.values())), recorded)
    if len(np.unique(values[list(free)])) < 2:
        return None
    (picture, *_) = recorded.recorded_steps[0].pictures
    grid = values.reshape(factors.shape[:-1])
    return CriticMap(projector.xy(factors), grid, critic_unit(recorded.context), picture)


def _grid(projector: ProbeProjector, factors: np.ndarray) -> np.ndarray | None:
    """Factors [n, n, F] that differ in the two that move the agent in the picture; None where not
    just two do."""
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
    """The observation [1, *O] at these factors; None where a reset does not give them."""
    labelled = reset_to_factors(env, factors, seed)
    if labelled is None or not np.allclose(labelled.factors[0], factors, atol=1e-3):
        return None
    return labelled.obs


def _critic_values(agent: Agent, obs: Observation, recorded: RecordedEpisode) -> np.ndarray:
    """Observations [N, *O] -> the critics' values [N]"""
    states = states_of(agent, obs, recorded.context.modality_weights).to(agent.device)
    context = recorded.context
    goal, task_vector = (
        part.expand(len(states), -1) for part in (context.goal, context.task_vector[:1])
    )
    return critic_value(agent, states, context._replace(goal=goal, task_vector=task_vector))
