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
from modules.types import Observation, as_dict

NUM_ENVS, NUM_STEPS = 128, 12
NUM_LINES, POINTS_PER_LINE, MIN_POINTS = 4, 24, 8
"""For each factor: lines of places, places on each, and how many of them make a line."""


class ProbeTrajectories(NamedTuple):
    """Walks of T steps through B worlds in which no episode ended meanwhile."""

    obs: Observation  # [(T + 1) B, *O], moment by moment
    factors: Tensor  # [T + 1, B, F]; F is 0 where the world doesn't say
    actions: Tensor  # [B, T, A]
    seeds: Tensor  # [B] of the episodes


class FactorLine(NamedTuple):
    """Places along which one factor moves and all others stay."""

    factor: int
    obs: Observation  # [N, *O]
    factor_values: Tensor  # [N], in order


class _Trajectory(NamedTuple):
    """Of T steps in B environments."""

    observations: list[Observation]  # T + 1, each [B, *O]
    factors: Tensor  # [T + 1, B, F]
    actions: Tensor  # [B, T, A]
    is_whole: Tensor  # [B] bool: no episode ended meanwhile


def collect_trajectories(config: EnvConfig, seed: int) -> ProbeTrajectories:
    """What is seen on walks of worlds `seed` and on."""
    batches = list(config.run_in_batches(NUM_ENVS, lambda env, first: _collect(env, seed + first)))
    observations = [
        concat_obs(same_step)
        for same_step in zip(*(walk.observations for walk in batches), strict=True)
    ]
    is_whole = torch.cat([walk.is_whole for walk in batches])
    if not is_whole.any():
        is_whole[:] = True  # lives shorter than that: resets are seen as steps
    kept = is_whole.repeat(NUM_STEPS + 1).nonzero()[:, 0]
    parts = {name: part[kept] for name, part in as_dict(concat_obs(observations)).items()}
    return ProbeTrajectories(
        parts["obs"] if isinstance(observations[0], Tensor) else parts,
        torch.cat([walk.factors for walk in batches], 1)[:, is_whole],
        torch.cat([walk.actions for walk in batches])[is_whole],
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
    """What is seen where one world is as these factors `[F]` say, and how it then is: some stand on
    whole pixels, and a world may ignore the wish. None if it refuses (inside a wall)."""
    try:
        obs, info = env.reset(seed, factors=factors[None])
    except ValueError:
        return None
    return LabelledObs(obs, env.factors(info).cpu())


def factor_lines(config: EnvConfig, trajectories: ProbeTrajectories) -> list[FactorLine]:
    """For every factor some lines through where walks began, over all that was met on walks; none
    where a world can't be put as one likes."""
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
    requested[:, factor] = torch.linspace(
        float(observed_values.min()), float(observed_values.max()), POINTS_PER_LINE
    )
    others = torch.arange(requested.shape[1]) != factor
    kept: list[LabelledObs] = []
    for target_factors in requested:
        labelled = reset_to_factors(env, target_factors.numpy(), int(trajectories.seeds[start]))
        if labelled is None or not labelled.factors[0, others].allclose(
            target_factors[others], atol=1e-3
        ):
            continue
        if not kept or labelled.factors[0, factor] > kept[-1].factors[0, factor] + 1e-6:
            kept.append(labelled)
    if len(kept) >= MIN_POINTS:
        factor_values = torch.cat([labelled.factors[:, factor] for labelled in kept])
        yield FactorLine(factor, concat_obs([labelled.obs for labelled in kept]), factor_values)
