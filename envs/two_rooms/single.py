"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from .exams import Exam
from .worlds import FACTOR_NAMES, Array, TwoRoomsVectorEnv


def _alone(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos of a batch of one -> of one world; numbers become Python's own."""
    first = {name: value[0] for name, value in infos.items() if not name.startswith("_")}
    return {name: value if value.ndim else value.item() for name, value in first.items()}


class TwoRoomsEnv(gym.Env):
    """Takes the keywords of `TwoRoomsVectorEnv`; see there."""

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        self.render_mode = render_mode
        self._worlds = TwoRoomsVectorEnv(1, render_mode=render_mode, **settings)
        self.judged = self._worlds.judged
        self.observation_space = self._worlds.single_observation_space
        self.action_space = self._worlds.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Options as in the batch: "factors" [1, 4] and "goal_factors" [1, 4]."""
        super().reset(seed=seed)
        obs, infos = self._worlds.reset(seed=seed, options=options)
        return obs[0], _alone(infos)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = self._worlds.step(action[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _alone(infos)

    def oracle(self) -> Array:
        """The longest allowed step along the shortest way to the goal, [2]."""
        return self._worlds.oracle()[0]

    def walk(self) -> Array:
        """One more step of an aimless walk, [2]."""
        return self._worlds.walk()[0]

    def exams(self, seed: int = 0) -> dict[str, Exam]:
        return self._worlds.exams(seed)

    def picture_xy(self, factors: Array) -> Array:
        """Factors [..., 4] -> the dot's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._worlds.picture_xy(factors)

    def render(self) -> np.ndarray:
        """A picture [320, 320, 3]: dot blue, goal a green ring of success."""
        return self._worlds.render()[0]
