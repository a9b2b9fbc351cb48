"""What an episode may be judged by, and an expert for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .experts import graze, rest, round_hazard, sweep
from .physics import distance
from .states import HOME, State

AT_FLAG = 0.06
ENOUGH_ENERGY = 0.5
ENOUGH_CELLS = 29


class Verdict(NamedTuple):
    """How B episodes stand."""

    score: Tensor  # [B] float32, of the episode so far
    success: Tensor  # [B] bool, as of now


class Task(NamedTuple):
    """What counts, and who is good at it."""

    judge: Callable[[State], Verdict]
    expert: Callable[[State], Tensor]


def at_flag(state: State) -> Tensor:
    """[B] bool."""
    return distance(state.body, state.layout.flag) <= AT_FLAG


def cells(state: State) -> Tensor:
    """Cells visited so far, [B]."""
    return state.record.visited.sum(-1)


def judge_eating(state: State) -> Verdict:
    return Verdict(state.record.eaten, state.energy >= ENOUGH_ENERGY)


def judge_flag(state: State) -> Verdict:
    there = at_flag(state)
    return Verdict(there.float(), there)


def judge_exploring(state: State) -> Verdict:
    seen = cells(state)
    return Verdict(seen.float(), seen >= ENOUGH_CELLS)


def judge_staying(state: State) -> Verdict:
    steps, rested = state.record.steps, state.record.rested
    share = (rested + (steps == 0)) / steps.clamp(min=1)  # before the first step it has stayed
    return Verdict(share, distance(state.body, state.layout.start) <= HOME)


TASKS: dict[str, Task] = {
    "eat": Task(judge_eating, graze),
    "flag": Task(judge_flag, round_hazard),
    "explore": Task(judge_exploring, sweep),
    "stay": Task(judge_staying, rest),
}
