"""Mazes, in which goals are far away: for a point, and with the physics of MuJoCo for a ball and a
quadruped."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import ActorConfig, Config, CostConfig, override
from ami_agent.training import (
    CollectBehaviour,
    DistillLandmarkPaths,
    DistillPlanner,
    DistillShortestPaths,
    GoalConditionedBC,
    SelectLandmarks,
    TrainHierarchy,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import IDENTITY_WEIGHTS, STATE_WEIGHTS
from modules.actor.planning import GradientPlannerConfig
from modules.actor.policy import BallActions, PolicyConfig
from modules.actor.subgoals import ImaginedLandmarkGraphConfig, LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.goal_critic import (
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    GoalCriticConfig,
)
from modules.perception.image import KeypointEncoderConfig, KeypointMapEncoderConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.world_model.dynamics import (
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.hjepa import HierarchicalJEPAConfig
from modules.world_model.jepa import WorldModelConfig


def _by_distance(*bands: str) -> dict[str, TaskSpec]:
    """Goals at any distance, with which the policy trains, and for evaluation goals by distance."""
    tasks = {band: TaskSpec(goal_source="env", options={"goal_distance": band}) for band in bands}
    return {"reach": TaskSpec(goal_source="env"), **tasks}


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
        tasks=_by_distance("short", "medium", "long"),
        stages={
            "collect": CollectBehaviour(num_envs=2000, steps=50, options={"max_episode_steps": 50}),
            "train_jepa": TrainJEPA(
                weights=STATE_WEIGHTS, optim=OptimConfig(steps=2000, batch_size=128, lr=2e-3)
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
    """The maze of `maze` with a learnt level of the H-JEPA, which plans macro-actions, instead of
    landmarks. Its distance, and the critic, learn from shortest paths over landmarks."""
    return override(
        maze(),
        {
            "recipe": "maze-levels",
            "actor.subgoals": HierarchicalJEPAConfig(
                subgoal_step=2, reachability=1.0, replan_every=3
            ),
            "stages.select_landmarks": None,
            "stages.train_hierarchy": TrainHierarchy(),
            "stages.distill_landmark_paths": DistillLandmarkPaths(),
        },
    )


def maze_pixels() -> Config:
    """The maze of `maze` from images: keypoints and their motion make the state."""
    return _with_pixels(maze(), "maze-pixels")


def _with_pixels(base: Config, recipe: str) -> Config:
    """A maze recipe with images instead of position and velocity."""
    return override(
        base,
        {
            "recipe": recipe,
            "env.options.obs_type": "image",
            "eval_env.options.obs_type": "image",
            "perception": KeypointEncoderConfig(current_channels=(0, 1), previous_channels=(0, 2)),
        },
    )


def _scaled_maze(
    recipe: str, size: int, *, num_episodes: int, steps: int, landmarks: int
) -> Config:
    """A maze of `size` by `size` cells; a unit of the state spans more cells."""
    scale = size / 5
    return override(
        maze(),
        {
            "recipe": recipe,
            "env.options.size": size,
            "eval_env.options.size": size,
            "world_model.dynamics": FourierDynamicsConfig(
                num_frequencies=256, frequency_scale=3.5 * scale
            ),
            "cost.goal_critic.distance": FourierQuasimetricConfig(
                num_frequencies=256, frequency_scale=2 * scale
            ),
            "actor.subgoals.num_landmarks": landmarks,
            "stages.collect.num_envs": num_episodes,
            "stages.train_jepa.optim.steps": steps,
            "stages.train_goal_critic.optim.steps": steps,
            "stages.select_landmarks.num_candidates": 20 * landmarks,
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
    map_dims = 400  # numbers of the map, beside 4 that move
    env = EnvConfig(id="ami/Maze-v0", options={"size": 3, "split": "train"})
    return override(
        maze(),
        {
            "recipe": "maze-random",
            "env": env,
            "eval_env": replace(env, options={**env.options, "split": "test"}),
            "perception": KeypointMapEncoderConfig(),
            "world_model.dynamics": GlimpseDynamicsConfig(),
            "cost.goal_critic.distance": GlimpseQuasimetricConfig(),
            "actor.subgoals": ImaginedLandmarkGraphConfig(),
            "stages.collect": CollectBehaviour(
                num_envs=300,
                steps=640,
                options={"max_episode_steps": 640, "directed_fraction": 0.7},
            ),
            # means over all numbers: these weights make the few that move count
            "stages.train_jepa": TrainJEPA(
                weights=replace(
                    STATE_WEIGHTS, prediction=2.5 * map_dims, variance=map_dims, covariance=0
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


CRITIC_SCALE = "cost.goal_critic.distance.frequency_scale"
"""Of the critic's Fourier features. With a lower one it takes all positions across a lane for one,
and the ball stops at a wall instead of in the middle."""


def point_maze() -> Config:
    """The recipe `maze` for a ball that MuJoCo moves, in the maze "u"."""
    env = EnvConfig(id="ami/PointMaze-v0", options={"map": "u", "obs_type": "state"})
    return override(maze(), {"recipe": "point-maze", "env": env, "eval_env": env, CRITIC_SCALE: 5})


def point_maze_medium() -> Config:
    """The recipe `maze` for a ball that MuJoCo moves, in the maze "medium" of 6 by 6 cells; a unit
    of the state spans more of it."""
    return override(
        point_maze(),
        {
            "recipe": "point-maze-medium",
            "env.options.map": "medium",
            "eval_env.options.map": "medium",
            # its lanes are as wide as those of "u", but there are more of them
            CRITIC_SCALE: 2,
            "stages.collect.num_envs": 3000,
            "stages.train_jepa.optim.steps": 3000,
            "stages.train_goal_critic.log_push": True,
            "stages.train_goal_critic.optim.steps": 2500,
        },
    )


def point_maze_pixels() -> Config:
    """The recipe `point-maze` from images: keypoints and their motion make the state."""
    config = _with_pixels_and_velocity(point_maze(), "point-maze-pixels")
    return override(config, {CRITIC_SCALE: 7})


def point_maze_medium_pixels() -> Config:
    """The recipe `point-maze-medium` from images."""
    return _with_pixels_and_velocity(point_maze_medium(), "point-maze-medium-pixels")


def _with_pixels_and_velocity(base: Config, recipe: str) -> Config:
    """From images, with six numbers of state instead of four and a higher weight of inverse
    dynamics: a ball bounces off walls, and four numbers came to hold functions of its position
    instead of its velocity."""
    return override(
        _with_pixels(base, recipe),
        {"perception.state_dim": 6, "stages.train_jepa.weights.inverse_dynamics": 4},
    )


def ant_maze() -> Config:
    """The maze "u" for a quadruped, learnt from a trot controller with action noise. A goal is a
    position of the torso. A landmark graph gives subgoals, and the policy between them is trained
    by goal-conditioned behavioural cloning."""
    env = EnvConfig(id="ami/AntMaze-v0", options={"map": "u"})
    return Config(
        recipe="ant-maze",
        env=env,
        eval_env=env,
        perception=MultiModalEncoderConfig(vector_dim=0),
        world_model=WorldModelConfig(dynamics=MLPDynamicsConfig(hidden=256)),
        cost=CostConfig(
            goal_critic=GoalCriticConfig(distance=FourierQuasimetricConfig(goal_dims=2))
        ),
        actor=ActorConfig(
            subgoals=LandmarkGraphConfig(
                num_landmarks=200, trusted_edge_length=2.0, subgoal_spacing=2.0, stuck_after=80
            ),
            planner=GradientPlannerConfig(horizon=8, num_proposals=1, num_warm_starts=1),
            policy=PolicyConfig(hidden=512, goal_dims=2, relu=True),
        ),
        tasks=_by_distance("short", "long"),
        stages={
            "collect": CollectBehaviour(
                num_envs=200,
                steps=600,
                options={"max_episode_steps": 600, "directed_fraction": 0.6},
            ),
            "train_jepa": TrainJEPA(
                weights=IDENTITY_WEIGHTS,
                optim=OptimConfig(steps=1500, batch_size=128, lr=2e-3),
            ),
            "train_goal_critic": TrainQuasimetric(
                length=10, optim=OptimConfig(steps=2500, batch_size=256, lr=2e-3)
            ),
            "select_landmarks": SelectLandmarks(num_windows=1000, length=40),
            "goal_bc": GoalConditionedBC(
                max_goal_offset=40, optim=OptimConfig(steps=5000, batch_size=512, lr=1e-3)
            ),
        },
    )
