"""The upper levels of the hierarchy learn what there is between start and goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.lessons.base import Pupil, Study, as_states
from ami_agent.lessons.critic import critic_of
from ami_agent.life import WorldConfig
from modules.hierarchy import LandmarkGraph
from modules.types import UnusableInput, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Survey(Study):
    """Landmarks are chosen among remembered states: each the farthest from all before, there and
    back as the critic has it (Gonzalez 1985), so that they are spread over all that was lived."""

    remembered: int = 6000
    """States there are to choose from."""

    def __post_init__(self) -> None:
        require(self, remembered=1)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        if not isinstance(agent.hierarchy, LandmarkGraph):
            raise UnusableInput("survey is for a hierarchy of landmarks: it must be NoLesson")
        return Surveyor(self, agent, agent.hierarchy, seed)


class Surveyor:
    """Chooses one landmark at every step; it begins anew when it is interrupted."""

    def __init__(self, lesson: Survey, agent: Agent, graph: LandmarkGraph, seed: int) -> None:
        self.graph, self.distance = graph, critic_of(agent)
        self.total, self.step = graph.config.landmarks, 0
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.states = as_states(agent).sample(lesson.remembered, 1, random).states[:, 0]
            self.embedded = self.distance.embed(self.states)
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
        return {"apart": self.apart.max()}

    @torch.no_grad()
    def finish(self) -> None:
        self.graph.chart(self.states[torch.stack(self.chosen)])

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""
