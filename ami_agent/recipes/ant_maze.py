"""Ant Maze: a quadruped with the physics of MuJoCo finds its way."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig
from ami_agent.training import (
    CollectRandom,
    GoalConditionedBC,
    SelectLandmarks,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import LossWeights
from modules.actor.action_space import BoxActions
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import PolicyConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.cost import GoalCriticConfig
from modules.cost.quasimetric import FourierQuasimetricConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import WorldModelConfig


def ant_maze() -> Config:
    """The maze "u" for a quadruped, learnt from a trot controller with action noise. A goal is a
    position of the torso. A landmark graph gives subgoals, and the policy between them is trained
    by goal-conditioned behavioural cloning."""
    env = EnvConfig(id="ami/AntMaze-v0", options={"map": "u"})
    return Config(
        recipe="ant-maze",
        env=env,
        eval_env=env,
        action_space=BoxActions(),
        perception=MultiModalEncoderConfig(vector_dim=0),
        world_model=WorldModelConfig(dynamics=MLPDynamicsConfig(hidden=256)),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(distance=FourierQuasimetricConfig(goal_dims=2))
        ),
        actor=ActorConfig(
            subgoals=LandmarkGraphConfig(
                num_landmarks=200, trusted_edge_length=2.0, subgoal_spacing=2.0, stuck_after=80
            ),
            planner=GradientPlannerConfig(horizon=8, num_proposals=1, num_warm_starts=1),
            policy=PolicyConfig(hidden=512, goal_dims=2, relu=True),
        ),
        tasks={
            "reach": TaskSpec(goal_source="env"),
            "short": TaskSpec(goal_source="env", options={"goal_distance": "short"}),
            "long": TaskSpec(goal_source="env", options={"goal_distance": "long"}),
        },
        stages={
            "collect": CollectRandom(
                num_envs=200,
                steps=600,
                options={"max_episode_steps": 600, "directed_fraction": 0.6},
            ),
            "train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=0,
                    scaled_prediction=1,
                    variance=0,
                    covariance=0,
                    temporal_similarity=0,
                    inverse_dynamics=0,
                ),
                optim=OptimConfig(steps=1500, batch_size=128, lr=2e-3),
            ),
            "train_goal_critic": TrainQuasimetric(
                length=10, optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
            "select_landmarks": SelectLandmarks(num_windows=1000, length=40),
            "goal_bc": GoalConditionedBC(
                max_goal_offset=40, optim=OptimConfig(steps=5000, batch_size=512, lr=1e-3)
            ),
        },
    )
