"""Windy rooms: what can't be known, and what to do about it."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Distil, Live, Predict, Separate, Survey
from ami_agent.life import WorldConfig
from modules.bounds import Ball
from modules.configurator import Assignment
from modules.cost import Critic
from modules.distance import WaveQuasimetric
from modules.dynamics import WaveDynamics
from modules.hierarchy import LandmarkGraph
from modules.latents import SparseLatent
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.planners.outlook import ManyFutures
from modules.world_model import WorldModel


def windy_rooms() -> Config:
    """Two rooms on either side of a pit, and gusts of wind that come by chance: a latent variable
    of the world model stands for them, and plans are judged by what may come of them."""
    world = WorldConfig(id="ami/WindyRooms-v0", options={"layout_seed": 0, "obs_type": "state"})
    return Config(
        recipe="windy-rooms",
        world=world,
        evaluation=world,
        bounds=Ball(),
        perception=Senses.Config(vector=4, waves=0),
        world_model=WorldModel.Config(
            dynamics=WaveDynamics.Config(hidden=128, waves=32, detail=2.0),
            latent=SparseLatent.Config(size=4),
        ),
        critic=Critic.Config(distance=WaveQuasimetric.Config(hidden=128, waves=64, detail=3.0)),
        hierarchy=LandmarkGraph.Config(hop=1.0, stride=4.0),
        planner=GradientPlanner.Config(horizon=6, proposals=2, carried=1),
        futures=ManyFutures.Config(count=12),
        tasks={
            "reach": Assignment(aim="world"),
            "careful": Assignment(aim="world", tail=0.0),
        },
        life=Live(
            worlds=2000, steps=50, options={"max_episode_steps": 50, "start_region": "anywhere"}
        ),
        objective=Predict(
            weights=Weights(
                prediction=10,
                variance=4,
                covariance=0.5,
                similarity=0,
                inverse=1,
                information=0.001,
            ),
            learning=Learning(steps=1500, batch=128, lr=2e-3),
            length=5,
        ),
        teacher=Separate(learning=Learning(steps=2500, batch=256, lr=2e-3)),
        survey=Survey(),
        distil=Distil(
            imitate=("reach",),
            rounds=4,
            worlds=64,
            steps=30,
            learning=Learning(steps=2000, batch=256),
        ),
    )
