"""Life and learning interleave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ami_agent.lessons.base import Pupil
from ami_agent.lessons.life import EPISODE_METRICS, Explorer
from ami_agent.lessons.rehearse import Improve, Rehearsal, joined, part_of
from ami_agent.life import Act, WorldConfig
from ami_agent.players import Begin, Scene, mind
from modules.bounds import Bounds
from modules.types import ENV_STEPS, Observation, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


UNITS_EVERY = 10
"""Steps in each env between two looks at whether the latest numbers and rewards have left their
units. Looks at all that is kept become rarer as it grows, so that they cost the same per step."""


@dataclass(frozen=True, kw_only=True)
class Interact(Improve):
    """The agent does what it has learnt so far, shaken a little; what comes of it is remembered,
    and it improves."""

    steps: int = 10_000
    """Steps lived in each world."""
    ratio: float = 1.0
    """Updates for each step of life."""
    mode: Literal["react", "plan"] = "react"
    """Who acts."""
    noise: float = 0.2
    """How far actions are shaken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, steps=ENV_STEPS, ratio=(0.0, 1e3), noise=(0.0, 1e3))

    @property
    def lives(self) -> int:
        return self.steps

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Interaction(self, agent, world, seed)


def daring(begin: Begin, noise: float, bounds: Bounds) -> Begin:
    """The same player with shaken hands. What shakes them depends on the seed and on how often they
    were used, so that it can be taken up again anywhere."""

    def begin_so(scene: Scene, seed: int) -> Act:
        act, moment = begin(scene, seed), [seed]

        def dare(obs: Observation) -> Tensor:
            action = act(obs)
            random = torch.Generator().manual_seed(moment[0])
            moment[0] += 1
            shake = torch.randn(action.shape, generator=random).to(action)
            return bounds.project(action + noise * shake)

        return dare

    return begin_so


class Interaction:
    """One who lives and learns. Put away in the middle of an episode, it brings the world back to
    where it was by doing again what it did. Who reacts, and recalls nothing of the episode, goes on
    as if nothing had been; a planner thinks afresh."""

    def __init__(self, lesson: Interact, agent: Agent, world: WorldConfig, seed: int) -> None:
        self.lesson, self.agent, self.total, self.debt = lesson, agent, lesson.steps, 0.0
        assignment, worlds = agent.assigned(lesson.task), agent.memory.worlds
        updates = int(lesson.steps * worlds * lesson.ratio) + 1
        self.mind = Rehearsal(lesson, agent, world, updates, seed)
        player = daring(mind(agent, lesson.mode, assignment), lesson.noise, agent.policy.bounds)
        self.build = partial(world.build, worlds, agent.device)
        self.life = Explorer(agent, self.build(), lesson, [player], seed)

    @property
    def step(self) -> int:
        return self.life.step

    @property
    def milestone(self) -> str:
        return "" if self.step % self.lesson.judge else self.lesson.mode

    def update(self) -> dict[str, Tensor]:
        """One step of life in every world, and what is learnt after it."""
        if self.milestone:
            self.life.attend()  # somebody may have asked the agent other things meanwhile
        found = self.life.update()
        if self.step % UNITS_EVERY == 0:
            whole = (
                self.step % (UNITS_EVERY * 2 ** max(0, (self.step // 200).bit_length() - 1)) == 0
            )
            self.mind.actor.renew_units(UNITS_EVERY, whole)
        self.debt += self.lesson.ratio * self.agent.memory.worlds
        news: dict[str, Tensor] = {}
        while self.debt >= 1:
            news = self.mind.update()
            self.debt -= 1
        return {**news, **{name: found[name] for name in EPISODE_METRICS if name in found}}

    def close_envs(self) -> None:
        self.life.world.close()

    def reopen_envs(self) -> None:
        self.life.world = self.build()
        self.life.start_over()

    def finish(self) -> None:
        self.life.finish()

    def state_dict(self) -> dict[str, Tensor]:
        here = {"step": torch.tensor(self.step), "debt": torch.tensor(self.debt).double()}
        here |= self.life.episodes.state_dict()
        lived = joined({"memory": self.agent.memory.state_dict(), "here": here})
        return {**self.mind.state_dict(), **lived}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mind.load_state_dict(state)
        self.agent.memory.load_state_dict(part_of(state, "memory"))
        here = part_of(state, "here")
        self.debt = float(here["debt"])
        if self.life.relive(int(here["step"])):
            self.life.episodes.load_state_dict(here)
