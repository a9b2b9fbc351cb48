"""Learning curves of Stable-Baselines3's algorithms, with their default settings."""

from __future__ import annotations

import time
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvAdapter, EnvConfig
from ami_agent.adapters.imports import import_path
from ami_agent.adapters.make import build_wrappers
from ami_agent.bench.translation import (
    PlainSpace,
    PlainSpaceWrapper,
    check_action,
    plain_actions,
    plain_observations,
)
from ami_agent.evaluation.evaluate import run_episodes
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory
from modules.types import ConfigError

MIN_CNN_SIZE = 36
"""Pixels on a side of the smallest image that its convolutions accept."""

HER_LEARNING_STARTS = 1000
"""Steps before the first update with HER, at least; it also needs one finished episode."""

Curve: TypeAlias = list[tuple[int, float, float]]
"""Points: environment steps, mean return of the evaluation, seconds of training."""


class RawEnvAdapter(EnvAdapter):
    """Environments with the plain spaces of `PlainSpaceWrapper`, in a batch."""

    algorithm = "the algorithm"

    @cached_property
    def plain_obs(self) -> PlainSpace:
        return plain_observations(self.vector_env.single_observation_space)

    @cached_property
    def plain_action(self) -> PlainSpace:
        return plain_actions(self.vector_env.single_action_space)

    def to_tensors(self, obs: Any, what: str = "") -> Any:
        return self.plain_obs.convert(obs)

    def to_env(self, action: Any) -> np.ndarray:
        env_action = self.plain_action.convert(action)
        check_action(env_action, self.vector_env.action_space, self.algorithm)
        return env_action


def check_installed() -> None:
    """Raises ConfigError if Stable-Baselines3 isn't installed."""
    if find_spec("stable_baselines3") is None:
        raise ConfigError(
            "stable-baselines3 is not installed: pip install 'ami-agent[baselines]', or leave its "
            "algorithms out: --algorithms random ami"
        )


def make_env(config: EnvConfig) -> gymnasium.Env:
    """One of these environments, as a Gymnasium `Env`."""
    for module in config.imports:
        import_path(module)
    env = gymnasium.make(config.id, **config.make_kwargs)
    for wrap in build_wrappers(config):
        env = wrap(env)
    return env


def learning_curve(
    algorithm: str, config: EnvConfig, *, steps: int, eval_every: int, seed: int, episodes: int,
    first_seed: int, device: str,
) -> Curve:  # fmt: skip
    """Trains, and evaluates after every `eval_every` steps and the updates from them, in the
    episodes of seeds `first_seed` and on. Raises ConfigError where the algorithm doesn't support
    the environment."""
    from stable_baselines3.common.callbacks import BaseCallback  # an extra

    model = _model(algorithm, config, seed, device)
    curve: Curve = []

    class CurveCallback(BaseCallback):
        """Evaluates during a single call of `learn`: exploration schedules follow its length, so
        several calls would explore differently."""

        start_time = time.perf_counter()

        def _on_rollout_start(self) -> None:
            last_steps = curve[-1][0] if curve else 0
            if self.num_timesteps >= last_steps + eval_every:
                self._evaluate()

        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            if not curve or curve[-1][0] < self.num_timesteps:
                self._evaluate()

        def _evaluate(self) -> None:
            eval_start = time.perf_counter()
            mean_return = mean_return_of(model, config, episodes, first_seed)
            curve.append((self.num_timesteps, mean_return, eval_start - self.start_time))
            self.start_time += time.perf_counter() - eval_start

    model.learn(steps, callback=CurveCallback())
    model.get_env().close()
    return curve


def _model(algorithm: str, config: EnvConfig, seed: int, device: str) -> Any:
    import stable_baselines3 as sb3  # an extra
    from stable_baselines3.common.env_util import make_vec_env

    algorithms = {"sac": sb3.SAC, "td3": sb3.TD3, "ppo": sb3.PPO, "dqn": sb3.DQN, "her": sb3.SAC}
    envs = make_vec_env(
        lambda: PlainSpaceWrapper(make_env(config), algorithm.upper()), 1, seed=seed
    )
    episode_steps = config.max_episode_steps or envs.get_attr("spec")[0].max_episode_steps or 0
    her_kwargs = {
        "replay_buffer_class": sb3.HerReplayBuffer,
        "learning_starts": max(HER_LEARNING_STARTS, episode_steps + 1),
    }
    try:
        return algorithms[algorithm](
            _policy_name(envs.observation_space), envs, seed=seed, device=device,
            **(her_kwargs if algorithm == "her" else {}),
        )  # fmt: skip
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{algorithm.upper()} does not support {config.id}: {message}") from None


def _policy_name(space: Any) -> str:
    from stable_baselines3.common.preprocessing import is_image_space

    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    large = is_image_space(space) and sorted(space.shape)[1] >= MIN_CNN_SIZE
    return "CnnPolicy" if large else "MlpPolicy"


def mean_return_of(model: Any, config: EnvConfig, episodes: int, first_seed: int) -> float:
    """The mean return over the episodes in which the agent is evaluated, too."""
    env = RawEnvAdapter(config, episodes, torch.device("cpu"), config.make_kwargs)
    results = run_episodes(_policy_factory(model), env, first_seed)
    env.close()
    return float(results.signal_sums[:, 0].mean())


def _policy_factory(model: Any) -> PolicyFactory:
    def start_episode(start: EpisodeStart, seed: int) -> ActFn:
        def act(obs: Any) -> Tensor:
            action, _ = model.predict(obs, deterministic=True)
            return torch.as_tensor(action)

        return act

    return start_episode
