"""OGBench's point mazes: what other agents reach, and what an agent reaches that learns nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ami_agent.adapters.env import ActFn
from ami_agent.evaluation.policies import EnvGoals, EpisodeStart, PolicyFactory
from modules.types import ConfigError, Observation

STEP_LENGTH = 0.2  # how far an action of 1 moves the ball along an axis

PUBLISHED_LEARNERS = ("GCBC", "GCIVL", "GCIQL", "QRL", "CRL", "HIQL")
PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "pointmaze-medium-navigate": (0.09, 0.63, 0.53, 0.82, 0.29, 0.79),
    "pointmaze-large-navigate": (0.29, 0.45, 0.34, 0.86, 0.39, 0.58),
    "pointmaze-giant-navigate": (0.01, 0.00, 0.00, 0.68, 0.27, 0.46),
    "pointmaze-teleport-navigate": (0.25, 0.45, 0.24, 0.04, 0.24, 0.18),
    "pointmaze-medium-stitch": (0.23, 0.70, 0.21, 0.80, 0.00, 0.74),
    "pointmaze-large-stitch": (0.07, 0.12, 0.31, 0.84, 0.00, 0.13),
    "pointmaze-giant-stitch": (0.00, 0.00, 0.00, 0.50, 0.00, 0.00),
    "pointmaze-teleport-stitch": (0.31, 0.44, 0.25, 0.09, 0.04, 0.34),
}
"""Success of the learners that the benchmark's paper measured on its published data, mean over 8
seeds, in the order of their names (Park et al. 2025, arXiv 2410.20092)."""
SOURCE = "OGBench, arXiv 2410.20092, its published data, 8 seeds"


def reference_policies() -> dict[str, PolicyFactory]:
    """A floor and a ceiling: the straight line to the goal, and the shortest path over the cells of
    the maze, which the environment knows and an agent does not."""
    return {
        "straight line": _towards(lambda env, position, goal: goal),
        "oracle": _towards(_oracle_subgoal),
    }


Target = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
"""An environment, the position and the goal `[2]` -> where to go from there."""


def _towards(target: Target) -> PolicyFactory:
    """The policy that goes straight to its target, as fast as it can."""

    def make_policy(start: EpisodeStart, seed: int) -> ActFn:
        goals = EnvGoals()(start)
        assert isinstance(goals, Tensor)
        envs = [env.unwrapped for env in start.env.unwrapped.envs]

        def act_fn(obs: Observation) -> Tensor:
            assert isinstance(obs, Tensor)
            rows = zip(envs, obs.cpu().numpy(), goals.cpu().numpy(), strict=True)
            actions = [_action(target(*row) - row[1]) for row in rows]
            return start.env.from_env(np.stack(actions))

        return act_fn

    return make_policy


def _action(way: np.ndarray) -> np.ndarray:
    """The longest action in that direction, or as long as the way `[2]` that is left."""
    return way / max(STEP_LENGTH, float(np.abs(way).max()))


def _oracle_subgoal(env: Any, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The middle of the next cell on the shortest path, and the goal itself in its cell."""
    if env.xy_to_ij(position) == env.xy_to_ij(goal):
        return goal
    subgoal, _ = env.get_oracle_subgoal(position, goal)
    return np.asarray(subgoal)


def check_dataset(dataset: str) -> str:
    """The name without its version; ConfigError for one whose published results are not here."""
    name = dataset.removesuffix("-v0")
    if name not in PUBLISHED:
        raise ConfigError(f"no suite has {dataset!r}; ogbench has {', '.join(PUBLISHED)}")
    return name
