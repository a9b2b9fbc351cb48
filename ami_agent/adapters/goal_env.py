"""Goal environments in Gymnasium's form: observations are a Dict with `desired_goal` and
`achieved_goal`."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium
from gymnasium import spaces

from modules.types import ConfigError

DESIRED_GOAL, ACHIEVED_GOAL = "desired_goal", "achieved_goal"
"""Their names in the observations of Gymnasium's goal environments."""


def goal_size(space: spaces.Space) -> int:
    """The numbers of a goal in such observations; 0 for observations of another form."""
    if not isinstance(space, spaces.Dict):
        return 0
    goals = [space.spaces.get(name) for name in (DESIRED_GOAL, ACHIEVED_GOAL)]
    shapes = {goal.shape for goal in goals if isinstance(goal, spaces.Box)}
    (shape,) = shapes if len(shapes) == 1 else [()]
    return shape[0] if len(shape) == 1 and all(isinstance(g, spaces.Box) for g in goals) else 0


def without_goal(space: spaces.Space) -> spaces.Space:
    """The space of such observations without the desired goal."""
    if not goal_size(space):
        return space
    assert isinstance(space, spaces.Dict)
    return spaces.Dict({name: part for name, part in space.items() if name != DESIRED_GOAL})


class GoalInInfo(gymnasium.Wrapper):
    """Takes the desired goal out of the observations, of which what was achieved is the first part:
    what an agent plans to reach is no part of what it perceives. `info["goal"]` of a reset is an
    observation that has achieved the goal; its other parts are those of the first observation, for
    the goal says nothing of them."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not goal_size(space):
            raise ConfigError(
                f"goal_from_obs is True, but the observations are {space}; they must be a Dict "
                f"with {ACHIEVED_GOAL!r} and {DESIRED_GOAL!r}, two vectors of one size"
            )
        observed = without_goal(space)
        assert isinstance(observed, spaces.Dict)
        # an OrderedDict keeps its order: what a goal is about comes first in the agent's state
        parts = OrderedDict(observed.spaces)
        parts.move_to_end(ACHIEVED_GOAL, last=False)
        self.observation_space = spaces.Dict(parts)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        observed = _without_goal(obs)
        return observed, {**info, "goal": {**observed, ACHIEVED_GOAL: obs[DESIRED_GOAL]}}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return _without_goal(obs), reward, terminated, truncated, info


def _without_goal(obs: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in obs.items() if name != DESIRED_GOAL}
