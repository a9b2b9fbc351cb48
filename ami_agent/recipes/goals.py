"""Any environment that names goals of its own, in `info["goal"]` or as the `desired_goal` of its
observations: the components are chosen by its spaces, and the agent learns from recorded episodes,
or from steps of its own where there are none."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from math import prod

from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.goal_env import ACHIEVED_GOAL, goal_size
from ami_agent.config import ActorConfig, Config, CostConfig, StageConfig
from ami_agent.recipes.gym import IMAGE_WEIGHTS, NO_DATASET
from ami_agent.training import (
    CollectBehaviour,
    DistillPlanner,
    GoalConditionedBC,
    LoadDataset,
    SelectLandmarks,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import IDENTITY_WEIGHTS
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BoxActions, OneHotActions, PolicyConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.goal_critic import FourierQuasimetricConfig, GoalCriticConfig, QuasimetricConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError
from modules.world_model.dynamics import FourierDynamicsConfig, MLPDynamicsConfig
from modules.world_model.jepa import WorldModelConfig

DEFAULT_ENV = EnvConfig(id="ami/PointMaze-v0", options={"map": "u", "obs_type": "state"})
LOW_DIMENSIONAL = 8
"""Numbers of an observation up to which Fourier features resolve walls; phases of more numbers
than that are random."""
FREQUENCY_SCALE = 4.0
"""Radians per standard deviation of the observations: the critic resolves lanes a quarter of that
wide."""
UNIT = 10
"""Steps that make a distance of 1. Noise moves an agent as far as its aim does in one step, but not
in ten."""


def goals(env: EnvConfig = DEFAULT_ENV, data: LoadDataset = NO_DATASET) -> Config:
    """Any environment with goals of its own (`--env.id ID`), from recorded episodes (`--data PATH`)
    or from steps of its behaviour policy or of random actions. A landmark graph leads to far
    goals. Where a goal is a part of an observation (`desired_goal`), the critic and the policy
    compare that part alone."""
    with closing(env.build(1)) as adapter:
        goal_dims = goal_size(adapter.vector_env.single_observation_space)
    env = replace(env, goal_from_obs=env.goal_from_obs or goal_dims > 0)
    with closing(env.build(1)) as adapter:
        spec = adapter.spec
        dataset = data.with_all_steps(adapter) if data != NO_DATASET else None
    has_images = any(len(shape) == 3 for shape in spec.shapes.values())
    size = sum(map(prod, spec.shapes.values()))
    if goal_dims and spec.shapes.get(ACHIEVED_GOAL) != (goal_dims,):
        raise ConfigError(
            f"{env.id} names goals of {goal_dims} numbers, and {ACHIEVED_GOAL!r} is no vector of "
            "them: --env.obs-layout must leave it as it is"
        )
    is_low = not has_images and size <= LOW_DIMENSIONAL
    weights = IMAGE_WEIGHTS if has_images else IDENTITY_WEIGHTS
    optim = OptimConfig(steps=3000, batch_size=256)
    policy: dict[str, StageConfig]
    if dataset:  # recorded actions have aims that are worth repeating; random ones have not
        policy = {"goal_bc": GoalConditionedBC(max_goal_offset=2 * UNIT, optim=optim)}
    else:
        policy = {"distill_policy": DistillPlanner(num_envs=64, steps=30, rounds=8, optim=optim)}
    return Config(
        recipe="goals",
        env=env,
        eval_env=env,
        action_space=OneHotActions(sizes=spec.choices) if spec.choices else BoxActions(),
        perception=MultiModalEncoderConfig(vector_dim=0, patch=0 if has_images else 8),
        world_model=WorldModelConfig(
            dynamics=FourierDynamicsConfig() if is_low else MLPDynamicsConfig(hidden=256)
        ),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(
                distance=FourierQuasimetricConfig(
                    frequency_scale=FREQUENCY_SCALE, goal_dims=goal_dims
                )
                if is_low or goal_dims
                else QuasimetricConfig(hidden=256)
            )
        ),
        actor=ActorConfig(
            subgoals=LandmarkGraphConfig(
                num_landmarks=500,
                trusted_edge_length=2.0,
                subgoal_spacing=2.0,
                max_edges=16,  # enough for all subgoals of a plan
                stuck_after=4 * UNIT,
            ),
            planner=GradientPlannerConfig(num_proposals=2, num_warm_starts=1),
            policy=PolicyConfig(hidden=256, goal_dims=goal_dims),
        ),
        # the critic has minima of its own in corners that the data hardly visit, where a plan would
        # stay; towards a subgoal nearby the straight line is right, and leads out of them
        configurator=ConfiguratorConfig(goal_distance=50.0, goal_dims=goal_dims),
        tasks={"reach": TaskSpec(goal_source="env")},
        stages={
            "collect": dataset or CollectBehaviour(num_envs=100, steps=500),
            "train_jepa": TrainJEPA(
                weights=weights, optim=OptimConfig(steps=1500, batch_size=128, lr=2e-3)
            ),
            "train_goal_critic": TrainQuasimetric(
                length=UNIT,
                log_push=True,
                optim=OptimConfig(steps=5000, batch_size=256, lr=2e-3),
            ),
            "select_landmarks": SelectLandmarks(num_candidates=10_000, length=2 * UNIT),
            **policy,
        },
    )
