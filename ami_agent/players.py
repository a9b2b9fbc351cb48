"""Who may act in worlds: the agent, random motion, and one who knows the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.life import Act, Info, World, oracle, walk
from modules.configurator import Assignment, Task
from modules.types import Observation, Plan, UnusableInput


class Scene(NamedTuple):
    """Worlds in which episodes begin, and what they are like."""

    world: World
    obs: Observation  # [B, *O]
    info: Info
    fresh: Tensor | None = None  # [B] bool: where an episode begins; everywhere if None


Begin = Callable[[Scene, int], Act]
"""Meets worlds and says how it will act in them; the seed is its own chance."""


def task_of(assignment: Assignment, scene: Scene, mode: str) -> Task:
    """The assignment in these worlds; UnusableInput where they should name a goal and don't."""
    goals = {"world": scene.world.goal(scene.info), "here": scene.obs, "none": None}
    if assignment.aim == "world" and goals["world"] is None:
        raise UnusableInput("this world names no goal in its info; the agent needs one")
    return assignment.task(goals[assignment.aim], mode)


def mind(
    agent: Agent,
    mode: str,
    assignment: Assignment,
    watch: Callable[[Plan], None] = lambda plan: None,
) -> Begin:  # fmt: skip
    """The agent as a player; `watch` sees its plans."""

    def begin(scene: Scene, seed: int) -> Act:
        agent.begin(scene.fresh)
        agent.configure(task_of(assignment, scene, mode), seed)

        def act(obs: Observation) -> Tensor:
            plan = agent.act(obs)
            watch(plan)
            return plan.action

        return act

    return begin


def wanderer(scene: Scene, seed: int) -> Act:
    """Whoever gathers experience without a goal: the world's own walk, where it has one."""
    return walk(scene.world)


def aimless(scene: Scene, seed: int) -> Act:
    """The random baseline: actions drawn uniformly from what can be done."""
    return lambda obs: scene.world.from_world(scene.world.envs.action_space.sample())


def shortest(scene: Scene, seed: int) -> Act:
    """The oracle baseline."""
    return oracle(scene.world)
