"""What a lesson is, and the lesson that teaches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ami_agent.learning import Learner
from ami_agent.life import WorldConfig

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory import Memory


class Pupil(Protocol):
    """Something that learns step by step."""

    step: int

    @property
    def total(self) -> int: ...
    def update(self) -> dict[str, Tensor]: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Lesson(Protocol):
    """What is to be learnt; `begin` gives the one who learns it."""

    @property
    def lives(self) -> int:
        """Steps that it adds to each life in memory."""

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil: ...


class Study:
    """Any lesson that is taken without living."""

    lives = 0


@dataclass(frozen=True, kw_only=True)
class NoLesson(Study):
    """Nothing to learn here: the ablation of any lesson."""

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Idle()


class Idle:
    """Learns nothing, at once."""

    total = step = 0

    def update(self) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None:
        """Nothing was begun."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was put away."""


def as_states(agent: Agent) -> Memory:
    """The same memory with states in the place of observations: perception learns no more, so
    each is encoded once."""
    agent.perception.eval()
    return agent.memory.translated(lambda obs: agent.perceive(obs.to(agent.device)))


class GradientPupil(Learner):
    """A Learner is a pupil whose lesson is as long as its schedule."""

    @property
    def total(self) -> int:
        return self.config.steps

    def finish(self) -> None:
        """What was learnt is already in place."""
