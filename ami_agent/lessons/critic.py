"""The critic learns how many steps are still to go."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states
from ami_agent.life import WorldConfig
from ami_agent.losses import Multiplier, quasimetric_loss, taught_loss, temporal_difference_loss
from modules.cost import Critic
from modules.distance import Quasimetric
from modules.graph import hops, shortest_paths
from modules.recall import recalled
from modules.targets import MovingAverage
from modules.types import BATCH, FRACTION, HORIZON, UnusableInput, each, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


def critic_of(agent: Agent) -> Quasimetric:
    """The distance that is to learn; raises UnusableInput if the agent has no critic."""
    if not isinstance(agent.cost.critic, Critic):
        raise UnusableInput("an agent without a critic can't teach it: teacher must be NoLesson")
    return agent.cost.critic.distance


@dataclass(frozen=True, kw_only=True)
class Separate(Study):
    """The critic by quasimetric reinforcement learning: apart as far as lived steps allow."""

    learning: Learning = field(default_factory=lambda: Learning(steps=1200, batch=256))
    far: float = 30.0
    """Distances much beyond this, in steps, are not pushed further."""
    slack: float = 0.05
    fading: bool = False
    """Whether states are pushed apart the harder the nearer they are, `far` being how hard: two
    dead ends of one crossing are as far from all else, and are told apart by this."""
    together: int = 1
    """So many states of one episode are pushed apart from each other; 1: the whole batch, for
    worlds whose layout never changes."""
    length: int = 1
    """Steps of life that are one step of the distance: more where a body is slow."""

    def __post_init__(self) -> None:
        require(self, far=(0.0, 1e6), slack=(0.0, 1e3), together=BATCH, length=HORIZON)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        memory, distance = as_states(agent), critic_of(agent)
        price = Multiplier().to(agent.device)
        group = self.together if self.together > 1 else self.learning.batch

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = memory.sample(self.learning.batch, self.length, random, self.together)
            states = batch.states
            last = states[torch.arange(len(states)), batch.lasts.to(states.device)]
            ends = torch.stack([states[:, 0], last], 1)
            state, next_state = ends.unflatten(0, (-1, group)).unbind(2)
            return quasimetric_loss(
                distance, price, state, next_state, far=self.far, slack=self.slack,
                fading=self.fading,
            )  # fmt: skip

        pupil = GradientPupil(
            nn.ModuleList([distance, price]), loss, self.learning, weights={}, seed=seed
        )
        pupil.draws(memory, "the critic", self.length)
        return pupil


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Study):
    """The critic by temporal differences with goals met later in the same episode or at random."""

    learning: Learning = field(default_factory=lambda: Learning(steps=3000, batch=256))
    lag: float = 0.99
    length: int = 16
    """How much later in the episode a goal may lie."""

    def __post_init__(self) -> None:
        require(self, lag=FRACTION, length=HORIZON)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        memory, distance = as_states(agent), critic_of(agent)
        slow = MovingAverage(distance, self.lag)

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = memory.sample(self.learning.batch, self.length, random)
            states = batch.states
            ahead = torch.randint(1, self.length + 1, (len(states),), generator=random)
            later = states[torch.arange(len(states)), batch.later(ahead).to(states.device)]
            mixed = torch.rand(len(states), 1, generator=random).to(later) < 0.5
            goal = torch.where(mixed, later, later.roll(1, 0))
            return temporal_difference_loss(
                distance, slow.average.module, states[:, 0], states[:, 1], goal
            )

        pupil = GradientPupil(
            nn.ModuleList([distance, slow]), loss, self.learning, weights={}, seed=seed,
            after=lambda: slow.follow(distance),
        )  # fmt: skip
        pupil.draws(memory, "the critic", self.length)
        return pupil


@dataclass(frozen=True, kw_only=True)
class ShortestPaths(Study):
    """The critic taught by dynamic programming: in every layout that memory knows, the remembered
    states are the nodes of a graph, and the pupil learns its shortest paths."""

    learning: Learning = field(default_factory=lambda: Learning(steps=2000, batch=256, lr=2e-3))
    layouts: int = 200
    """Episodes that become a graph."""
    nodes: int = 640
    """States of each."""
    together: int = 32
    """States and goals of one layout in a batch; each is compared with each."""
    hop: float = 2.0
    """States that the critic so far calls this close, in steps, are joined."""
    imagined: float = 0.5
    """Share of the states that are predicted from the one before instead of perceived."""

    def __post_init__(self) -> None:
        require(self, layouts=(1, 1_000_000), nodes=(2, 100_000), together=BATCH)
        require(self, hop=(0.0, 1e6), imagined=FRACTION)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Student(self, agent, seed)


class Student(GradientPupil):
    """Learns from the graph; the critic it was made with stays the teacher until the end."""

    def __init__(self, config: ShortestPaths, agent: Agent, seed: int) -> None:
        self.teacher, self.lesson, self.agent = critic_of(agent), config, agent
        student = deepcopy(self.teacher)
        self.seen, self.imagined, self.steps = self._graphs()
        super().__init__(student, self._loss, config.learning, weights={}, seed=seed)

    @torch.no_grad()
    def _graphs(self) -> tuple[Tensor, Tensor, Tensor]:
        """States seen and imagined `[E, N, D]`, steps from each to each `[E, N, N]`."""
        found = [self._graph(episode) for episode in self._episodes()]
        seen, imagined, steps = (torch.stack(parts) for parts in zip(*found, strict=True))
        return seen, imagined, steps

    def _episodes(self) -> Tensor:
        known = self.agent.memory.episodes(self.lesson.nodes - 1)
        if not len(known):
            raise UnusableInput(f"memory has no episode of {self.lesson.nodes} states for a graph")
        return known[: self.lesson.layouts]

    def _graph(self, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        path, nodes = self.agent.memory.recall(episode), self.lesson.nodes
        device = self.agent.device
        obs = each(lambda part: part[0, :nodes].to(device), path.obs)
        features = self.agent.perception(obs, self.agent.configurator.gains)
        seen = recalled(self.agent.recall, features[None])[0]  # an episode, from its beginning
        actions = path.actions[0, : nodes - 1].to(seen)
        imagined = self.agent.world_model.level(0).step(seen[:-1], actions).state
        steps = shortest_paths(hops(self.teacher, seen, self.lesson.hop)).half()
        return seen, torch.cat([seen[:1], imagined]), steps

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        layouts, nodes = self.seen.shape[:2]
        size = self.lesson.together
        groups = self.lesson.learning.groups(size)

        def draw(below: int, *shape: int) -> Tensor:
            drawn = torch.randint(below, (groups, *shape), generator=random)
            return drawn.to(self.seen.device, non_blocking=True)

        layout, start, goal = draw(layouts, 1), draw(nodes, size), draw(nodes, size)
        which = torch.rand(groups, size, 1, generator=random).to(self.seen) < self.lesson.imagined
        state = torch.where(which, self.imagined[layout, start], self.seen[layout, start])
        steps = self.steps[layout[..., None], start[..., None], goal[:, None]].to(state.dtype)
        ahead = self.seen[layout, goal]
        return taught_loss(self.module, state[:, :, None], ahead[:, None], steps)

    def finish(self) -> None:
        """The student becomes the critic."""
        self.teacher.load_state_dict(self.module.state_dict())
