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

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil: ...


@dataclass(frozen=True, kw_only=True)
class NoLesson:
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


class GradientPupil(Learner):
    """A Learner is a pupil whose lesson is as long as its schedule."""

    @property
    def total(self) -> int:
        return self.config.steps

    def finish(self) -> None:
        """What was learnt is already in place."""
