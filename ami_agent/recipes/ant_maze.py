"""Ant Maze: a quadruped with the physics of MuJoCo finds its way."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Live, NoLesson, Predict, Retrace, Separate, Survey
from ami_agent.life import WorldConfig
from modules.actor import Policy
from modules.bounds import Box
from modules.configurator import Assignment
from modules.cost import Critic
from modules.distance import WaveQuasimetric
from modules.dynamics import VectorDynamics
from modules.hierarchy import LandmarkGraph
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.world_model import WorldModel


def ant_maze() -> Config:
    """The maze "u" for a quadruped, known from trots that were shaken. Goals are places, whatever
    the legs do there; a level above leads from landmark to landmark, and between them the policy
    does again what led somewhere."""
    world = WorldConfig(id="ami/AntMaze-v0", options={"map": "u"})
    return Config(
        recipe="ant-maze",
        world=world,
        evaluation=world,
        bounds=Box(),
        perception=Senses.Config(vector=0),
        world_model=WorldModel.Config(dynamics=VectorDynamics.Config(hidden=256)),
        critic=Critic.Config(distance=WaveQuasimetric.Config(aims=2)),
        hierarchy=LandmarkGraph.Config(landmarks=200, hop=2.0, stride=2.0, patience=80),
        planner=GradientPlanner.Config(horizon=8, proposals=1, carried=1),
        policy=Policy.Config(hidden=512, aims=2, kinks=True),
        tasks={
            "reach": Assignment(aim="world"),
            "short": Assignment(aim="world", options={"goal_distance": "short"}),
            "long": Assignment(aim="world", options={"goal_distance": "long"}),
        },
        life=Live(
            worlds=200, steps=600, options={"max_episode_steps": 600, "directed_fraction": 0.6}
        ),
        objective=Predict(
            weights=Weights(
                prediction=0, change=1, variance=0, covariance=0, similarity=0, inverse=0
            ),
            learning=Learning(steps=1500, batch=128, lr=2e-3),
        ),
        teacher=Separate(length=10, learning=Learning(steps=2500, batch=256, lr=2e-3)),
        survey=Survey(walks=1000, length=40),
        retrace=Retrace(ahead=40, learning=Learning(steps=5000, batch=512, lr=1e-3)),
        distil=NoLesson(),
    )
