"""Hidden Food: a task that needs memory of earlier episodes."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, MemoryConfig
from ami_agent.training import CollectBehaviour, TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import IDENTITY_WEIGHTS
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BallActions
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.memory.lasting import LastingMemoryConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import InteroceptionHeadConfig, WorldModelConfig


def hidden_food() -> Config:
    """Food that can't be observed lies where it lay in the episode before: boredom finds it in the
    first episode of a lifetime, lasting memory in the later ones. Variant: `--without
    lasting_memory`."""
    env = EnvConfig(id="ami/HiddenFood-v0")
    return Config(
        recipe="hidden-food",
        env=env,
        eval_env=env,
        action_space=BallActions(),
        perception=MultiModalEncoderConfig(vector_dim=0),
        memory=MemoryConfig(lasting=LastingMemoryConfig(weight=10.0)),
        world_model=WorldModelConfig(
            dynamics=MLPDynamicsConfig(hidden=64),
            interoception_head=InteroceptionHeadConfig(),
        ),
        cost=CostConfig(drives=("taste",), goal_critic=None),
        actor=ActorConfig(
            planner=GradientPlannerConfig(horizon=6, iterations=16, warm_iterations=8),
            policy_proposal=None,
        ),
        configurator=ConfiguratorConfig(critic=0.0),
        tasks={
            "eat": TaskSpec(
                drives={"taste": 1.0}, weights={"boredom": 1.0}, episodes_per_lifetime=4
            )
        },
        stages={
            "collect": CollectBehaviour(
                num_envs=500,
                steps=41,
                options={"max_episode_steps": 40, "later_episode_steps": 40},
            ),
            "train_jepa": TrainJEPA(
                weights=IDENTITY_WEIGHTS,
                optim=OptimConfig(steps=1000, batch_size=128, lr=2e-3),
                length=3,
            ),
        },
    )
