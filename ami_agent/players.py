"""Who may act in worlds that name a goal: the agent, random motion, and one who knows the way."""

from __future__ import annotations

from collections.abc import Callable

from ami_agent.agent import Agent
from ami_agent.life import Act, Info, World, oracle, walk
from modules.configurator import Task
from modules.types import UnusableInput

Begin = Callable[[World, Info, int], Act]
"""Meets worlds that have just been reset (with this seed) and says how it will act in them."""


def mind(agent: Agent, mode: str) -> Begin:
    """The agent as a player; UnusableInput where the world names no goal."""

    def begin(world: World, info: Info, seed: int) -> Act:
        if "goal" not in info:
            raise UnusableInput("this world names no goal in its info; the agent needs one")
        agent.configure(Task(goal=world.tensor(info["goal"]), mode=mode), seed)
        return lambda obs: agent.act(obs).action

    return begin


def wanderer(world: World, info: Info, seed: int) -> Act:
    """Whoever gathers experience without a goal: the world's own walk, where it has one."""
    return walk(world)


def aimless(world: World, info: Info, seed: int) -> Act:
    """The random baseline: actions drawn uniformly from what can be done."""
    return lambda obs: world.from_world(world.envs.action_space.sample())


def shortest(world: World, info: Info, seed: int) -> Act:
    """The oracle baseline."""
    return oracle(world)
