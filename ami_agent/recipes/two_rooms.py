"""Two Rooms: one layout, layouts that differ, and a background that distracts."""

from __future__ import annotations

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, override
from ami_agent.training import (
    CollectBehaviour,
    CollectWithPlanner,
    DistillPlanner,
    DistillShortestPaths,
    FinetuneDynamics,
    SelectLandmarks,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import STATE_WEIGHTS, LossWeights
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BallActions, StuckPerturbationConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.goal_critic import (
    ConvQuasimetricConfig,
    FourierQuasimetricConfig,
    GoalCriticConfig,
)
from modules.perception.image import ImageEncoderConfig, KeypointEncoderConfig, SpatialEncoderConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import (
    ConvDynamicsConfig,
    FourierDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.jepa import WorldModelConfig


def two_rooms() -> Config:
    """One layout: a vector state, and a goal critic learnt from reward-free episodes."""
    return Config(
        recipe="two-rooms",
        env=EnvConfig(id="ami/TwoRooms-v0", variant="fixed"),
        eval_env=EnvConfig(id="ami/TwoRooms-v0", variant="fixed"),
        action_space=BallActions(),
        perception=ImageEncoderConfig(patch=8),
        world_model=WorldModelConfig(dynamics=MLPDynamicsConfig(hidden=256)),
        actor=ActorConfig(planner=GradientPlannerConfig(warm_iterations=2)),
        configurator=ConfiguratorConfig(goal_distance=2.0),
        stages={
            "collect": CollectBehaviour(
                num_envs=1500, steps=32, options={"max_episode_steps": 32, "directed_fraction": 0.5}
            ),
            "train_jepa": TrainJEPA(optim=OptimConfig(steps=900, batch_size=128, lr=1.5e-3)),
            "train_goal_critic": TrainQuasimetric(optim=OptimConfig(steps=4000, batch_size=256)),
            "distill_policy": DistillPlanner(
                optim=OptimConfig(steps=2000, batch_size=512, lr=2e-3), steps=32
            ),
        },
    )


def two_rooms_slow() -> Config:
    """The layout of `two-rooms` for a dot ten times as slow: goals are a hundred steps away and
    more, and a landmark graph leads there. A keypoint makes the state, which resolves steps of a
    seventh of a pixel; the critic counts in units of ten steps."""
    env = EnvConfig(id="ami/TwoRooms-v0", variant="slow")
    return override(
        two_rooms(),
        {
            "recipe": "two-rooms-slow",
            "env": env,
            "eval_env": env,
            "perception": KeypointEncoderConfig(state_dim=2),
            "world_model": WorldModelConfig(dynamics=FourierDynamicsConfig()),
            "cost.goal_critic": GoalCriticConfig(distance=FourierQuasimetricConfig()),
            "actor.planner": GradientPlannerConfig(horizon=12, num_proposals=2, num_warm_starts=1),
            "actor.subgoals": LandmarkGraphConfig(stuck_after=10),
            # long enough to pass the door: where few episodes do, the critic takes it for a wall
            "stages.collect.num_envs": 250,
            "stages.collect.steps": 256,
            "stages.collect.options.max_episode_steps": 256,
            "stages.train_jepa": TrainJEPA(
                weights=STATE_WEIGHTS,
                optim=OptimConfig(steps=1300, batch_size=128, lr=2e-3),
            ),
            "stages.train_goal_critic": TrainQuasimetric(
                length=10, optim=OptimConfig(steps=2000, batch_size=256, lr=2e-3)
            ),
            "stages.select_landmarks": SelectLandmarks(num_windows=600, length=40),
            "stages.distill_policy.optim.steps": 5000,
        },
    )


def two_rooms_distracted() -> Config:
    """The layout of `two-rooms` before a background with moving distractors, which no action
    influences: the configurator sets the weight of that modality to 0."""
    env = EnvConfig(id="ami/TwoRooms-v0", variant="fixed", options={"num_distractors": 4})
    return override(
        two_rooms(),
        {
            "recipe": "two-rooms-distracted",
            "env": env,
            "eval_env": env,
            "perception": MultiModalEncoderConfig(),
            "configurator.modality_weights": {"background": 0.0},
            "actor.planner.warm_iterations": 4,
            "stages.train_jepa.optim.steps": 1300,
            "stages.distill_policy.optim.steps": 5000,
        },
    )


def two_rooms_random() -> Config:
    """Wall and door drawn per episode, 32x32 images; evaluated on layouts not in training.

    A map state, variance within an episode, a critic trained by dynamic programming."""
    return Config(
        recipe="two-rooms-random",
        env=EnvConfig(id="ami/TwoRooms-v0", variant="random", options={"split": "train"}),
        eval_env=EnvConfig(id="ami/TwoRooms-v0", variant="random", options={"split": "test"}),
        action_space=BallActions(),
        perception=SpatialEncoderConfig(patch=4),
        world_model=WorldModelConfig(dynamics=ConvDynamicsConfig()),
        cost=CostConfig(goal_critic=GoalCriticConfig(distance=ConvQuasimetricConfig())),
        actor=ActorConfig(
            planner=GradientPlannerConfig(num_proposals=2, num_warm_starts=1, warm_iterations=2),
            stuck_recovery=StuckPerturbationConfig(),
            policy_proposal=None,
        ),
        stages={
            "collect": CollectBehaviour(
                num_envs=320,
                steps=640,
                options={"max_episode_steps": 640, "directed_fraction": 0.7, "max_step": 1.45},
            ),
            "train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=4,
                    variance=8,
                    covariance=4,
                    variance_within=8,
                    covariance_within=4,
                    temporal_similarity=0,
                    inverse_dynamics=5,
                ),
                optim=OptimConfig(steps=2200, batch_size=64, lr=1.5e-3),
                length=5,
                group_size=4,
            ),
            "train_goal_critic": TrainQuasimetric(
                group_size=32, optim=OptimConfig(steps=1000, batch_size=128)
            ),
            "distill_paths": DistillShortestPaths(
                num_graphs=320, optim=OptimConfig(steps=3000, batch_size=256, lr=2e-3)
            ),
            # enough steps to meet the wall
            "planner_rollouts": CollectWithPlanner(steps=20),
            "finetune_dynamics": FinetuneDynamics(),
            "distill_policy": DistillPlanner(
                rounds=3, num_envs=96, steps=24, optim=OptimConfig(steps=1500, batch_size=256)
            ),
        },
    )


