"""Who may act in worlds: the agent, random motion, and one who knows the way."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.autoreset import batched
from ami_agent.controller import Controller
from ami_agent.infos import reported
from ami_agent.life import Act, Info, World, oracle, walk
from modules.configurator import Assignment, Task
from modules.types import Observation, Plan, UnusableInput, by_sense, count_of


class Scene(NamedTuple):
    """Worlds in which episodes begin, and what they are like."""

    world: World
    obs: Observation  # [B, *O]
    info: Info
    fresh: Tensor | None = None  # [B] bool: where an episode begins; everywhere if None


Begin = Callable[[Scene, int], Act]
"""Meets worlds and says how it will act in them; the seed is its own chance."""


class Errand:
    """An assignment in worlds whose episodes end at different times."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.start: Observation | None = None  # [B, *O]: where each was when it was told
        self.goal: Observation | None = None  # [B, *O]: what each environment named last

    def task(self, scene: Scene, mode: str) -> Task:
        """What is wanted in these worlds by now; UnusableInput where they should name a goal and
        don't."""
        if self.assignment.aim == "here":  # nobody else needs what was seen then
            self.start = _renewed(self.start, scene.obs, scene.fresh)
        goal = self.start
        if self.assignment.aim == "world":  # else whatever the world calls so is its own affair
            goal = self.goal = self._named(scene)
        return self.assignment.task(goal, mode)

    def _named(self, scene: Scene) -> Observation:
        """The goal that each environment named last; some name it only when an episode begins."""
        named = torch.as_tensor(reported(scene.info, "goal", count_of(scene.obs)))
        if named.all() or (self.goal is None and not named.any()):
            return scene.world.goal(scene.info)
        unnamed = ~named if self.goal is None or scene.fresh is None else ~named & scene.fresh.cpu()
        if unnamed.any():
            raise UnusableInput(
                f"environment {int(unnamed.nonzero()[0])} names no goal in the info of its reset; "
                "the agent needs one"
            )
        assert self.goal is not None
        if not named.any():
            return self.goal
        return _renewed(self.goal, scene.world.goal(scene.info), named)


def _renewed(old: Observation | None, new: Observation, fresh: Tensor | None) -> Observation:
    """The old one, new where `fresh` `[B]`."""
    if old is None or fresh is None:
        return new
    before = by_sense(old)

    def either(name: str, part: Tensor) -> Tensor:
        where = fresh.to(part.device).reshape(-1, *[1] * (part.ndim - 1))
        return torch.where(where, part, before[name])

    parts = {name: either(name, part) for name, part in by_sense(new).items()}
    return parts["obs"] if isinstance(new, Tensor) else parts


def task_of(assignment: Assignment, scene: Scene, mode: str) -> Task:
    """The assignment where an episode begins in every world."""
    return Errand(assignment).task(scene, mode)


def mind(
    agent: Agent,
    mode: str,
    assignment: Assignment,
    watch: Callable[[Plan], None] = lambda plan: None,
    controller: Controller | None = None,
) -> Begin:  # fmt: skip
    """The agent as a player; `watch` sees its plans. Without a controller it acts as the agent's
    own, whose episodes it ends."""
    errand = Errand(assignment)

    def begin(scene: Scene, seed: int) -> Act:
        with controller.active() if controller else nullcontext():
            agent.begin(scene.fresh)
            agent.configure(errand.task(scene, mode), seed)

        def act(obs: Observation) -> Tensor:
            plan = controller.plan(obs) if controller else agent.act(obs)
            watch(plan)
            return plan.action

        return act

    return begin


def wanderer(scene: Scene, seed: int) -> Act:
    """Whoever gathers experience without a goal: the world's own walk, where it has one."""
    return walk(scene.world)


def aimless(scene: Scene, seed: int) -> Act:
    """The random baseline: actions drawn uniformly from what can be done. Of environments that are
    stepped one by one each has its own seed, so that it does the same however many are open."""
    world = scene.world
    if world.batched:
        return lambda obs: world.from_world(world.envs.action_space.sample())
    alone = [deepcopy(world.envs.single_action_space) for _ in range(world.count)]
    for number, space in enumerate(alone):
        # not the environment's own seed: what it draws first would be the action it wants
        space.seed(zlib.crc32(f"random actions {seed + number}".encode()))
    return lambda obs: world.from_world(
        batched(world.envs.single_action_space, [space.sample() for space in alone])
    )


def shortest(scene: Scene, seed: int) -> Act:
    """The oracle baseline."""
    return oracle(scene.world)
