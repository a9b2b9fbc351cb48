"""Recipes: functions that return a Config, by name. `override` makes variants of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ami_agent.adapters.env import EnvConfig
from ami_agent.argument_checks import unknown_name
from ami_agent.config import Config
from ami_agent.recipes.cue_corridor import cue_corridor
from ami_agent.recipes.forage import forage
from ami_agent.recipes.goals import DEFAULT_ENV as GOALS_DEFAULT
from ami_agent.recipes.goals import goals
from ami_agent.recipes.gym import DEFAULT_ENV as GYM_DEFAULT
from ami_agent.recipes.gym import gym
from ami_agent.recipes.hidden_food import hidden_food
from ami_agent.recipes.key_and_door import key_and_door
from ami_agent.recipes.manipulation import push, reach
from ami_agent.recipes.maze import (
    ant_maze,
    maze,
    maze_7,
    maze_9,
    maze_levels,
    maze_pixels,
    maze_random,
    point_maze,
    point_maze_medium,
    point_maze_medium_pixels,
    point_maze_pixels,
)
from ami_agent.recipes.ogbench import DEFAULT_DATASET, ogbench
from ami_agent.recipes.robotics import DEFAULT_ENV as ROBOTICS_DEFAULT
from ami_agent.recipes.robotics import gymnasium_robotics
from ami_agent.recipes.two_rooms import (
    two_rooms,
    two_rooms_distracted,
    two_rooms_eb_random,
    two_rooms_random,
    two_rooms_slow,
    two_rooms_swm,
)
from ami_agent.recipes.windy_rooms import windy_rooms

RECIPES: Mapping[str, Callable[[], Config]] = {
    "two-rooms": two_rooms,
    "two-rooms-random": two_rooms_random,
    "two-rooms-eb-random": two_rooms_eb_random,
    "two-rooms-swm": two_rooms_swm,
    "two-rooms-slow": two_rooms_slow,
    "forage": forage,
    "maze": maze,
    "maze-levels": maze_levels,
    "maze-pixels": maze_pixels,
    "maze-7": maze_7,
    "maze-9": maze_9,
    "maze-random": maze_random,
    "cue-corridor": cue_corridor,
    "hidden-food": hidden_food,
    "two-rooms-distracted": two_rooms_distracted,
    "windy-rooms": windy_rooms,
    "key-and-door": key_and_door,
    "gym": gym,
    "goals": goals,
    "ogbench": ogbench,
    "gymnasium-robotics": gymnasium_robotics,
    "point-maze": point_maze,
    "point-maze-medium": point_maze_medium,
    "point-maze-pixels": point_maze_pixels,
    "point-maze-medium-pixels": point_maze_medium_pixels,
    "reach": reach,
    "push": push,
    "ant-maze": ant_maze,
}

ENV_RECIPES: Mapping[str, tuple[Callable[..., Config], EnvConfig]] = {
    "gym": (gym, GYM_DEFAULT),
    "goals": (goals, GOALS_DEFAULT),
    "ogbench": (ogbench, DEFAULT_DATASET),
    "gymnasium-robotics": (gymnasium_robotics, ROBOTICS_DEFAULT),
}
"""The recipes for any environment, each with the one that it takes by default; they are functions
of an `EnvConfig` and a `LoadDataset`."""

RECIPE_IMPORTS = {"ogbench": ("ogbench",), "gymnasium-robotics": ("gymnasium_robotics",)}
"""The packages that register the environments of a recipe, which its name names with it."""


def recipe(name: str) -> Config:
    """The Config of the recipe of that name; ConfigError if there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
