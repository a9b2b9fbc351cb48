"""Learning curves of Stable-Baselines3's algorithms, with their default settings.

They support plain spaces alone: discrete values count from 0, arrays have one axis, spaces are not
nested, numbers are float32. Observations and actions are converted, and actions checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import cached_property, reduce
from importlib.util import find_spec
from math import prod
from operator import getitem
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from ami_agent.adapters.env import ActFn, EnvAdapter, EnvConfig
from ami_agent.adapters.imports import import_path
from ami_agent.adapters.make import build_wrappers
from ami_agent.adapters.spaces import leaves
from ami_agent.evaluation.evaluate import run_episodes
from ami_agent.evaluation.policies import EpisodeStart
from modules.types import ConfigError

MIN_CNN_SIZE = 36  # pixels on a side of the smallest image that its convolutions accept

HER_LEARNING_STARTS = 1000
"""Steps before the first update with HER, at least; it also needs one finished episode."""

Curve: TypeAlias = list[tuple[int, float, float]]
"""Points: environment steps, mean return of the evaluation, seconds of training."""


class PlainSpace(NamedTuple):
    """A plain space, and the conversion to it (observations) or from it (actions), batched too."""

    space: spaces.Space
    convert: Callable[[Any], Any]


def plain_observations(space: spaces.Space) -> PlainSpace:
    """The plain space of observations, and the conversion to it."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _plain_array(space)
    parts: dict[str, tuple[tuple[Any, ...], PlainSpace]] = {}
    for path, leaf in leaves(space):
        if isinstance(leaf, spaces.Text):
            continue  # no algorithm reads text
        name = "/".join(str(key).replace(".", "_") for key in path)
        if not name or hasattr(nn.ModuleDict, name):  # algorithms keep networks by this name
            name += "_"
        if name in parts:
            raise ConfigError(f"two parts of the observation would both be called {name!r}")
        parts[name] = (path, _plain_array(leaf))

    def convert(obs: Any) -> dict[str, Any]:
        return {
            name: part.convert(reduce(getitem, path, obs)) for name, (path, part) in parts.items()
        }

    return PlainSpace(spaces.Dict({name: part.space for name, (_, part) in parts.items()}), convert)


def _plain_array(space: spaces.Space) -> PlainSpace:
    """Of observations that are not nested."""
    if isinstance(space, spaces.Discrete):
        return PlainSpace(spaces.Discrete(space.n), lambda part: np.asarray(part) - space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return PlainSpace(
            spaces.MultiDiscrete(space.nvec.flatten()),
            lambda part: _flat(np.asarray(part) - space.start, space),
        )
    if isinstance(space, spaces.Box) and not space.shape:
        box = spaces.Box(float(space.low), float(space.high), (1,), space.dtype.type)
        return PlainSpace(box, lambda part: _flat(part, space))
    return PlainSpace(space, lambda part: part)


def _flat(part: Any, space: spaces.Space) -> np.ndarray:
    array = np.asarray(part)
    batch_shape = array.shape[: array.ndim - len(space.shape or ())]
    return array.reshape(*batch_shape, -1)


def plain_actions(space: spaces.Space) -> PlainSpace:
    """The plain space of actions, and the conversion from it."""
    if isinstance(space, spaces.Discrete):
        return PlainSpace(
            spaces.Discrete(space.n), lambda a: (np.asarray(a) + space.start).astype(space.dtype)
        )
    if isinstance(space, spaces.MultiDiscrete):
        return PlainSpace(
            spaces.MultiDiscrete(space.nvec.flatten()),
            lambda a: (_reshaped(a, space.shape) + space.start).astype(space.dtype),
        )
    if isinstance(space, spaces.MultiBinary):
        return PlainSpace(
            spaces.MultiBinary(prod(space.shape)),
            lambda a: _reshaped(a, space.shape).astype(space.dtype),
        )
    if isinstance(space, spaces.Box) and (space.dtype != np.float32 or not space.shape):
        size = space.shape or (1,)
        low, high = (b.reshape(size).astype(np.float32) for b in (space.low, space.high))
        return PlainSpace(spaces.Box(low, high, size, np.float32), lambda a: _clipped(a, space))
    return PlainSpace(space, np.asarray)


def _reshaped(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(action)
    return array.reshape((*array.shape[:-1], *shape))


def _clipped(action: Any, space: spaces.Box) -> np.ndarray:
    """The action in the space's dtype, rounded for integers, within its bounds."""
    array = np.asarray(action) if space.shape else _reshaped(action, ())
    if space.dtype.kind != "f":
        array = array.astype(np.float64).round()
    return np.asarray(np.clip(array, space.low, space.high), space.dtype)


def check_action(action: Any, space: spaces.Space, algorithm: str) -> None:
    """Raises ConfigError for an action that the environment does not take."""
    if not space.contains(action):
        text = " ".join(str(action).split())
        raise ConfigError(
            f"{algorithm} chose {text[:80]}, which is not in the environment's action space {space}"
        )


class PlainSpaceWrapper(gymnasium.Wrapper):
    """The environment with plain spaces."""

    def __init__(self, env: gymnasium.Env, algorithm: str) -> None:
        super().__init__(env)
        self.algorithm = algorithm
        self.plain_obs = plain_observations(env.observation_space)
        self.plain_action = plain_actions(env.action_space)
        self.observation_space, self.action_space = self.plain_obs.space, self.plain_action.space

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self.plain_obs.convert(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        env_action = self.plain_action.convert(action)
        check_action(env_action, self.env.action_space, self.algorithm)
        obs, reward, terminated, truncated, info = self.env.step(env_action)
        return self.plain_obs.convert(obs), reward, terminated, truncated, info


class RawEnvAdapter(EnvAdapter):
    """Environments with the plain spaces of `PlainSpaceWrapper`, in a batch."""

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
        check_action(env_action, self.vector_env.action_space, "the algorithm")
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
    model: Any, *, steps: int, eval_every: int, mean_return: Callable[[Any], float]
) -> Curve:
    """Trains, and evaluates by `mean_return` after every `eval_every` steps and the updates from
    them."""
    from stable_baselines3.common.callbacks import BaseCallback  # an extra

    curve: Curve = []

    class CurveCallback(BaseCallback):
        """Evaluates during one call of `learn`, as exploration schedules follow its length."""

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
            seconds = eval_start - self.start_time
            curve.append((self.num_timesteps, mean_return(model), seconds))
            self.start_time += time.perf_counter() - eval_start

    model.learn(steps, callback=CurveCallback())
    model.get_env().close()
    return curve


def make_model(algorithm: str, config: EnvConfig, seed: int, device: str) -> Any:
    """An untrained agent of Stable-Baselines3 with its default settings; ConfigError where the
    algorithm doesn't support the environment."""
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

    def make_policy(start: EpisodeStart, seed: int) -> ActFn:
        return lambda obs: torch.as_tensor(model.predict(obs, deterministic=True)[0])

    with closing(RawEnvAdapter(config, episodes, torch.device("cpu"), config.make_kwargs)) as env:
        results = run_episodes(make_policy, env, first_seed)
    return float(results.signal_sums[:, 0].mean())
