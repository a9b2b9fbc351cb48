"""Windy rooms: what can't be known, and what to do about it."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig
from ami_agent.training import (
    CollectBehaviour,
    DistillPlanner,
    SelectLandmarks,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import STATE_WEIGHTS
from modules.actor.planning import GradientPlannerConfig
from modules.actor.planning.risk import ScenarioCVaRConfig
from modules.actor.policy import BallActions
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.goal_critic import FourierQuasimetricConfig, GoalCriticConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import FourierDynamicsConfig
from modules.world_model.jepa import WorldModelConfig
from modules.world_model.latents import SparseLatentConfig


def windy_rooms() -> Config:
    """Two rooms on either side of a pit, and gusts of wind at random: a latent variable of the
    world model represents them, and plans are evaluated over sampled futures (CVaR)."""
    env = EnvConfig(id="ami/WindyRooms-v0", options={"layout_seed": 0, "obs_type": "state"})
    return Config(
        recipe="windy-rooms",
        env=env,
        eval_env=env,
        action_space=BallActions(),
        perception=MultiModalEncoderConfig(vector_dim=4, num_frequencies=0),
        world_model=WorldModelConfig(
            dynamics=FourierDynamicsConfig(hidden=128, num_frequencies=32, frequency_scale=2.0),
            latent=SparseLatentConfig(size=4),
        ),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(
                distance=FourierQuasimetricConfig(
                    hidden=128, num_frequencies=64, frequency_scale=3.0
                )
            )
        ),
        actor=ActorConfig(
            subgoals=LandmarkGraphConfig(trusted_edge_length=1.0, subgoal_spacing=4.0),
            planner=GradientPlannerConfig(horizon=6, num_proposals=2, num_warm_starts=1),
            risk=ScenarioCVaRConfig(num_scenarios=12),
        ),
        tasks={
            "reach": TaskSpec(goal_source="env"),
            "risk-averse": TaskSpec(goal_source="env", cvar_alpha=0.0),
        },
        stages={
            "collect": CollectBehaviour(
                num_envs=2000,
                steps=50,
                options={"max_episode_steps": 50, "start_region": "anywhere"},
            ),
            "train_jepa": TrainJEPA(
                weights=replace(STATE_WEIGHTS, kl=0.001),
                optim=OptimConfig(steps=1500, batch_size=128, lr=2e-3),
                length=5,
            ),
            "train_goal_critic": TrainQuasimetric(
                optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
            "select_landmarks": SelectLandmarks(),
            "distill_policy": DistillPlanner(
                imitated_tasks=("reach",),
                rounds=4,
                num_envs=64,
                steps=30,
                optim=OptimConfig(steps=2000, batch_size=256),
            ),
        },
    )
