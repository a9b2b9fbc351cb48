"""AMI: an agent with a mind of six modules, after LeCun's "A Path Towards Autonomous Machine
Intelligence". All that a user needs is here:

    import ami_agent as ami

    agent = ami.train(ami.recipes.two_rooms(), out="runs/mine")  # or ami.load("runs/mine")
    agent.configure(ami.Task(goal=goal))  # an observation [B, *O]
    plan = agent.act(obs)  # [B, *O] -> plan.action [B, A], plan.states, plan.energy
"""

from __future__ import annotations

from ami_agent.shadow import check_shadows

check_shadows()

import envs as _envs  # noqa: E402, F401  registers ami/... with Gymnasium
from ami_agent import boxes, lessons, recipes  # noqa: E402
from ami_agent.agent import Agent  # noqa: E402
from ami_agent.build import Config, build  # noqa: E402
from ami_agent.evaluate import evaluate  # noqa: E402
from ami_agent.life import WorldConfig  # noqa: E402
from ami_agent.runs import load  # noqa: E402
from ami_agent.train import train  # noqa: E402
from modules.configurator import Task  # noqa: E402
from modules.types import Focus, Plan, Rollout, Transition, UnusableInput  # noqa: E402

__all__ = [
    "Agent",
    "Config",
    "Focus",
    "Plan",
    "Rollout",
    "Task",
    "Transition",
    "UnusableInput",
    "WorldConfig",
    "boxes",
    "build",
    "evaluate",
    "lessons",
    "load",
    "recipes",
    "train",
]