def two_rooms_eb_random() -> Config:
    """EB-JEPA's random walls (arXiv 2602.03604): 65x65 images, 200 steps, its success rule.

    The behaviour policy takes steps up to the length that the protocol allows when planning. Plans
    find where the world model lets them through the wall, which is two pixels thick, so there are
    more planner rollouts and more updates on them, states that the critic takes for out of reach
    cost the missing steps, and an agent that is stuck there leaves for longer each time.
    """
    return override(
        two_rooms_random(),
        {
            "recipe": "two-rooms-eb-random",
            "env.variant": "eb-random",
            "eval_env.variant": "eb-random",
            "perception.patch": 8,
            "actor.planner.warm_iterations": 4,
            "actor.stuck_recovery.max_steps": 16,
            "cost.goal_critic.reachability": 1.0,
            "stages.collect.options.max_step": 2.45,
            "stages.planner_rollouts.steps": 96,
            "stages.finetune_dynamics.optim.steps": 1500,
        },
    )


SWM_OFFSETS = (25, 50, 75, 100)


def two_rooms_swm() -> Config:
    """stable-worldmodel's `swm/TwoRoom-v1` (arXiv 2605.21800) from 224x224 images: learnt from the
    episodes of its noisy expert, and evaluated as published: start and goal are so many recorded
    steps apart, and an episode has twice as many."""
    env = EnvConfig(id="ami/TwoRooms-v0", variant="swm", image_downsample=4)
    tasks = {
        f"goal{offset}": TaskSpec(goal_source="env", options={"variant": f"swm-{offset}"})
        for offset in SWM_OFFSETS
    }
    return override(
        two_rooms(),
        {
            "recipe": "two-rooms-swm",
            "env": env,
            "eval_env": env,
            "perception.patch": 7,
            "tasks": {"reach": TaskSpec(goal_source="env", members=tuple(tasks)), **tasks},
            "stages.collect": CollectBehaviour(
                num_envs=500, steps=100, options={"max_episode_steps": 100}
            ),
        },
    )
