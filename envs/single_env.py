"""One environment as a `gymnasium.Env`: a batch of one."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import numpy as np

from .vector_env import Array, DynamicsTest, Obs, TorchVectorEnv

V = TypeVar("V", bound=TorchVectorEnv[Any])


def _first_obs(obs: Obs) -> Obs:
    """Observations of a batch of one -> of one environment."""
    return {name: part[0] for name, part in obs.items()} if isinstance(obs, dict) else obs[0]


def _first_info(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos of a batch of one -> of one environment; single numbers become Python's own."""
    first = {name: _first_obs(value) for name, value in infos.items() if not name.startswith("_")}
    return {
        name: value if isinstance(value, dict) or value.ndim else value.item()
        for name, value in first.items()
    }


class SingleEnv(gym.Env, Generic[V]):
    """Takes the keyword arguments of its vector environment, without `num_envs`; reset options have
    one row.

    `gymnasium.make` keeps a `max_episode_steps` for its own `TimeLimit`, which can only shorten
    episodes; longer ones are a matter of the constructor or of `gymnasium.make_vec`.
    """

    vector_env: ClassVar[type[TorchVectorEnv[Any]]]
    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, **options: Any) -> None:
        """Raises what the vector environment raises."""
        make: Any = self.vector_env
        self._envs: V = make(1, **options)
        self.render_mode = self._envs.render_mode
        self.metadata = {**self.metadata, "description": self._envs.description}
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    @property
    def factor_names(self) -> tuple[str, ...]:
        return self._envs.factor_names

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        obs, infos = self._envs.reset(seed=seed, options=options)
        return _first_obs(obs), _first_info(infos)

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = self._envs.step(action[None])
        done = bool(terminated[0]), bool(truncated[0])
        return _first_obs(obs), float(reward[0]), *done, _first_info(infos)

    def expert_action(self) -> Array:
        """The action [A] of a policy that knows the true state and the dynamics."""
        return self._envs.expert_action()[0]

    def behaviour_action(self) -> Array:
        """The action [A] of the policy that gathers experience."""
        return self._envs.behaviour_action()[0]

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """Action sequences with known outcomes, by name."""
        return self._envs.dynamics_tests(seed)

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., F] -> the agent's `(x, y)` in the pixels of a frame, [..., 2]."""
        return self._envs.factors_to_pixels(factors)

    def render(self) -> np.ndarray:
        """A frame for people, [320, 320, 3] uint8."""
        return self._envs.render()[0]
