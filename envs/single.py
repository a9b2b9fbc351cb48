"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np

from .batched import Array, BatchedEnv, DynamicsTest, Obs

W = TypeVar("W", bound=BatchedEnv[Any])


def _first(obs: Obs) -> Obs:
    """Observations of a batch of one -> of one world."""
    return {name: part[0] for name, part in obs.items()} if isinstance(obs, dict) else obs[0]


def _alone(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos of a batch of one -> of one world; numbers become Python's own."""
    first = {name: _first(value) for name, value in infos.items() if not name.startswith("_")}
    return {
        name: value if isinstance(value, dict) or value.ndim else value.item()
        for name, value in first.items()
    }


class SingleEnv(gym.Env, Generic[W]):
    """Options are as in the batch, with one row."""

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, worlds: W) -> None:
        """`worlds` is a batch of one."""
        self._worlds, self.render_mode = worlds, worlds.render_mode
        self.metadata = {**self.metadata, "description": worlds.description}
        self.observation_space = worlds.single_observation_space
        self.action_space = worlds.single_action_space

    @property
    def factor_names(self) -> tuple[str, ...]:
        return self._worlds.factor_names

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        obs, infos = self._worlds.reset(seed=seed, options=options)
        return _first(obs), _alone(infos)

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = self._worlds.step(action[None])
        ended = bool(terminated[0]), bool(truncated[0])
        return _first(obs), float(reward[0]), *ended, _alone(infos)

    def expert_action(self) -> Array:
        """What one who knows the world would do, [A]."""
        return self._worlds.expert_action()[0]

    def behaviour_action(self) -> Array:
        """One more step of the world's own walk, [A]."""
        return self._worlds.behaviour_action()[0]

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        return self._worlds.dynamics_tests(seed)

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., F] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._worlds.factors_to_pixels(factors)

    def render(self) -> np.ndarray:
        """A picture for people, [320, 320, 3] uint8."""
        return self._worlds.render()[0]
