"""Any Gymnasium environment: the components are chosen by its spaces."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from math import ceil, prod

from gymnasium import spaces

from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.config import ActorConfig, Config, CostConfig
from ami_agent.training import (
    CollectBehaviour,
    LoadDataset,
    OfflineActorCritic,
    OnlineActorCritic,
    TrainJEPA,
)
from ami_agent.training.critics import DEFAULT_EPISODE_STEPS, discount_for
from ami_agent.training.hindsight import has_compute_reward
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import IDENTITY_WEIGHTS, LossWeights
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BoxActions, OneHotActions, PolicyConfig
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.value_critics import ValueCriticsConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import TransitionHeadConfig, WorldModelConfig

LARGE_SPACE = 16
"""Numbers that vary in observation and action together, above which layers are wider."""

IMAGE_WEIGHTS = LossWeights(
    prediction=20,
    variance=16,
    covariance=1,
    temporal_similarity=0,
    inverse_dynamics=1,
    interoception=4,
)
DEFAULT_ENV = EnvConfig(id="Pendulum-v1")
NO_DATASET = LoadDataset()


def gym(env: EnvConfig = DEFAULT_ENV, data: LoadDataset = NO_DATASET) -> Config:
    """Any Gymnasium environment (`--env.id ID`): its reward is a drive, and acting and training
    alternate; with a data set (`--data.minari ID`) the agent learns from that alone."""
    env = replace(env, terminal_channel=True)
    with closing(env.build(1)) as adapter:
        spec, registered = adapter.spec, adapter.unwrapped.spec
        episode_steps, _ = adapter.max_episode_steps()
        dataset = data.with_all_steps(adapter) if data != NO_DATASET else None
        fields = [f for f in adapter.obs_fields.values() if len(f.modality.shape) < 3]
        num_varying = sum(_num_varying(field.space) for field in fields)
        num_varying += len(spec.choices) or spec.action_dim
    if not registered.max_episode_steps and not env.max_episode_steps:
        env = _with_time_limit(env, spec, max(DEFAULT_EPISODE_STEPS, ceil(episode_steps)))
    has_images = len(fields) < len(spec.shapes)
    hidden = 256 if num_varying > LARGE_SPACE else 128
    # vectors are states as they are; representations of images are learnt, and could collapse
    weights = IMAGE_WEIGHTS if has_images else replace(IDENTITY_WEIGHTS, interoception=1)
    optim = OptimConfig(steps=0, batch_size=128, final_lr_fraction=0.2)
    objective = TrainJEPA(weights=weights, optim=optim, length=3)
    hindsight = 0.8 if has_compute_reward(spec, env) else 0.0
    noise = 0.5 if spec.choices else 0.2
    return Config(
        recipe="gym",
        env=env,
        eval_env=env,
        action_space=OneHotActions(sizes=spec.choices) if spec.choices else BoxActions(),
        # an image is encoded in about 8 by 8 patches
        perception=MultiModalEncoderConfig(vector_dim=0, patch=0 if has_images else 8),
        world_model=WorldModelConfig(
            dynamics=MLPDynamicsConfig(hidden=hidden),
            interoception_head=TransitionHeadConfig(hidden=hidden),
        ),
        cost=CostConfig(
            drives=("reward",),
            goal_critic=None,
            value_critics=ValueCriticsConfig(
                hidden=hidden,
                discount=discount_for(episode_steps) if episode_steps else 0,
                num_critics=2,
                norm=True,
            ),
        ),
        actor=ActorConfig(
            planner=GradientPlannerConfig(horizon=6, num_proposals=2),
            policy=PolicyConfig(hidden=hidden),
        ),
        configurator=ConfiguratorConfig(critic=0.0),
        tasks={"reward": TaskSpec(drives={"reward": 1.0})},
        stages={
            "collect": dataset or CollectBehaviour(num_envs=1, steps=500),
            "train_jepa": replace(objective, optim=replace(optim, steps=500)),
            "actor_critic": OfflineActorCritic(train_jepa=objective, hindsight_fraction=hindsight)
            if dataset
            else OnlineActorCritic(
                train_jepa=objective, hindsight_fraction=hindsight, action_noise=noise
            ),
        },
    )


def _num_varying(space: spaces.Space) -> int:
    """The numbers of an observation that vary: one for each choice, although it is one-hot, and
    none where the bounds of a Box are equal."""
    if isinstance(space, spaces.Box):
        return int((space.low < space.high).sum())
    return 1 if isinstance(space, spaces.Discrete) else prod(space.shape or ())


def _with_time_limit(env: EnvConfig, spec: EnvironmentSpec, limit: int) -> EnvConfig:
    """The environment with a time limit; without one where single environments, which alone can
    have a limit, lack what the environment's own vector version has."""
    limited_env = replace(env, max_episode_steps=limit)
    try:
        with closing(limited_env.build(1)) as adapter:
            return limited_env if adapter.spec == spec else env
    except ConfigError:  # of the limit alone, for it was built without one
        return env
