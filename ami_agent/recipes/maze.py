"""Mazes: far goals."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Distil, Live, Predict, Separate, Survey
from ami_agent.life import WorldConfig
from modules.bounds import Ball
from modules.configurator import Assignment
from modules.cost import Critic, WaveQuasimetric
from modules.dynamics import WaveDynamics
from modules.hierarchy import LandmarkGraph
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.world_model import WorldModel


def maze() -> Config:
    """One maze of 5 by 5 cells, known from short walks: far goals are reached from landmark to
    landmark of a level above. What is perceived is smooth, what walls do is sharp."""
    world = WorldConfig(id="ami/Maze-v0", options={"size": 5, "maze": 0, "senses": "state"})
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
        tasks={
            "reach": Assignment(aim="world"),
            "short": Assignment(aim="world", options={"goals": "short"}),
            "medium": Assignment(aim="world", options={"goals": "medium"}),
            "long": Assignment(aim="world", options={"goals": "long"}),
        },
        life=Live(worlds=2000, steps=50, options={"budget": 50}),
        objective=Predict(
            weights=Weights(prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1),
            learning=Learning(steps=2000, batch=128, lr=2e-3),
        ),
        teacher=Separate(learning=Learning(steps=1500, batch=256, lr=2e-3)),
        survey=Survey(),
        distil=Distil(rounds=8, worlds=64, steps=30, learning=Learning(steps=3000, batch=256)),
    )
