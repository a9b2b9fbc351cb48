"""The goal environments of gymnasium-robotics: a point and an ant in mazes, arms, and hands."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config
from ami_agent.recipes.goals import goals
from ami_agent.recipes.gym import NO_DATASET, gym
from ami_agent.training import LoadDataset
from modules.types import ConfigError

DEFAULT_ENV = EnvConfig(id="FetchReach-v4")
OWN_POSITION = ("PointMaze_", "FetchReach")
"""Beginnings of the names of environments whose goals are positions of the agent itself, which
random actions move everywhere. Elsewhere a goal is the place of an object, or no random action gets
far from the start."""


def gymnasium_robotics(env: EnvConfig = DEFAULT_ENV, data: LoadDataset = NO_DATASET) -> Config:
    """A goal environment of gymnasium-robotics (`--env.id PointMaze_Large-v3`, `FetchPush-v4`).
    Where a goal is a position of the agent itself, the recipe `goals`: the agent plans for it after
    random actions. Elsewhere the recipe `gym`, which learns online from the reward and takes goals
    that were achieved for desired ones (hindsight)."""
    if find_spec("gymnasium_robotics") is None:
        raise ConfigError("gymnasium-robotics is not installed: pip install 'ami-agent[robotics]'")
    imports = tuple(dict.fromkeys([*env.imports, "gymnasium_robotics"]))
    name = env.id.rpartition(":")[2]  # after the module that registers it
    make = goals if name.startswith(OWN_POSITION) else gym
    return replace(make(replace(env, imports=imports), data), recipe="gymnasium-robotics")
