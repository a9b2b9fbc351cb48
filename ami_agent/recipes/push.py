"""Push: a hand with the physics of MuJoCo pushes a block to a place."""

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


def push() -> Config:
    """A block that is known from play alone: what a hand does to it in touch, and how to come
    round to its other side. A goal is the block in its place, the hand beside it."""
    world = WorldConfig(id="ami/Push-v0", options={"obs_type": "state"})
    return Config(
        recipe="push",
        world=world,
        evaluation=world,
        bounds=Box(),
        perception=Senses.Config(vector=8, waves=0),
        world_model=WorldModel.Config(dynamics=WaveDynamics.Config(detail=1.0)),
        critic=Critic.Config(distance=WaveQuasimetric.Config(detail=1.0)),
        planner=GradientPlanner.Config(horizon=8, proposals=2, carried=1),
        life=Live(worlds=3000, steps=50, options={"max_episode_steps": 50}),
        objective=Predict(
            weights=Weights(prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1),
            learning=Learning(steps=3000, batch=128, lr=2e-3),
        ),
        teacher=Separate(learning=Learning(steps=5000, batch=256, lr=2e-3)),
        distil=Distil(rounds=4, worlds=64, steps=30, learning=Learning(steps=2000, batch=256)),
    )
