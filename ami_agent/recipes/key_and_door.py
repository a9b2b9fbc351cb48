"""Key and Door: choices in an order that no distance shows, from random experience."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig
from ami_agent.training import CollectBehaviour, TrainJEPA, TrainValue
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import IDENTITY_WEIGHTS
from modules.actor.planning import TreeSearchConfig
from modules.actor.policy import OneHotActions
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.value_critics import ValueCriticsConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import TransitionHeadConfig, WorldModelConfig


def key_and_door() -> Config:
    """A key, a locked door and a goal, in an order that the agent learns from random steps; Mode-2
    searches a tree."""
    return Config(
        recipe="key-and-door",
        env=EnvConfig(id="ami/KeyAndDoor-v0", terminal_channel=True),
        eval_env=EnvConfig(id="ami/KeyAndDoor-v0", terminal_channel=True),
        action_space=OneHotActions(sizes=(4,)),
        perception=MultiModalEncoderConfig(vector_dim=0),
        world_model=WorldModelConfig(
            dynamics=MLPDynamicsConfig(hidden=256),
            interoception_head=TransitionHeadConfig(hidden=256),
        ),
        cost=CostConfig(
            drives=("reward",),
            goal_critic=None,
            value_critics=ValueCriticsConfig(hidden=256, discount=0.95),
        ),
        actor=ActorConfig(planner=TreeSearchConfig(horizon=8, iterations=16)),
        configurator=ConfiguratorConfig(critic=0.0),
        tasks={"reward": TaskSpec(drives={"reward": 1.0})},
        stages={
            "collect": CollectBehaviour(num_envs=2000, steps=61),
            "train_jepa": TrainJEPA(
                weights=replace(IDENTITY_WEIGHTS, interoception=1),
                optim=OptimConfig(steps=2000, batch_size=256, lr=2e-3),
                length=3,
            ),
            "train_values": TrainValue(
                expectile=0.9, td_lambda=0.7, optim=OptimConfig(steps=1500, batch_size=256)
            ),
        },
    )
