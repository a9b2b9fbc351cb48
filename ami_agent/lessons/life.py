"""Memory is filled by living."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ami_agent.guard import Died
from ami_agent.lessons.base import Pupil
from ami_agent.life import Act, Info, Lived, World, WorldConfig, ended, live, seen
from ami_agent.options import Options, check_options
from ami_agent.players import Begin, Scene, mind, wanderer
from modules.memory import SEEN
from modules.types import ENV_STEPS, Observation, Transition, each, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


class Lifelong(Protocol):
    """A lesson of so many steps in each world."""

    @property
    def steps(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Live:
    """Walks in many worlds at once, remembered; no reward, and nobody judges them.

    Where the world has walks of its own, its keyword `errands` is the share of stretches that lead
    to some place in the other room, as the published protocols force a share of crossings."""

    worlds: int = 1500
    steps: int = 64
    """Steps lived in each world."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""

    def __post_init__(self) -> None:
        require(self, worlds=(1, 1_000_000), steps=ENV_STEPS)
        check_options(self.options)

    @property
    def lives(self) -> int:
        return self.steps

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return RandomCollector(
            agent, world.build(self.worlds, "cpu", **self.options), self, [wanderer], seed
        )


@dataclass(frozen=True, kw_only=True)
class Practise:
    """Mode-2 pursues goals in as many worlds as memory keeps, and remembers: plans lead to where
    the world model is wrong in the plan's favour, and only what came of them can tell it so
    (Ross & Bagnell 2012, model learning on the distribution of the policy it leads to)."""

    steps: int = 24
    """Steps lived in each world."""
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self, steps=ENV_STEPS)
        check_options(self.options)

    @property
    def lives(self) -> int:
        return self.steps

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        worlds = world.build(agent.memory.worlds, agent.device, **self.options)
        tasks = [mind(agent, "plan", assignment) for assignment in agent.assignments.values()]
        return Explorer(agent.eval(), worlds, self, tasks, seed)


EPISODE_METRICS = ("episode_return", "episode_length")


