"""Push: a hand with the physics of MuJoCo pushes a block to a place."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig
from ami_agent.training import CollectRandom, DistillPlanner, TrainJEPA, TrainQuasimetric
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import LossWeights
from modules.actor.action_space import BoxActions
from modules.actor.planning import GradientPlannerConfig
from modules.cost.cost import GoalCriticConfig
from modules.cost.quasimetric import FourierQuasimetricConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import FourierDynamicsConfig
from modules.world_model.jepa import WorldModelConfig


def push() -> Config:
    """A block, learnt from the behaviour policy alone: how the hand moves it in contact, and how to
    get round to its other side. A goal is the block at its place, the hand beside it."""
    env = EnvConfig(id="ami/Push-v0", options={"obs_type": "state"})
    return Config(
        recipe="push",
        env=env,
        eval_env=env,
        action_space=BoxActions(),
        perception=MultiModalEncoderConfig(vector_dim=8, num_frequencies=0),
        world_model=WorldModelConfig(dynamics=FourierDynamicsConfig(frequency_scale=1.0)),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(distance=FourierQuasimetricConfig(frequency_scale=1.0))
        ),
        actor=ActorConfig(
            planner=GradientPlannerConfig(horizon=8, num_proposals=2, num_warm_starts=1)
        ),
        stages={
            "collect": CollectRandom(num_envs=3000, steps=50, options={"max_episode_steps": 50}),
            "train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=10,
                    variance=4,
                    covariance=0.5,
                    temporal_similarity=0,
                    inverse_dynamics=1,
                ),
                optim=OptimConfig(steps=3000, batch_size=128, lr=2e-3),
            ),
            "train_goal_critic": TrainQuasimetric(
                optim=OptimConfig(steps=5000, batch_size=256, lr=2e-3)
            ),
            "distill_policy": DistillPlanner(
                rounds=4, num_envs=64, steps=30, optim=OptimConfig(steps=2000, batch_size=256)
            ),
        },
    )
