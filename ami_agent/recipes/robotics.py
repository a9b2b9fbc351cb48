"""The goal environments of gymnasium-robotics: a point and an ant in mazes, and arms."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config
from ami_agent.recipes.gym import NO_DATASET, gym
from ami_agent.training import LoadDataset
from modules.types import ConfigError

DEFAULT_ENV = EnvConfig(id="FetchReach-v4")


def gymnasium_robotics(env: EnvConfig = DEFAULT_ENV, data: LoadDataset = NO_DATASET) -> Config:
    """A goal environment of gymnasium-robotics (`--env.id PointMaze_Large-v3`, `FetchPush-v4`): the
    recipe `gym`, which takes goals that were achieved for desired ones (hindsight)."""
    if find_spec("gymnasium_robotics") is None:
        raise ConfigError("gymnasium-robotics is not installed: pip install 'ami-agent[robotics]'")
    imports = tuple(dict.fromkeys([*env.imports, "gymnasium_robotics"]))
    return replace(gym(replace(env, imports=imports), data), recipe="gymnasium-robotics")
