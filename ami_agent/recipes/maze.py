"""Mazes: far goals."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import (
    Ascend,
    Distil,
    Live,
    NoLesson,
    Predict,
    Separate,
    ShortestPaths,
    Survey,
)
from ami_agent.life import WorldConfig
from modules.bounds import Ball
from modules.configurator import Assignment
from modules.cost import Critic
from modules.distance import GlanceQuasimetric, WaveQuasimetric
from modules.dynamics import GlanceDynamics, WaveDynamics
from modules.hierarchy import ImaginedGraph, LandmarkGraph, MacroLevels
from modules.objectives import Weights
from modules.perception import KeypointEncoder, SceneEncoder, Senses
from modules.planners import GradientPlanner
from modules.world_model import WorldModel


def maze() -> Config:
    """One maze of 5 by 5 cells, known from short walks: far goals are reached from landmark to
    landmark of a level above. What is perceived is smooth, what walls do is sharp."""
    world = WorldConfig(id="ami/Maze-v0", options={"size": 5, "maze_seed": 0, "obs_type": "state"})
    return Config(
        recipe="maze",
        world=world,
        evaluation=world,
        bounds=Ball(),
        perception=Senses.Config(vector=4, waves=0),
        world_model=WorldModel.Config(dynamics=WaveDynamics.Config()),
        critic=Critic.Config(distance=WaveQuasimetric.Config()),
        hierarchy=LandmarkGraph.Config(),
        planner=GradientPlanner.Config(proposals=2, carried=1),
        # by distance for who is judged; the policy practises with goals at any
        tasks={
            "reach": Assignment(aim="world"),
            "short": Assignment(aim="world", options={"goal_distance": "short"}),
            "medium": Assignment(aim="world", options={"goal_distance": "medium"}),
            "long": Assignment(aim="world", options={"goal_distance": "long"}),
        },
        life=Live(worlds=2000, steps=50, options={"max_episode_steps": 50}),
        objective=Predict(
            weights=Weights(prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1),
            learning=Learning(steps=2000, batch=128, lr=2e-3),
        ),
        teacher=Separate(learning=Learning(steps=1500, batch=256, lr=2e-3)),
        survey=Survey(),
        distil=Distil(rounds=8, worlds=64, steps=30, learning=Learning(steps=3000, batch=256)),
    )


def maze_levels() -> Config:
    """The same maze with a learnt level above, which plans macro-actions, in the place of
    landmarks."""
    return replace(
        maze(), recipe="maze-levels", hierarchy=MacroLevels.Config(), survey=NoLesson(),
        ascend=Ascend(),
    )  # fmt: skip


def maze_pixels() -> Config:
    """The same maze seen from above: points in the image and how they move make the state."""
    return from_above(maze(), "maze-pixels")


def from_above(base: Config, recipe: str) -> Config:
    """A recipe for a maze, of one who sees an image of it instead of where he is and how fast."""
    world = replace(base.world, options={**base.world.options, "obs_type": "image"})
    return replace(
        base,
        recipe=recipe,
        world=world,
        evaluation=world,
        perception=KeypointEncoder.Config(now=(0, 1), before=(0, 2)),
    )


def _larger(recipe: str, size: int, *, walks: int, steps: int, landmarks: int) -> Config:
    """A maze of so many cells to a side; what is a unit of the state spans more cells."""
    base, finer = maze(), size / 5
    world = replace(base.world, options={**base.world.options, "size": size})
    assert isinstance(base.teacher, Separate)
    assert isinstance(base.life, Live)
    return replace(
        base,
        recipe=recipe,
        world=world,
        evaluation=world,
        world_model=WorldModel.Config(dynamics=WaveDynamics.Config(waves=256, detail=3.5 * finer)),
        critic=Critic.Config(distance=WaveQuasimetric.Config(waves=256, detail=2 * finer)),
        hierarchy=LandmarkGraph.Config(landmarks=landmarks),
        life=replace(base.life, worlds=walks),
        objective=replace(base.objective, learning=replace(base.objective.learning, steps=steps)),
        teacher=replace(base.teacher, learning=replace(base.teacher.learning, steps=steps)),
        survey=Survey(remembered=20 * landmarks),
    )


def maze_7() -> Config:
    """A maze of 7 by 7 cells."""
    return _larger("maze-7", 7, walks=4000, steps=3000, landmarks=600)


def maze_9() -> Config:
    """A maze of 9 by 9 cells."""
    return _larger("maze-9", 9, walks=8000, steps=6000, landmarks=900)


def maze_random() -> Config:
    """A maze for every episode, of 3 by 3 cells, seen from above and judged in mazes never seen:
    what walls do and how far it is around them is learnt once for all mazes, and the landmarks of
    this one are imagined."""
    base, numbers = maze(), 400  # of the map, beside 4 that move
    world = WorldConfig(id="ami/Maze-v0", options={"size": 3, "split": "train"})
    return replace(
        base,
        recipe="maze-random",
        world=world,
        evaluation=replace(world, options={**world.options, "split": "test"}),
        perception=SceneEncoder.Config(),
        world_model=WorldModel.Config(dynamics=GlanceDynamics.Config()),
        critic=Critic.Config(distance=GlanceQuasimetric.Config()),
        hierarchy=ImaginedGraph.Config(),
        life=Live(
            worlds=300, steps=640, options={"max_episode_steps": 640, "directed_fraction": 0.7}
        ),
        objective=Predict(
            # these two are means over all numbers, and the few that move are to count
            weights=Weights(
                prediction=2.5 * numbers, variance=numbers, covariance=0, similarity=0, inverse=1
            ),
            learning=Learning(steps=2500, batch=64, lr=2e-3),
            length=6,
        ),
        teacher=Separate(together=32, learning=Learning(steps=600, batch=256, lr=2e-3)),
        # joined is only what is nearer than two bodies with a wall between can be
        paths=ShortestPaths(
            hop=0.8, together=64, learning=Learning(steps=3000, batch=512, lr=2e-3)
        ),
        survey=NoLesson(),
    )
