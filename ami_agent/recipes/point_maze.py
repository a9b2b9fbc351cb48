"""Mazes with the physics of MuJoCo: a ball finds its way."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config, override
from ami_agent.recipes.maze import maze, with_pixels
from ami_agent.training import CollectRandom, TrainQuasimetric
from ami_agent.training.optim import OptimConfig
from modules.cost.cost import GoalCriticConfig
from modules.cost.quasimetric import FourierQuasimetricConfig


def point_maze() -> Config:
    """What is learnt in a maze, learnt from a ball that MuJoCo moves, in the maze "u"."""
    env = EnvConfig(id="ami/PointMaze-v0", options={"map": "u", "obs_type": "state"})
    return override(
        maze(),
        {
            "recipe": "point-maze",
            "env": env,
            "eval_env": env,
            "cost.goal_critic": _goal_critic(frequency_scale=5),
        },
    )


def _goal_critic(frequency_scale: float) -> GoalCriticConfig:
    """A critic that looks in such waves. In coarser ones it took all places across the lanes of "u"
    for one, and whoever was to stop in the middle stopped at a wall."""
    return GoalCriticConfig(distance=FourierQuasimetricConfig(frequency_scale=frequency_scale))


def point_maze_medium() -> Config:
    """The same in the maze "medium", of 6 by 6 cells; what is a unit of the state spans more."""
    base = point_maze()
    assert isinstance(base.stages["collect"], CollectRandom)
    env = replace(base.env, options={**base.env.options, "map": "medium"})
    return override(
        base,
        {
            "recipe": "point-maze-medium",
            "env": env,
            "eval_env": env,
            "cost.goal_critic": _goal_critic(frequency_scale=2),
            "stages.collect.num_envs": 3000,
            "stages.train_jepa.optim.steps": 3000,
            "stages.train_goal_critic": TrainQuasimetric(
                log_push=True, optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
        },
    )


def point_maze_pixels() -> Config:
    """The maze "u" seen from above: points in the image and how they move make the state."""
    return override(
        _with_pixels_and_velocity(point_maze(), "point-maze-pixels"),
        {"cost.goal_critic": _goal_critic(frequency_scale=7)},
    )


def point_maze_medium_pixels() -> Config:
    """The maze "medium" seen from above."""
    return _with_pixels_and_velocity(point_maze_medium(), "point-maze-medium-pixels")


def _with_pixels_and_velocity(base: Config, recipe: str) -> Config:
    """From above, with room in the state for velocities, and more reason to keep them: a ball that
    is thrown back by walls moves less evenly than a body that slides along them, and four numbers
    had come to hold bends of its place in place of its velocity."""
    config = with_pixels(base, recipe)
    return override(
        config, {"perception.state_dim": 6, "stages.train_jepa.weights.inverse_dynamics": 4}
    )
