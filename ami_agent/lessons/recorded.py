"""Memory is filled with what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.lessons.base import Pupil
from ami_agent.life import World, WorldConfig
from modules.types import STEPS, UnusableInput, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from ami_agent.records import Record


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Nothing is lived: what others did in this world, and what came of it, is remembered."""

    minari: str = ""
    """Id of a Minari dataset on this machine."""
    run: str = ""
    """Folder of a run that kept its memory (`--keep-memory`)."""
    steps: int = 0
    """Steps that are remembered, and one between each two episodes: of a record that has more, the
    last. All, if not given."""

    def __post_init__(self) -> None:
        require(self, steps=STEPS)
        if self.minari and self.run:
            raise UnusableInput(f"data are of minari {self.minari} or of run {self.run}, not both")

    @property
    def worlds(self) -> int:
        """Lives in memory: one, of all episodes."""
        return 1

    @property
    def lives(self) -> int:
        return self.steps

    def whole(self, world: World) -> Recorded:
        """The same, of as many steps as there are, unless fewer are asked for."""
        return replace(self, steps=self.steps or self.record(world).steps)

    def record(self, world: World) -> Record:
        """What there is; UnusableInput where it is not of such a world."""
        if not (self.minari or self.run):
            raise UnusableInput("recorded data need a name: minari or run")
        from ami_agent.records import of_minari, of_run  # know agents, which are made of lessons

        return of_minari(self.minari, world) if self.minari else of_run(self.run, world)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Recollection(agent, world.build(1), self)


class Recollection:
    """One episode at a time. A checkpoint holds those that were read so far."""

    milestone = ""

    def __init__(self, agent: Agent, world: World, lesson: Recorded) -> None:
        record = lesson.record(world)
        self.agent, self.world, self.step, self.total = agent, world, 0, record.number
        self.record = record
        self.episodes = record.episodes(0)

    def update(self) -> dict[str, Tensor]:
        self.agent.memory.recollect(next(self.episodes))
        self.step += 1
        return {}

    def finish(self) -> None:
        self.world.close()

    def state_dict(self) -> dict[str, Tensor]:
        memory = {f"memory.{n}": part for n, part in self.agent.memory.state_dict().items()}
        return {**memory, "here.step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        memory = {n.removeprefix("memory."): p for n, p in state.items() if n != "here.step"}
        self.agent.memory.load_state_dict(memory)
        self.step = int(state["here.step"])
        self.episodes = self.record.episodes(self.step)
