"""Cue Corridor: a task that needs memory."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, MemoryConfig
from ami_agent.training import CollectBehaviour, DistillPlanner, TrainJEPA, TrainValue
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import LossWeights
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BallActions
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.value_critics import ValueCriticsConfig
from modules.memory.short_term import AttentionMemoryConfig
from modules.perception.image import ImageEncoderConfig
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import InteroceptionHeadConfig, WorldModelConfig


def cue_corridor() -> Config:
    """A cue that is visible at the start alone names the rewarded arm: the state depends on
    short-term memory. Variants: `--swap short_term=GRUMemory`, `--without memory`."""
    return Config(
        recipe="cue-corridor",
        env=EnvConfig(id="ami/CueCorridor-v0"),
        eval_env=EnvConfig(id="ami/CueCorridor-v0"),
        action_space=BallActions(),
        perception=ImageEncoderConfig(patch=4),
        memory=MemoryConfig(short_term=AttentionMemoryConfig()),
        world_model=WorldModelConfig(
            dynamics=MLPDynamicsConfig(hidden=256), interoception_head=InteroceptionHeadConfig()
        ),
        cost=CostConfig(
            drives=("reward",),
            goal_critic=None,
            value_critics=ValueCriticsConfig(discount=0.95),
        ),
        actor=ActorConfig(planner=GradientPlannerConfig()),
        configurator=ConfiguratorConfig(critic=0.0),
        tasks={"reward": TaskSpec(drives={"reward": 1.0})},
        stages={
            "collect": CollectBehaviour(
                num_envs=2000, steps=40, options={"directed_fraction": 0.9}
            ),
            "train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=4,
                    variance=8,
                    covariance=4,
                    temporal_similarity=0,
                    inverse_dynamics=2,
                    interoception=4,
                ),
                optim=OptimConfig(steps=500, batch_size=64, lr=1.5e-3),
                length=6,
                context_steps=16,
            ),
            "train_values": TrainValue(
                expectile=0.9, td_lambda=0.7, optim=OptimConfig(steps=2000, batch_size=256)
            ),
            "distill_policy": DistillPlanner(
                rounds=3, num_envs=64, steps=30, optim=OptimConfig(steps=1500, batch_size=256)
            ),
        },
    )
