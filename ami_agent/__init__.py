"""AMI: an agent of six modules, after LeCun's "A Path Towards Autonomous Machine Intelligence"
(2022). All that a user needs is here:

    import ami_agent as ami

    agent = ami.train(ami.recipes.two_rooms(), out="runs/mine")  # or ami.load("runs/mine")
    controller = agent.controller(num_envs=2, task=ami.Task(goal=info["goal"]))
    plan = controller.act(obs)  # plan.env_action is what env.step takes
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ami_agent.threads import import_torch

HOME = Path(__file__).resolve().parent.parent


def check_shadows(names: tuple[str, ...] = ("modules", "envs"), home: Path = HOME) -> None:
    """Raises ImportError, in one line, if a name is not imported from the folder `home`: another
    package of that name shadows ours."""
    for name in names:
        spec = find_spec(name)
        found: list[str] = []
        if spec and spec.submodule_search_locations:  # a folder, with __init__.py or without
            found = list(spec.submodule_search_locations)
        elif spec and spec.origin:
            found = [spec.origin]
        if [Path(place).resolve() for place in found] != [home / name]:
            raise ImportError(
                f"ami_agent needs its own package {name!r} in {home / name}, but Python finds "
                f"{' and '.join(found) or 'none'}: rename that one, or put {home} first on sys.path"
            )


check_shadows()
import_torch()

import envs as _envs  # noqa: E402, F401  registers ami/... with Gymnasium
from ami_agent import components, recipes, training  # noqa: E402
from ami_agent.adapters.env import EnvConfig  # noqa: E402
from ami_agent.agent import Agent  # noqa: E402
from ami_agent.config import Config, build, override  # noqa: E402
from ami_agent.evaluation.evaluate import evaluate  # noqa: E402
from ami_agent.storage.run_dir import load  # noqa: E402
from ami_agent.train import train  # noqa: E402
from modules.configurator import Task  # noqa: E402
from modules.cost.cost import IntrinsicCostConfig  # noqa: E402
from modules.perception.image import Encoder  # noqa: E402
from modules.types import ConfigError, Plan, Rollout, TaskContext, Transition  # noqa: E402

__all__ = [
    "Agent",
    "Config",
    "ConfigError",
    "Encoder",
    "EnvConfig",
    "IntrinsicCostConfig",
    "Plan",
    "Rollout",
    "Task",
    "TaskContext",
    "Transition",
    "build",
    "components",
    "evaluate",
    "load",
    "override",
    "recipes",
    "train",
    "training",
]
