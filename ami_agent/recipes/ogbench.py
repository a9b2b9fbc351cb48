"""The data sets of OGBench (Park et al. 2025, arXiv 2410.20092) and their official tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config, override
from ami_agent.data.make_ogbench import PIXELS, check_ogbench
from ami_agent.recipes.goals import FREQUENCY_SCALE, goals
from ami_agent.recipes.gym import NO_DATASET
from ami_agent.training import GoalConditionedBC, LoadDataset, TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.representation_losses import STATE_WEIGHTS
from modules.actor.policy import PolicyConfig
from modules.configurator import TaskSpec
from modules.cost.goal_critic import FourierQuasimetricConfig
from modules.perception.image import KeypointEncoderConfig
from modules.types import ConfigError
from modules.world_model.dynamics import FourierDynamicsConfig

DEFAULT_DATASET = EnvConfig(id="pointmaze-medium-navigate")
NUM_TASKS = 5
CHANCE = {
    "stages.train_jepa.exclude_chance": True,
    "stages.train_goal_critic.exclude_chance": True,
    "actor.subgoals.stochastic_edges": True,
}
"""For states that are positions alone, so that no motion is faster than the agent's own unless it
is chance, as in the maze "teleport"; in mazes without it this changes nothing."""
POINT_IN_PICTURES = {
    "perception": KeypointEncoderConfig(kernel=7, stride=4, subtract_background=True, state_dim=2),
    "world_model.dynamics": FourierDynamicsConfig(),
    "cost.goal_critic.distance": FourierQuasimetricConfig(frequency_scale=FREQUENCY_SCALE),
    "stages.train_jepa": TrainJEPA(
        weights=STATE_WEIGHTS, length=3, optim=OptimConfig(steps=1500, batch_size=64, lr=2e-3)
    ),
}
"""For a maze seen from above, of which only the position of the ball changes: that is the state, as
it is the observation in the mazes without pictures."""
BLOCKS = {"single": 1, "double": 2, "triple": 3, "quadruple": 4, "octuple": 8}
ARM_NUMBERS, BLOCK_NUMBERS = 19, 9
"""Numbers of an observation for the arm, and after them for each block: position, orientation, and
direction."""
EXCLUDED = re.compile(r"-singletask-|^online-|^powderworld-")
"""Environments of OGBench that have rewards instead of goals, or actions of another kind."""
VISUAL_POINT = "visual-pointmaze-"
RULES = ("navigate", "stitch", "explore", "play", "noisy")
"""How the data of a set were made; the last word of its name before the version."""


def ogbench(env: EnvConfig = DEFAULT_DATASET, data: LoadDataset = NO_DATASET) -> Config:
    """A data set of OGBench (`--env.id pointmaze-giant-navigate --data FILE`), evaluated as the
    benchmark does: five tasks, each with a goal of its own, success as the environment reports it.
    The agent learns from the recorded episodes alone."""
    check_ogbench()
    dataset, env = env.id, official_env(env)
    if data == NO_DATASET:
        raise ConfigError(
            f"{dataset} needs its recorded data: --data FILE, the file that OGBench publishes, or "
            "for point mazes and cubes one that "
            f"`ami data make ogbench {dataset} --out FILE` makes again"
        )
    config = goals(env, data)
    kind, *words = dataset.split("-")
    changes: Mapping[str, Any] = {}
    if kind == "pointmaze":
        changes = CHANCE
    elif kind == "cube":
        changes = cubes(BLOCKS[words[0]])
    elif dataset.startswith(VISUAL_POINT):
        config = override(config, POINT_IN_PICTURES)
        # in the other mazes a ball that reappears from behind a wall might be taken for chance
        changes = CHANCE if "teleport" in words else {}
    return override(config, {"recipe": "ogbench", "tasks": official_tasks(), **changes})


def cubes(num_blocks: int) -> dict[str, Any]:
    """Settings for so many cubes: a goal is about the positions of the blocks alone, of which the
    environment judges success, and the policy imitates what brings a block there soon. The arm has
    to go to a block before that moves, so landmarks between positions of blocks are no help."""
    blocks = [ARM_NUMBERS + BLOCK_NUMBERS * block for block in range(num_blocks)]
    positions = tuple(start + axis for start in blocks for axis in range(3))
    size = len(positions)
    return {
        "perception.leading_dims": positions,
        "configurator.goal_dims": size,
        "cost.goal_critic.distance": FourierQuasimetricConfig(frequency_scale=1.0, goal_dims=size),
        "actor.subgoals": None,
        "actor.policy": PolicyConfig(hidden=512, relu=True, goal_dims=size),
        "stages.train_goal_critic.optim.steps": 2000,
        "stages.select_landmarks": None,
        "stages.goal_bc": GoalConditionedBC(
            max_goal_offset=100,
            discount=0.975,
            absolute_error=True,
            optim=OptimConfig(steps=8000, batch_size=256, lr=5e-4),
        ),
    }


def official_tasks() -> dict[str, TaskSpec]:
    """The tasks of the benchmark, which `reach` stands for."""
    names = [f"task{number}" for number in range(1, NUM_TASKS + 1)]
    tasks = {
        name: TaskSpec(goal_source="env", reset_options={"task_id": number})
        for number, name in enumerate(names, 1)
    }
    return {"reach": TaskSpec(goal_source="env", members=tuple(names)), **tasks}


def official_env(env: EnvConfig) -> EnvConfig:
    """The environment of a data set, `pointmaze-giant-navigate` with or without "-v0"; ConfigError
    where OGBench has none. `visual-pointmaze-giant-navigate` is the same maze in pictures, drawn
    plainly: OGBench has the pictures, but not the name, nor data of them."""
    name = env.id.removesuffix("-v0")
    if name.startswith(VISUAL_POINT):
        env = replace(env, options={**PIXELS, **env.options}, plain_rendering=True)
        name = name.removeprefix("visual-")
    words = [word for word in name.split("-") if word not in RULES]
    env_id = "-".join([*words, "v0"])
    if env_id not in official_ids():
        known = [env_id.removesuffix("-v0") for env_id in official_ids()]
        known += [f"visual-{name}" for name in known if name.startswith("pointmaze-")]
        raise ConfigError(
            f"OGBench has no data set {env.id!r}; a name is that of an environment "
            f"({', '.join(known)}) and how its data were made ({', '.join(RULES)})"
        )
    imports = tuple(dict.fromkeys([*env.imports, "ogbench"]))
    return replace(env, id=env_id, imports=imports, own_numpy_random=True)


def official_ids() -> list[str]:
    """The goal-conditioned environments of OGBench."""
    return [
        env_id
        for env_id, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ogbench.") and not EXCLUDED.search(env_id)
    ]
