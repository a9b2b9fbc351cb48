"""Mazes with the physics of MuJoCo: a ball finds its way."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Live, Separate
from ami_agent.life import WorldConfig
from ami_agent.recipes.maze import from_above, maze
from modules.cost import Critic
from modules.distance import WaveQuasimetric
from modules.perception import KeypointEncoder


def point_maze() -> Config:
    """What is learnt in a maze, learnt from a ball that MuJoCo moves, in the maze "u"."""
    world = WorldConfig(id="ami/PointMaze-v0", options={"map": "u", "obs_type": "state"})
    return replace(
        maze(), recipe="point-maze", world=world, evaluation=world, critic=_critic(detail=5)
    )


def _critic(detail: float) -> Critic.Config:
    """A critic that looks in such waves. In coarser ones it took all places across the lanes of "u"
    for one, and whoever was to stop in the middle stopped at a wall."""
    return Critic.Config(distance=WaveQuasimetric.Config(detail=detail))


def point_maze_medium() -> Config:
    """The same in the maze "medium", of 6 by 6 cells; what is a unit of the state spans more."""
    base = point_maze()
    assert isinstance(base.life, Live)
    world = replace(base.world, options={**base.world.options, "map": "medium"})
    return replace(
        base,
        recipe="point-maze-medium",
        world=world,
        evaluation=world,
        critic=_critic(detail=2),  # its lanes are as wide, but many
        life=replace(base.life, worlds=3000),
        objective=replace(base.objective, learning=replace(base.objective.learning, steps=3000)),
        teacher=Separate(fading=True, learning=Learning(steps=2500, batch=256, lr=2e-3)),
    )


def point_maze_pixels() -> Config:
    """The maze "u" seen from above: points in the image and how they move make the state."""
    return replace(_seen(point_maze(), "point-maze-pixels"), critic=_critic(detail=7))


def point_maze_medium_pixels() -> Config:
    """The maze "medium" seen from above."""
    return _seen(point_maze_medium(), "point-maze-medium-pixels")


def _seen(base: Config, recipe: str) -> Config:
    """From above, with room in the state for velocities, and more reason to keep them: a ball that
    is thrown back by walls moves less evenly than a body that slides along them, and four numbers
    had come to hold bends of its place in place of its velocity."""
    config = from_above(base, recipe)
    assert isinstance(config.perception, KeypointEncoder.Config)
    weights = replace(config.objective.weights, inverse=4)
    return replace(
        config, perception=replace(config.perception, state=6),
        objective=replace(config.objective, weights=weights),
    )  # fmt: skip
