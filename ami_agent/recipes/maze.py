"""Mazes: far goals."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, override
from ami_agent.training import (
    CollectRandom,
    DistillPlanner,
    DistillShortestPaths,
    SelectLandmarks,
    TrainHierarchy,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import LossWeights
from modules.actor.action_space import BallActions
from modules.actor.planning import GradientPlannerConfig
from modules.actor.subgoals import ImaginedLandmarkGraphConfig, LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.cost import GoalCriticConfig
from modules.cost.quasimetric import (
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
)
from modules.perception.image import KeypointEncoderConfig, KeypointMapEncoderConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import (
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
)
from modules.world_model.hjepa import HierarchicalJEPAConfig
from modules.world_model.jepa import WorldModelConfig


def maze() -> Config:
    """One maze of 5 by 5 cells, learnt from short episodes of the behaviour policy. A landmark
    graph leads to far goals. The encoder is smooth; dynamics and critic resolve walls by Fourier
    features."""
    env = EnvConfig(id="ami/Maze-v0", options={"size": 5, "maze_seed": 0, "obs_type": "state"})
    return Config(
        recipe="maze",
        env=env,
        eval_env=env,
        action_space=BallActions(),
        perception=MultiModalEncoderConfig(vector_dim=4, num_frequencies=0),
        world_model=WorldModelConfig(dynamics=FourierDynamicsConfig()),
        cost=CostConfig(goal_critic=GoalCriticConfig(distance=FourierQuasimetricConfig())),
        actor=ActorConfig(
            subgoals=LandmarkGraphConfig(),
            planner=GradientPlannerConfig(num_proposals=2, num_warm_starts=1),
        ),
        # goals by distance, for evaluation; the policy trains with goals at any distance
        tasks={
            "reach": TaskSpec(goal_source="env"),
            "short": TaskSpec(goal_source="env", options={"goal_distance": "short"}),
            "medium": TaskSpec(goal_source="env", options={"goal_distance": "medium"}),
            "long": TaskSpec(goal_source="env", options={"goal_distance": "long"}),
        },
        stages={
            "collect": CollectRandom(num_envs=2000, steps=50, options={"max_episode_steps": 50}),
            "train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=10,
                    variance=4,
                    covariance=0.5,
                    temporal_similarity=0,
                    inverse_dynamics=1,
                ),
                optim=OptimConfig(steps=2000, batch_size=128, lr=2e-3),
            ),
            "train_goal_critic": TrainQuasimetric(
                optim=OptimConfig(steps=1500, batch_size=256, lr=2e-3)
            ),
            "select_landmarks": SelectLandmarks(),
            "distill_policy": DistillPlanner(
                rounds=8, num_envs=64, steps=30, optim=OptimConfig(steps=3000, batch_size=256)
            ),
        },
    )


def maze_levels() -> Config:
    """The same maze with a learnt level of the H-JEPA, which plans macro-actions, instead of
    landmarks."""
    return override(
        maze(),
        {
            "recipe": "maze-levels",
            "actor.subgoals": HierarchicalJEPAConfig(),
            "stages.select_landmarks": None,
            "stages.train_hierarchy": TrainHierarchy(),
        },
    )


def maze_pixels() -> Config:
    """The same maze from images: keypoints and their motion make the state."""
    return with_pixels(maze(), "maze-pixels")


def with_pixels(base: Config, recipe: str) -> Config:
    """A maze recipe with images instead of position and velocity."""
    env = replace(base.env, options={**base.env.options, "obs_type": "image"})
    return replace(
        base,
        recipe=recipe,
        env=env,
        eval_env=env,
        perception=KeypointEncoderConfig(current_channels=(0, 1), previous_channels=(0, 2)),
    )


def _scaled_maze(
    recipe: str, size: int, *, num_episodes: int, steps: int, landmarks: int
) -> Config:
    """A maze of `size` by `size` cells; a unit of the state spans more cells."""
    base, scale = maze(), size / 5
    env = replace(base.env, options={**base.env.options, "size": size})
    assert isinstance(base.stages["train_goal_critic"], TrainQuasimetric)
    assert isinstance(base.stages["collect"], CollectRandom)
    return override(
        base,
        {
            "recipe": recipe,
            "env": env,
            "eval_env": env,
            "world_model": WorldModelConfig(
                dynamics=FourierDynamicsConfig(num_frequencies=256, frequency_scale=3.5 * scale)
            ),
            "cost.goal_critic": GoalCriticConfig(
                distance=FourierQuasimetricConfig(num_frequencies=256, frequency_scale=2 * scale)
            ),
            "actor.subgoals": LandmarkGraphConfig(num_landmarks=landmarks),
            "stages.collect.num_envs": num_episodes,
            "stages.train_jepa.optim.steps": steps,
            "stages.train_goal_critic.optim.steps": steps,
            "stages.select_landmarks": SelectLandmarks(num_candidates=20 * landmarks),
        },
    )


def maze_7() -> Config:
    """A maze of 7 by 7 cells."""
    return _scaled_maze("maze-7", 7, num_episodes=4000, steps=3000, landmarks=600)


def maze_9() -> Config:
    """A maze of 9 by 9 cells."""
    return _scaled_maze("maze-9", 9, num_episodes=8000, steps=6000, landmarks=900)


def maze_random() -> Config:
    """A new maze of 3 by 3 cells in every episode, from images; the agent is evaluated in mazes
    that were not in training. Dynamics and distances around walls are learnt once for all mazes,
    and the landmarks of the present maze are imagined."""
    base, map_dims = maze(), 400  # numbers of the map, beside 4 that move
    env = EnvConfig(id="ami/Maze-v0", options={"size": 3, "split": "train"})
    return override(
        base,
        {
            "recipe": "maze-random",
            "env": env,
            "eval_env": replace(env, options={**env.options, "split": "test"}),
            "perception": KeypointMapEncoderConfig(),
            "world_model": WorldModelConfig(dynamics=GlimpseDynamicsConfig()),
            "cost.goal_critic": GoalCriticConfig(distance=GlimpseQuasimetricConfig()),
            "actor.subgoals": ImaginedLandmarkGraphConfig(),
            "stages.collect": CollectRandom(
                num_envs=300,
                steps=640,
                options={"max_episode_steps": 640, "directed_fraction": 0.7},
            ),
            "stages.train_jepa": TrainJEPA(
                # means over all numbers: these weights make the few that move count
                weights=LossWeights(
                    prediction=2.5 * map_dims,
                    variance=map_dims,
                    covariance=0,
                    temporal_similarity=0,
                    inverse_dynamics=1,
                ),
                optim=OptimConfig(steps=2500, batch_size=64, lr=2e-3),
                length=6,
            ),
            "stages.train_goal_critic": TrainQuasimetric(
                group_size=32, optim=OptimConfig(steps=600, batch_size=256, lr=2e-3)
            ),
            "stages.distill_paths": DistillShortestPaths(
                # shorter than the distance of two positions with a wall between them
                edge_length=0.8,
                group_size=64,
                optim=OptimConfig(steps=3000, batch_size=512, lr=2e-3),
            ),
            "stages.select_landmarks": None,
        },
    )
