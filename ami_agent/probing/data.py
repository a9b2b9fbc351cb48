"""Data for probes: trajectories of the behaviour policy, and series of observations in which a
single factor varies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import (
    EnvAdapter,
    EnvConfig,
    HasFactors,
    behaviour_policy,
    done_of,
    next_obs_of,
    rollout,
)
from ami_agent.probing.probe import LabelledObs, concat_obs
from modules.types import Observation, tree_map

NUM_ENVS, NUM_STEPS = 128, 12
NUM_LINES, POINTS_PER_LINE, MIN_POINTS = 4, 24, 8
"""For each factor: lines, points on each, and the points that a line needs at least."""


class ProbeTrajectories(NamedTuple):
    """Trajectories of T steps in B environments in which no episode ended meanwhile."""

    obs: Observation  # [(T + 1) B, *O], step by step
    factors: Tensor  # [T + 1, B, F]; F is 0 where the environment reports no factors
    actions: Tensor  # [B, T, A]
    seeds: Tensor  # [B] of the episodes


class FactorLine(NamedTuple):
    """Observations along which one factor varies and all others are constant."""

    factor: int
    obs: Observation  # [N, *O]
    factor_values: Tensor  # [N], in order


class _Trajectory(NamedTuple):
    observations: list[Observation]  # T + 1, each [B, *O]
    factors: Tensor  # [T + 1, B, F]
    actions: Tensor  # [B, T, A]
    is_whole: Tensor  # [B] bool: no episode ended


def collect_trajectories(config: EnvConfig, seed: int) -> ProbeTrajectories:
    """Trajectories of the behaviour policy in episodes with the seeds `seed` and following."""
    batches = list(config.run_in_batches(NUM_ENVS, lambda env, first: _collect(env, seed + first)))
    steps = zip(*(batch.observations for batch in batches), strict=True)
    obs = concat_obs([concat_obs(step) for step in steps])
    is_whole = torch.cat([batch.is_whole for batch in batches])
    if not is_whole.any():
        is_whole[:] = True  # all episodes are shorter: resets count as steps
    kept = is_whole.repeat(NUM_STEPS + 1).nonzero()[:, 0]
    return ProbeTrajectories(
        tree_map(lambda part: part[kept], obs),
        torch.cat([batch.factors for batch in batches], 1)[:, is_whole],
        torch.cat([batch.actions for batch in batches])[is_whole],
        seed + is_whole.nonzero()[:, 0],
    )


def _collect(env: EnvAdapter, seed: int) -> _Trajectory:
    obs, info = env.reset(seed)
    observations, actions = [obs], []
    factors = [_factors(info, env)]
    is_whole = torch.ones(env.num_envs, dtype=torch.bool)
    for result in islice(rollout(behaviour_policy(env), env, obs), NUM_STEPS):
        observations.append(next_obs_of(result))
        actions.append(result.transition.action)
        factors.append(_factors(result.info, env))
        is_whole &= ~done_of(result).cpu()
    return _Trajectory(observations, torch.stack(factors), torch.stack(actions, 1), is_whole)


def _factors(info: Mapping[str, Any], env: EnvAdapter) -> Tensor:
    if not isinstance(env.unwrapped, HasFactors):
        return torch.empty(env.num_envs, 0)
    return env.factors(info).cpu()


def reset_to_factors(env: EnvAdapter, factors: np.ndarray, seed: int) -> LabelledObs | None:
    """The observation of one environment that is reset to these factors `[F]`, and its actual
    factors: an environment may round the requested ones, or ignore them. None if it refuses them
    (a position inside a wall)."""
    try:
        obs, info = env.reset(seed, factors=factors[None])
    except ValueError:
        return None
    return LabelledObs(obs, env.factors(info).cpu())


def factor_lines(config: EnvConfig, trajectories: ProbeTrajectories) -> list[FactorLine]:
    """For every factor some lines through the first states of trajectories, over the range of the
    factor in all trajectories; none where the environment has no factors or can't be reset to
    them."""
    count = trajectories.factors.shape[-1]
    if not count:
        return []
    with closing(config.build(1)) as env:
        return [
            line
            for factor in range(count)
            for start in range(min(NUM_LINES, len(trajectories.seeds)))
            for line in _line(env, trajectories, factor, start)
        ]


def _line(
    env: EnvAdapter, trajectories: ProbeTrajectories, factor: int, start: int
) -> Iterator[FactorLine]:
    observed_values = trajectories.factors[..., factor]
    requested = trajectories.factors[0, start].repeat(POINTS_PER_LINE, 1)
    low, high = float(observed_values.min()), float(observed_values.max())
    requested[:, factor] = torch.linspace(low, high, POINTS_PER_LINE)
    others = torch.arange(requested.shape[1]) != factor
    kept: list[LabelledObs] = []
    for target in requested:
        labelled = reset_to_factors(env, target.numpy(), int(trajectories.seeds[start]))
        if labelled is None:
            continue
        actual = labelled.factors[0]
        if not actual[others].allclose(target[others], atol=1e-3):
            continue
        if not kept or actual[factor] > kept[-1].factors[0, factor] + 1e-6:
            kept.append(labelled)
    if len(kept) >= MIN_POINTS:
        factor_values = torch.cat([labelled.factors[:, factor] for labelled in kept])
        yield FactorLine(factor, concat_obs([labelled.obs for labelled in kept]), factor_values)
