"""Reach and push: an arm and a hand with the physics of MuJoCo."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, override
from ami_agent.training import CollectBehaviour, DistillPlanner, TrainJEPA, TrainQuasimetric
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import STATE_WEIGHTS
from modules.actor.planning import GradientPlannerConfig
from modules.cost.goal_critic import FourierQuasimetricConfig, GoalCriticConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import FourierDynamicsConfig
from modules.world_model.jepa import WorldModelConfig


def reach() -> Config:
    """An arm of two coupled joints, learnt from random torques alone. A goal is the arm at rest;
    nothing is in the way, so one level is enough."""
    env = EnvConfig(id="ami/Reach-v0", options={"obs_type": "state"})
    return Config(
        recipe="reach",
        env=env,
        eval_env=env,
        perception=MultiModalEncoderConfig(vector_dim=6, num_frequencies=0),
        world_model=WorldModelConfig(dynamics=FourierDynamicsConfig(frequency_scale=1.0)),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(distance=FourierQuasimetricConfig(frequency_scale=1.0))
        ),
        actor=ActorConfig(
            planner=GradientPlannerConfig(horizon=6, num_proposals=2, num_warm_starts=1)
        ),
        stages={
            "collect": CollectBehaviour(num_envs=2000, steps=50, options={"max_episode_steps": 50}),
            "train_jepa": TrainJEPA(
                weights=STATE_WEIGHTS, optim=OptimConfig(steps=2000, batch_size=128, lr=2e-3)
            ),
            "train_goal_critic": TrainQuasimetric(
                optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
            "distill_policy": DistillPlanner(
                rounds=8, num_envs=64, steps=30, optim=OptimConfig(steps=2000, batch_size=256)
            ),
        },
    )


def push() -> Config:
    """A block, learnt from the behaviour policy alone: how the hand moves it in contact, and how to
    get round to its other side. A goal is the block at its place, the hand beside it."""
    env = EnvConfig(id="ami/Push-v0", options={"obs_type": "state"})
    return override(
        reach(),
        {
            "recipe": "push",
            "env": env,
            "eval_env": env,
            "perception.vector_dim": 8,
            "actor.planner.horizon": 8,
            "stages.collect.num_envs": 3000,
            "stages.train_jepa.optim.steps": 3000,
            "stages.train_goal_critic.optim.steps": 5000,
            "stages.distill_policy.rounds": 4,
        },
    )