class RunningEpisodes:
    """Return and length so far of the episodes that num_envs environments are in, `[B]`."""

    def __init__(self, num_envs: int) -> None:
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(num_envs, dtype=torch.float64)

    def add(self, transition: Transition, reset_mask: Tensor) -> dict[str, Tensor]:
        """Adds a step; where `reset_mask` `[B]`, it only reset. Returns the means over the episodes
        that are done with it, if any is."""
        reward = transition.interoception[:, 0].cpu().double()
        self.returns = (self.returns + reward).masked_fill(reset_mask, 0)
        self.lengths = (self.lengths + 1).masked_fill(reset_mask, 0)
        done = (transition.terminated | transition.truncated).cpu()
        if not done.any():
            return {}
        found = (self.returns[done].mean(), self.lengths[done].mean())
        return dict(zip(EPISODE_METRICS, found, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """A checkpoint of before 0.2 has neither: the episode is counted from here on."""
        self.returns = state.get("returns", self.returns).cpu()
        self.lengths = state.get("lengths", self.lengths).cpu()


class Explorer:
    """Lives and remembers. Several players take turns, each for its part of the time. Planners keep
    a part of their plans that no checkpoint holds, so it begins anew when it is interrupted: the
    same seed lives the same."""

    milestone = ""
    act: Act
    scene: Scene
    over: Tensor  # [B] bool: the episodes that the next step resets

    def __init__(
        self, agent: Agent, world: World, lesson: Lifelong, players: Sequence[Begin],
        seed: int,
    ) -> None:  # fmt: skip
        self.total, self.step, self.agent, self.world = lesson.steps, 0, agent, world
        self.players, self.seed = players, seed
        agent.memory.interrupt()
        self._enter()

    def update(self) -> dict[str, Tensor]:
        turn, before = (
            step * len(self.players) // self.total for step in (self.step, self.step - 1)
        )
        assert self.scene.fresh is not None
        if turn != before or self.scene.fresh.any():
            self.attend()
        lived = self._next()
        self.agent.observe(lived.transition)
        metrics = self.episodes.add(lived.transition, self.over)
        self.step += 1
        # the step after an end only resets: what it ends with is where an episode begins
        self.scene = Scene(self.world, seen(lived), lived.info, self.over)
        self.over = ended(lived).cpu()
        return {"worlds": torch.tensor(float(self.world.count)), **metrics}

    def _next(self) -> Lived:
        """A step. Where a world's process died, what was begun is cut and other episodes begin."""
        while True:
            try:
                return next(self.life)
            except Died:
                self.start_over()

    def start_over(self) -> None:
        """Other episodes begin; those that were under way are cut."""
        self.agent.memory.cut()
        self._enter()
        self.attend()

    def _enter(self) -> None:
        """Episodes begin."""
        obs, info = self.world.reset(self.seed + self.step)
        none = torch.zeros(self.world.count, dtype=torch.bool)
        self._go_on(obs, info, fresh=~none, over=none)

    def _go_on(self, obs: Observation, info: Info, fresh: Tensor, over: Tensor) -> None:
        """Life goes on from here; `[B]` where an episode begins, and where one is over."""
        self.episodes = RunningEpisodes(self.world.count)
        self.over, self.scene = over, Scene(self.world, obs, info, fresh)
        self.life = live(lambda obs: self.act(obs), self.world, obs)

    def attend(self) -> None:
        """Who acts from here on looks around."""
        turn = self.step * len(self.players) // self.total
        self.act = self.players[turn](self.scene, self.seed + self.step)

    def relive(self, steps: int) -> bool:
        """Brings the worlds to where memory left them, so many steps after the beginning, by doing
        again what was done. Where that doesn't lead there, other episodes begin; returns whether it
        does."""
        self.step = steps
        relived = self._relived(steps)
        if not relived:
            self.agent.memory.cut()
            self._enter()
        if steps < self.total:
            self.attend()
        return relived

    def _relived(self, steps: int) -> bool:
        obs, info = self.world.reset(self.seed)
        over = torch.zeros(self.world.count, dtype=torch.bool)
        fresh = ~over
        try:
            for action in self.agent.memory.deeds(steps):
                self._before_replayed(obs)
                lived = self.world.step(obs, action.to(self.world.device))
                obs, info = seen(lived), lived.info
                fresh, over = over, ended(lived).cpu()
        except Died:
            return False
        self._go_on(obs, info, fresh, over)
        return self.agent.memory.follows(obs)

    def _before_replayed(self, obs: Observation) -> None:
        """Before each action that is done again: what else it took to choose it."""

    def finish(self) -> None:
        self.world.close()
        landmarks, random = self.agent.landmarks, torch.Generator().manual_seed(self.seed)
        if landmarks.room:
            lived = self.agent.memory.sample(landmarks.room, 1, random, parts=SEEN)
            landmarks.keep(each(lambda part: part[:, 0], lived.obs))

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""


class RandomCollector(Explorer):
    """Fills the replay buffer with random behaviour. A checkpoint holds what was collected so far;
    taken up again, the same actions bring the environments back to where they were. Where they
    don't (an environment with randomness of its own), the buffer is kept and other episodes
    begin."""

    def state_dict(self) -> dict[str, Tensor]:
        memory = {f"memory.{n}": part for n, part in self.agent.memory.state_dict().items()}
        here = {"step": torch.tensor(self.step), **self.episodes.state_dict()}
        return {**memory, **{f"here.{name}": part for name, part in here.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        memory, here = (
            {n.removeprefix(whose): p for n, p in state.items() if n.startswith(whose)}
            for whose in ("memory.", "here.")
        )
        self.agent.memory.load_state_dict(memory)
        self.step = 0
        self.attend()
        if self.relive(int(here["step"])):
            self.episodes.load_state_dict(here)

    def _before_replayed(self, obs: Observation) -> None:
        self.act(obs)  # the behaviour has random numbers of its own, drawn again as they were
