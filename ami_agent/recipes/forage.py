"""Forage: several tasks in one environment."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, MemoryConfig
from ami_agent.training import (
    AmortizePlanning,
    CollectBehaviour,
    DistillPlanner,
    TrainJEPA,
    TrainValue,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import STATE_WEIGHTS
from modules.actor.auto_mode import AdaptiveActorConfig
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BallActions
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.value_critics import ValueCriticsConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import InteroceptionHeadConfig, WorldModelConfig


def forage() -> Config:
    """Energy, food that regrows, a hazard: one world model and four tasks, given by the
    weights of drives."""
    ignore_place = {"food": 0.0, "hazard": 0.0, "flag": 0.0, "energy": 0.0}
    return Config(
        recipe="forage",
        env=EnvConfig(id="ami/Forage-v0", options={"split": "train"}),
        eval_env=EnvConfig(id="ami/Forage-v0", options={"split": "test"}),
        action_space=BallActions(),
        perception=MultiModalEncoderConfig(vector_dim=12),
        memory=MemoryConfig(num_reference_obs=400),
        world_model=WorldModelConfig(
            dynamics=MLPDynamicsConfig(hidden=256), interoception_head=InteroceptionHeadConfig()
        ),
        cost=CostConfig(
            drives=("hunger", "pain", "taste", "reward"),
            goal_critic=None,
            value_critics=ValueCriticsConfig(discount=0.95),
        ),
        actor=ActorConfig(
            planner=GradientPlannerConfig(horizon=10), adaptive=AdaptiveActorConfig(slack=0.1)
        ),
        configurator=ConfiguratorConfig(
            critic=0.0,
            conditioned_on=("hunger", "taste", "pain", "reward", "boredom", "goal_distance"),
        ),
        tasks={
            "eat": TaskSpec(drives={"taste": 1.0}, options={"task": "eat"}),
            "flag": TaskSpec(drives={"reward": 1.0, "pain": 2.0}, options={"task": "flag"}),
            "explore": TaskSpec(
                weights={"boredom": 1.0}, modality_weights=ignore_place, options={"task": "explore"}
            ),
            "stay": TaskSpec(
                goal_source="current",
                weights={"goal_distance": 1.0, "control_cost": 0.05},
                modality_weights=ignore_place,
                options={"task": "stay"},
            ),
        },
        stages={
            "collect": CollectBehaviour(
                num_envs=1000, steps=205, options={"max_episode_steps": 40}
            ),
            "train_jepa": TrainJEPA(
                weights=replace(STATE_WEIGHTS, interoception=10),
                optim=OptimConfig(steps=5000, batch_size=128, lr=4e-3),
                length=8,
                task_modality_prob=0.3,
            ),
            "train_values": TrainValue(
                optim=OptimConfig(steps=2400, batch_size=128, lr=2e-3),
                td_lambda=0.5,
                expectile=0.5,
                num_imagined=12,
                horizon=6,
            ),
            "amortize_policy": AmortizePlanning(
                optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3),
                horizon=6,
                tasks=("eat", "flag"),
            ),
            "distill_policy": DistillPlanner(
                rounds=8,
                num_envs=64,
                steps=40,
                optim=OptimConfig(steps=1500, batch_size=512),
                imitated_tasks=("explore", "stay"),
            ),
        },
    )
