"""What a lesson is, and the lesson that teaches nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ami_agent.learning import Learner
from ami_agent.life import WorldConfig
from modules.recall import ShortTerm
from modules.types import Gains, Observation, each

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory import Memory

log = logging.getLogger(__name__)

WHOLE = 0.9
"""Of the recorded steps, the fraction that is worth no word when it is drawn."""


class Pupil(Protocol):
    """Something that learns step by step."""

    @property
    def step(self) -> int: ...
    @property
    def milestone(self) -> str:
        """The mode in which it is worth judging the agent by now, if there is one."""
        ...

    @property
    def total(self) -> int: ...
    def update(self) -> dict[str, Tensor]: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class HoldsEnvs(Protocol):
    """A learner whose environments stay open between its updates."""

    def close_envs(self) -> None: ...
    def reopen_envs(self) -> None:
        """Other episodes begin; those that were under way are cut."""


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
    milestone = ""

    def update(self) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None:
        """Nothing was begun."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was put away."""


def primings(agent: Agent) -> list[dict[str, float]]:
    """The ways in which perception is primed: the agent's own, and those of its tasks."""
    own = agent.configurator.gains
    ways = [own, *({**own, **task.attend} for task in agent.assignments.values())]
    return [way for index, way in enumerate(ways) if way not in ways[:index]]


def as_states(agent: Agent, gains: Gains | None = None) -> Memory:
    """The same memory with states in the place of observations: perception learns no more, so
    each is encoded once."""
    primed = agent.configurator.gains if gains is None else gains
    agent.perception.eval()
    episode = ShortTerm(agent.recall)

    def see(obs: Observation, fresh: Tensor) -> Tensor:
        episode.begin(fresh)
        here = each(lambda part: part.to(agent.device), obs)
        return episode.see(agent.perception(here, primed))

    return agent.memory.translated(see)


class GradientPupil(Learner):
    """A Learner is a pupil whose lesson is as long as its schedule."""

    milestone = ""
    fraction: Callable[[], Tensor] | None = None

    @property
    def total(self) -> int:
        return self.config.steps

    def draws(self, memory: Memory, who: str, length: int, latest: bool = False) -> None:
        """Logs which fraction of the recorded steps windows of that length can hold, and says so
        where some are in none. `who` learns from them, in words."""
        self.fraction = partial(memory.fraction, length, latest)
        drawn = float(self.fraction())
        if drawn < WHOLE:
            log.warning(
                f"{who}: windows of {length} steps hold {100 * drawn:.1f} % of the recorded steps; "
                "the other steps are of episodes that were broken off, still run or are partly "
                "overwritten, and have fewer"
            )

    def update(self) -> dict[str, Tensor]:
        metrics = super().update()
        return {**metrics, "drawn_fraction": self.fraction()} if self.fraction else metrics

    def finish(self) -> None:
        """What was learnt is already in place."""
