"""Hindsight experience replay: recorded windows with other goals, and the rewards of those."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import EnvConfig, EnvironmentSpec, behaviour_policy, rollout
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.goal_env import ACHIEVED_GOAL, DESIRED_GOAL
from modules.memory.replay_buffer import ALL_PARTS, Parts, ReplayBuffer
from modules.types import ConfigError, Trajectory, as_dict

HINT = "--actor-critic.hindsight-fraction 0 trains without hindsight"
NUM_CHECKED_STEPS = 64
"""Steps for which rewards are compared with `compute_reward` before training."""

RewardFn = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]
"""An environment's `compute_reward`: achieved and desired goals `[N, G]` -> rewards `[N]`."""


class HindsightBuffer:
    """A replay buffer in which a fraction of the sampled windows has as desired goal one that was
    achieved later in the episode, and the rewards of that goal (hindsight experience replay,
    Andrychowicz et al. 2017, strategy "future").

    The environment's `compute_reward` runs on the host."""

    def __init__(self, buffer: ReplayBuffer, ratio: float, reward_fn: RewardFn) -> None:
        self.buffer, self.ratio, self.reward_fn = buffer, ratio, reward_fn

    def sample(
        self, count: int, length: int, generator: torch.Generator, group_size: int = 1, *,
        parts: Parts = ALL_PARTS,
    ) -> Trajectory:  # fmt: skip
        needed = parts.obs if parts.obs is None else {*parts.obs, DESIRED_GOAL, ACHIEVED_GOAL}
        trajectory, future = self.buffer.sample_with_future(
            count, length, generator, group_size, parts._replace(obs=needed)
        )
        obs = dict(as_dict(trajectory.obs))
        is_relabelled = torch.rand(count, generator=generator) < self.ratio
        is_relabelled = is_relabelled.to(trajectory.actions.device)
        goal = as_dict(future)[ACHIEVED_GOAL]
        desired = torch.where(is_relabelled[:, None, None], goal[:, None], obs[DESIRED_GOAL])
        interoception = trajectory.interoception
        if parts.interoception:
            rewards = self.rewards(obs[ACHIEVED_GOAL][:, 1:], desired[:, :-1])
            is_relabelled_step = (
                is_relabelled[:, None]
                if trajectory.valid is None
                else is_relabelled[:, None] & trajectory.valid
            )
            interoception = interoception.clone()
            interoception[..., 0] = torch.where(is_relabelled_step, rewards, interoception[..., 0])
        return trajectory._replace(obs={**obs, DESIRED_GOAL: desired}, interoception=interoception)

    def rewards(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Achieved and desired goals, each `[N, T, G]` -> the environment's rewards `[N, T]`."""
        rewards = _compute_rewards(self.reward_fn, achieved.flatten(0, 1), desired.flatten(0, 1))
        return rewards.unflatten(0, achieved.shape[:2]).to(achieved.device)

    def check(self) -> None:
        """Raises ConfigError where recorded rewards are not those of `compute_reward`."""
        trajectory = self.buffer.sample(1024, 1, torch.Generator().manual_seed(0))
        obs = as_dict(trajectory.obs)
        computed = self.rewards(obs[ACHIEVED_GOAL][:, 1:], obs[DESIRED_GOAL][:, :-1])[:, 0]
        _check_rewards(computed, trajectory.interoception[:, 0, 0])


SamplesTrajectories: TypeAlias = ReplayBuffer | HindsightBuffer
"""A source of recorded windows."""


def _compute_rewards(reward_fn: RewardFn, achieved: Tensor, desired: Tensor) -> Tensor:
    """Goals, each `[N, G]` -> rewards `[N]`; ConfigError or EnvError where the environment's
    function gives none."""
    achieved_array, desired_array = achieved.cpu().numpy(), desired.cpu().numpy()
    try:
        rewards = np.asarray(reward_fn(achieved_array, desired_array, {}), dtype=np.float64)
    except Exception as error:  # the user's code may raise anything
        raise EnvError(
            f"the environment's compute_reward failed with {len(achieved_array)} goals at once: "
            f"{type(error).__name__}: {error}; {HINT}"
        ) from error
    if rewards.shape != achieved_array.shape[:1]:
        raise ConfigError(
            f"the environment's compute_reward returns rewards of shape {rewards.shape} for goals "
            f"of shape {achieved_array.shape}; it must take many goals at once and return "
            f"({len(achieved_array)},) (a norm along axis -1, for instance); {HINT}"
        )
    if not np.isfinite(rewards).all():
        raise EnvError(f"the environment's compute_reward returns NaN or infinity; {HINT}")
    return torch.from_numpy(rewards)


def _check_rewards(computed: Tensor, recorded: Tensor) -> None:
    """Raises ConfigError where computed and recorded rewards `[N]` differ in more than 2 %."""
    scale = min(1.0, float(recorded.abs().amax())) or 1.0
    wrong_fraction = float(
        ((computed - recorded).abs() > 1e-3 * (scale + recorded.abs())).float().mean()
    )
    if wrong_fraction > 0.02:
        raise ConfigError(
            f"in {100 * wrong_fraction:.0f} % of the steps the environment's reward is not that of "
            f"its compute_reward; {HINT}"
        )


def check_reward_fn(spec: EnvironmentSpec, config: EnvConfig) -> None:
    """Takes some steps before training: ConfigError where their rewards are not those of
    `compute_reward`, or there is no such function."""
    compute_reward, achieved, desired, rewards = reward_fn(spec, config), [], [], []
    with closing(config.build(1)) as env:
        obs, _ = env.reset(0)
        done = torch.zeros(1, dtype=torch.bool)
        for result in islice(rollout(behaviour_policy(env), env, obs), NUM_CHECKED_STEPS):
            if not done.any():  # the step after an end only resets
                achieved.append(as_dict(result.next_obs)[ACHIEVED_GOAL])
                desired.append(as_dict(result.transition.obs)[DESIRED_GOAL])
                rewards.append(result.transition.interoception[:, 0])
            done = result.done
    _check_rewards(
        _compute_rewards(compute_reward, torch.cat(achieved), torch.cat(desired)),
        torch.cat(rewards),
    )


def with_hindsight(
    buffer: ReplayBuffer, ratio: float, spec: EnvironmentSpec, config: EnvConfig
) -> SamplesTrajectories:
    """The buffer with hindsight, if `ratio` is not 0; ConfigError for an environment without
    goals."""
    if not ratio:
        return buffer
    relabelled = HindsightBuffer(buffer, ratio, reward_fn(spec, config))
    relabelled.check()
    return relabelled


def has_compute_reward(spec: EnvironmentSpec, config: EnvConfig) -> bool:
    """Whether an environment has goals, and a `compute_reward` for them."""
    try:
        reward_fn(spec, config)
    except ConfigError:
        return False
    return True


def reward_fn(spec: EnvironmentSpec, config: EnvConfig) -> RewardFn:
    """The environment's `compute_reward`; ConfigError where it has none, or no goals."""
    desired, achieved = (spec.shapes.get(name, ()) for name in (DESIRED_GOAL, ACHIEVED_GOAL))
    if desired != achieved or len(desired) != 1:
        raise ConfigError(
            f"hindsight needs observations that are a Dict with {DESIRED_GOAL!r} and "
            f"{ACHIEVED_GOAL!r}, two vectors of one size; those of {config.id} are "
            f"{spec.describe_obs()}; {HINT}"
        )
    if config.action_repeat > 1 or config.frame_stack > 1:
        raise ConfigError(
            "hindsight computes the reward of a single step and frame: --env.action-repeat and "
            f"--env.frame-stack must be 1; {HINT}"
        )
    with closing(replace(config, vectorization_mode="sync").build(1)) as env:
        single_env = env.unwrapped.envs[0].unwrapped
    if not callable(getattr(single_env, "compute_reward", None)):
        raise ConfigError(
            f"{config.id} has no compute_reward(achieved, desired, info), which hindsight needs for"
            f" the reward of other goals; {HINT}"
        )
    return single_env.compute_reward
