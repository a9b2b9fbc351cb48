"""Critics and policy in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.lessons.base import Pupil, Study
from ami_agent.lessons.foresight import Foresee, Foreseer
from ami_agent.lessons.policy import Amortise
from ami_agent.life import WorldConfig
from modules.types import require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Improve(Study):
    """Policy iteration (Howard 1960), in imagination: the critics learn what is promised by the
    futures that the policy would bring about, the policy learns from the critics, and again."""

    rounds: int = 2
    critics: Foresee = field(default_factory=lambda: Foresee(futures=8))
    policy: Amortise = field(default_factory=Amortise)

    def __post_init__(self) -> None:
        require(self, rounds=1)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        tasks = self.policy.practised(agent)
        turns: list[Callable[[], Pupil]] = []
        for turn in range(seed, seed + self.rounds):
            turns.append(partial(Foreseer, self.critics, agent, turn, tasks))
            turns.append(partial(self.policy.begin, agent, world, turn))
        steps = self.critics.learning.steps + self.policy.learning.steps
        return InTurns(turns, self.rounds * steps)


class InTurns:
    """One pupil after the other; each begins with what those before it have learnt."""

    def __init__(self, turns: Sequence[Callable[[], Pupil]], total: int) -> None:
        self.turns, self.total = turns, total
        self._begin(turn=0, done=0)

    def _begin(self, turn: int, done: int) -> None:
        self.turn, self.done = turn, done
        self.now = self.turns[turn]()

    @property
    def step(self) -> int:
        return self.done + self.now.step

    def update(self) -> dict[str, Tensor]:
        while self.now.step == self.now.total:
            self.now.finish()
            self._begin(self.turn + 1, self.step)
        return self.now.update()

    def finish(self) -> None:
        self.now.finish()

    def state_dict(self) -> dict[str, Tensor]:
        where = {"turn": torch.tensor(self.turn), "done": torch.tensor(self.done)}
        return {**where, **{f"now.{k}": v for k, v in self.now.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._begin(int(state["turn"]), int(state["done"]))
        self.now.load_state_dict(
            {k.removeprefix("now."): v for k, v in state.items() if k.startswith("now.")}
        )
