"""What was lived for one goal, looked at as if it had been lived for another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import (
    EnvConfig,
    EnvironmentSpec,
    behaviour_policy,
    done_of,
    next_obs_of,
    rollout,
)
from ami_agent.adapters.fault_tolerance import EnvError
from modules.memory.replay_buffer import ALL_PARTS, Parts, ReplayBuffer
from modules.types import ConfigError, Trajectory, as_dict

DESIRED_GOAL, ACHIEVED_GOAL = "desired_goal", "achieved_goal"
"""How Gymnasium's goal-conditioned worlds name them."""
HINT = "--actor-critic.hindsight-fraction 0 does without"
NUM_CHECKED_STEPS = 64
"""Steps after which it is plain how a world rewards."""

RewardFn = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]
"""A world's `compute_reward`: achieved and desired goals `[N, G]` -> rewards `[N]`."""


class SamplesTrajectories(Protocol):
    """Whatever stretches of life can be drawn from."""

    def sample(
        self, count: int, length: int, generator: torch.Generator, group_size: int = 1, *,
        parts: Parts = ALL_PARTS,
    ) -> Trajectory: ...  # fmt: skip


class HindsightBuffer:
    """A share of what is drawn from memory wants what was achieved later in its episode, and is
    rewarded for it (hindsight experience replay, Andrychowicz et al. 2017, strategy "future").

    The world's `compute_reward` is asked on the host."""

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
        """`[N, T, G]` twice -> what the world would have given, `[N, T]`"""
        rewards = _compute_rewards(
            self.reward_fn, *(part.flatten(0, 1) for part in (achieved, desired))
        )
        return rewards.unflatten(0, achieved.shape[:2]).to(achieved.device)

    def check(self) -> None:
        """Raises ConfigError where rewards that were lived are not what `compute_reward` says."""
        trajectory = self.buffer.sample(1024, 1, torch.Generator().manual_seed(0))
        obs = as_dict(trajectory.obs)
        computed = self.rewards(obs[ACHIEVED_GOAL][:, 1:], obs[DESIRED_GOAL][:, :-1])[:, 0]
        _check_rewards(computed, trajectory.interoception[:, 0, 0])


def _compute_rewards(reward_fn: RewardFn, achieved: Tensor, desired: Tensor) -> Tensor:
    """`[N, G]` twice -> `[N]`; ConfigError where the world can't tell."""
    achieved_array, desired_array = achieved.cpu().numpy(), desired.cpu().numpy()
    try:
        rewards = np.asarray(reward_fn(achieved_array, desired_array, {}), dtype=np.float64)
    except Exception as error:  # a stranger's code may raise anything
        raise EnvError(
            f"the world's compute_reward failed with {len(achieved_array)} goals at once: "
            f"{type(error).__name__}: {error}; {HINT}"
        ) from error
    if rewards.shape != achieved_array.shape[:1]:
        raise ConfigError(
            f"the world's compute_reward answers {achieved_array.shape} goals with {rewards.shape} rewards; "
            f"it must take many at once and answer ({len(achieved_array)},) (a norm along axis -1, for "
            f"instance); {HINT}"
        )
    if not np.isfinite(rewards).all():
        raise EnvError(f"the world's compute_reward answers with NaN or infinity; {HINT}")
    return torch.from_numpy(rewards)


def _check_rewards(computed: Tensor, recorded: Tensor) -> None:
    """Rewards `[N]` as `compute_reward` has them and as they were lived."""
    scale = min(1.0, float(recorded.abs().amax())) or 1.0
    wrong_fraction = float(
        ((computed - recorded).abs() > 1e-3 * (scale + recorded.abs())).float().mean()
    )
    if wrong_fraction > 0.02:
        raise ConfigError(
            f"in {100 * wrong_fraction:.0f} % of the steps the world's reward is not what its "
            f"compute_reward says of the goals; {HINT}"
        )


def check_reward_fn(spec: EnvironmentSpec, config: EnvConfig) -> None:
    """Lives a little, before anything is learnt: ConfigError where rewards that are lived are not
    what `compute_reward` says, or it says nothing."""
    compute_reward, achieved, desired, rewards = reward_fn(spec, config), [], [], []
    with closing(config.build(1)) as env:
        obs, _ = env.reset(0)
        done = torch.zeros(1, dtype=torch.bool)
        for result in islice(rollout(behaviour_policy(env), env, obs), NUM_CHECKED_STEPS):
            if not done.any():  # the step after an end only resets
                achieved.append(as_dict(next_obs_of(result))[ACHIEVED_GOAL])
                desired.append(as_dict(result.transition.obs)[DESIRED_GOAL])
                rewards.append(result.transition.interoception[:, 0])
            done = done_of(result)
    _check_rewards(
        _compute_rewards(compute_reward, torch.cat(achieved), torch.cat(desired)),
        torch.cat(rewards),
    )


def with_hindsight(
    buffer: ReplayBuffer, ratio: float, spec: EnvironmentSpec, config: EnvConfig
) -> SamplesTrajectories:
    """Memory, looked at so if `ratio` is not 0; ConfigError for a world without such goals."""
    if not ratio:
        return buffer
    relabelled = HindsightBuffer(buffer, ratio, reward_fn(spec, config))
    relabelled.check()
    return relabelled


def is_goal_env(spec: EnvironmentSpec) -> bool:
    """Whether there are goals that are achieved and goals that are desired, vectors alike."""
    shapes = [spec.shapes.get(name) for name in (DESIRED_GOAL, ACHIEVED_GOAL)]
    return shapes[0] == shapes[1] and shapes[0] is not None and len(shapes[0]) == 1


def has_compute_reward(spec: EnvironmentSpec, config: EnvConfig) -> bool:
    """Whether a world has goals, and says how it rewards them."""
    try:
        reward_fn(spec, config)
    except ConfigError:
        return False
    return True


def reward_fn(spec: EnvironmentSpec, config: EnvConfig) -> RewardFn:
    """How a world rewards goals; ConfigError where it has none, or doesn't say."""
    if not is_goal_env(spec):
        raise ConfigError(
            f"hindsight needs a world whose observations are a Dict with {DESIRED_GOAL!r} and "
            f"{ACHIEVED_GOAL!r}, two vectors alike; {config.id} shows {spec.describe_obs()}"
        )
    if config.action_repeat > 1 or config.frame_stack > 1:
        raise ConfigError("hindsight knows the reward of one step, seen once: no repeat or stack")
    with closing(replace(config, vectorization_mode="sync").build(1)) as env:
        single_env = env.unwrapped.envs[0].unwrapped
    if not callable(getattr(single_env, "compute_reward", None)):
        raise ConfigError(
            f"{config.id} has no compute_reward(achieved, desired, info): hindsight can't know "
            f"what another goal would have been worth; {HINT}"
        )
    return single_env.compute_reward
