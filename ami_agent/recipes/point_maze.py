"""Mazes with the physics of MuJoCo, for a ball."""

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
    """The recipe `maze` for a ball that MuJoCo moves, in the maze "u"."""
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
    """A goal critic with these Fourier features. With a lower frequency scale it takes all
    positions across a lane for one, and the ball stops at a wall instead of in the middle."""
    return GoalCriticConfig(distance=FourierQuasimetricConfig(frequency_scale=frequency_scale))


def point_maze_medium() -> Config:
    """The same in the maze "medium" of 6 by 6 cells; a unit of the state spans more of it."""
    base = point_maze()
    assert isinstance(base.stages["collect"], CollectRandom)
    env = replace(base.env, options={**base.env.options, "map": "medium"})
    return override(
        base,
        {
            "recipe": "point-maze-medium",
            "env": env,
            "eval_env": env,
            # its lanes are as wide as those of "u", but there are more of them
            "cost.goal_critic": _goal_critic(frequency_scale=2),
            "stages.collect.num_envs": 3000,
            "stages.train_jepa.optim.steps": 3000,
            "stages.train_goal_critic": TrainQuasimetric(
                log_push=True, optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
        },
    )


def point_maze_pixels() -> Config:
    """The maze "u" from images: keypoints and their motion make the state."""
    return override(
        _with_pixels_and_velocity(point_maze(), "point-maze-pixels"),
        {"cost.goal_critic": _goal_critic(frequency_scale=7)},
    )


def point_maze_medium_pixels() -> Config:
    """The maze "medium" from images."""
    return _with_pixels_and_velocity(point_maze_medium(), "point-maze-medium-pixels")


def _with_pixels_and_velocity(base: Config, recipe: str) -> Config:
    """From images, with six numbers of state instead of four and a higher weight of inverse
    dynamics: a ball bounces off walls, and four numbers came to hold functions of its position
    instead of its velocity."""
    config = with_pixels(base, recipe)
    return override(
        config, {"perception.state_dim": 6, "stages.train_jepa.weights.inverse_dynamics": 4}
    )
