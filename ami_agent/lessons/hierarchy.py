"""The upper levels of the hierarchy learn what there is between start and goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states
from ami_agent.lessons.critic import critic_of
from ami_agent.life import WorldConfig
from ami_agent.losses import Multiplier, in_strides, level_loss
from modules.hierarchy import LandmarkGraph, MacroLevels
from modules.hierarchy.landmarks import CHUNK
from modules.planners.outlook import hypercube
from modules.types import HORIZON, WEIGHT, UnusableInput, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Ascend(Study):
    """The levels above learn from states as the lowest perceives them, all at once: each to predict
    in its own strides, which macro-actions life contains, and how far it is to goals."""

    learning: Learning = field(default_factory=lambda: Learning(steps=1000, batch=128, lr=2e-3))
    length: int = 3
    """Steps of the top level that are unrolled, T."""
    end_to_end: bool = True
    """Whether what a level learns reaches the states and macro-actions of those below it."""
    far: float = 12.0
    """Distances much beyond this, in strides, are not pushed further."""
    slack: float = 0.05
    prediction: float = 10.0
    variance: float = 4.0
    covariance: float = 0.5
    information: float = 0.3
    """Weights, beside those of prior and distance, which are 1; that of information is for what a
    level's latent variable tells, where it has one: told cheaply, it would tell what the
    macro-action should, and whoever draws it would have no say in where a stride leads."""

    def __post_init__(self) -> None:
        require(self, length=HORIZON, far=(0.0, 1e6), slack=(0.0, 1e3), prediction=WEIGHT)
        require(self, variance=WEIGHT, covariance=WEIGHT, information=WEIGHT)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        if not isinstance(agent.hierarchy, MacroLevels):
            raise UnusableInput("ascend teaches levels above: hierarchy must be MacroLevels")
        return Ascent(self, agent, agent.hierarchy, seed)

    def steps(self, strides: Sequence[int]) -> int:
        """Steps of life that one window spans."""
        return self.length * prod(strides)


class Ascent(GradientPupil):
    """All levels above, and the price that each pays for steps that are too far."""

    def __init__(self, lesson: Ascend, agent: Agent, levels: MacroLevels, seed: int) -> None:
        self.lesson, self.levels = lesson, levels
        self.memory = as_states(agent)
        span, longest = prod(levels.config.strides), agent.memory.longest()
        if longest < span:
            raise UnusableInput(
                f"one stride of the top level takes {span} steps, but no episode has more than "
                f"{longest}: --hierarchy.strides must be shorter"
            )
        self.prices = nn.ModuleList([Multiplier() for _ in levels.above]).to(agent.device)
        self.seed = seed
        weights = {
            f"{name} {index + 1}": getattr(lesson, name)
            for name in ("prediction", "variance", "covariance", "information")
            for index in range(len(levels.above))
        }
        both = nn.ModuleList([levels.levels, self.prices])
        super().__init__(both, self._loss, lesson.learning, weights=weights, seed=seed)
        self.draws(self.memory, "the levels above", lesson.steps(levels.config.strides))

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        lesson = self.lesson
        window = lesson.steps(self.levels.config.strides)
        batch = self.memory.sample(lesson.learning.batch, window, random)
        states, actions, valid = batch.states, batch.actions.to(batch.states), batch.valid
        found: dict[str, Tensor] = {}
        for index, (above, price) in enumerate(zip(self.levels.above, self.prices, strict=True)):
            assert isinstance(price, Multiplier)
            valid = in_strides(valid, above.level.stride)
            terms, states, actions = level_loss(
                above.level, price, states, actions, random, far=lesson.far, slack=lesson.slack,
                valid=valid,
            )  # fmt: skip
            if not lesson.end_to_end:
                states, actions = states.detach(), actions.detach()
            found |= {f"{name} {index + 1}": term for name, term in terms.items()}
        return found

    @torch.no_grad()
    def finish(self) -> None:
        """What subgoals are looked up among."""
        random = torch.Generator().manual_seed(self.seed)
        kept = self.levels.remembered
        kept.copy_(self.memory.sample(len(kept), 1, random).states[:, 0])


@dataclass(frozen=True, kw_only=True)
class Survey(Study):
    """Landmarks are chosen among remembered states: each the farthest from all before, there and
    back as the critic has it (Gonzalez 1985), so that they are spread over all that was lived."""

    remembered: int = 6000
    """States there are to choose from."""
    walks: int = 3000
    """Stretches of life that tell which hops were made."""
    length: int = 8
    """Steps of each."""

    def __post_init__(self) -> None:
        require(self, remembered=(1, 10_000_000), walks=(1, 10_000_000), length=HORIZON)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        if not isinstance(agent.hierarchy, LandmarkGraph):
            raise UnusableInput("survey is for a hierarchy of landmarks: it must be NoLesson")
        return Surveyor(self, agent, agent.hierarchy, seed)


class Surveyor:
    """Chooses one landmark at every step; it begins anew when it is interrupted."""

    milestone = ""

    def __init__(self, lesson: Survey, agent: Agent, graph: LandmarkGraph, seed: int) -> None:
        self.graph, self.distance, self.model = graph, critic_of(agent), agent.world_model
        self.total, self.step = graph.config.landmarks, 0
        random = torch.Generator().manual_seed(seed)
        memory = as_states(agent)
        with torch.no_grad():
            lived = memory.sample(lesson.remembered, 1, random)
            self.states = lived.states[:, 0]
            self.actions = lived.actions[:, 0].to(self.states)  # memory may lie elsewhere
            self.walks = memory.sample(lesson.walks, lesson.length, random).states
            self.embedded = self.distance.embed(self.states)
        chances = self.model.level(0).latent.chances
        self.chance = hypercube(graph.config.futures if chances else 1, 1, chances, random)
        self.drawn = memory.fraction(lesson.length)
        self.apart = self.states.new_full((lesson.remembered,), torch.inf)
        self.chosen: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> dict[str, Tensor]:
        place = self.apart.argmax()
        here = self.embedded[place]
        there = self.distance.between(here, self.embedded)
        back = self.distance.between(self.embedded, here)
        self.apart = torch.minimum(self.apart, torch.maximum(there, back))
        self.chosen.append(place)
        self.step += 1
        return {"apart": self.apart.max(), "drawn_fraction": self.drawn}

    @torch.no_grad()
    def finish(self) -> None:
        chosen = torch.stack(self.chosen)
        futures = torch.cat([self._futures(part) for part in chosen.split(CHUNK)])
        self.graph.chart(self.states[chosen], self.walks, futures)

    def _futures(self, chosen: Tensor) -> Tensor:
        """Where landmarks `[K]` may lead when what was done there is done again, `[K, J, D]`, with
        the same chance for all; `[K, 1, D]` where all can be known."""
        actions = self.actions[chosen][:, None, None]
        ahead = self.model.imagine(self.states[chosen], actions, self.chance.to(self.states))
        return ahead.states[:, :, 1]

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""
