"""Reach: an arm with the physics of MuJoCo brings its fingertip to a place."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Distil, Live, Predict, Separate
from ami_agent.life import WorldConfig
from modules.bounds import Box
from modules.cost import Critic
from modules.distance import WaveQuasimetric
from modules.dynamics import WaveDynamics
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.world_model import WorldModel


def reach() -> Config:
    """An arm that is known from random motion alone: two joints that throw one another about, and a
    goal that is the arm at rest. Nothing is in the way, so one level will do."""
    world = WorldConfig(id="ami/Reach-v0", options={"obs_type": "state"})
    return Config(
        recipe="reach",
        world=world,
        evaluation=world,
        bounds=Box(),
        perception=Senses.Config(vector=6, waves=0),
        world_model=WorldModel.Config(dynamics=WaveDynamics.Config(detail=1.0)),
        critic=Critic.Config(distance=WaveQuasimetric.Config(detail=1.0)),
        planner=GradientPlanner.Config(horizon=6, proposals=2, carried=1),
        life=Live(worlds=2000, steps=50, options={"max_episode_steps": 50}),
        objective=Predict(
            weights=Weights(prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1),
            learning=Learning(steps=2000, batch=128, lr=2e-3),
        ),
        teacher=Separate(learning=Learning(steps=2500, batch=256, lr=2e-3)),
        distil=Distil(rounds=8, worlds=64, steps=30, learning=Learning(steps=2000, batch=256)),
    )
