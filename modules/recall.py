"""Short-term memory inside an episode: the state may depend on what is no longer seen.

Three forms, interchangeable: nothing is recalled; a recurrent belief (as in recurrent state-space
models, Hafner et al. 2019); an associative memory of key and value that the present queries by
attention (LeCun 2022, 3.1.2 and 3.6; neural episodic control, Pritzel et al. 2017).

A trace is what is kept of an episode between two of its moments: tensors whose first dimension is
the world, all zero when an episode begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import TypeAlias

import torch
from torch import Tensor, nn

from modules.types import HORIZON, WIDTH, Observation, Shape, Stateful, by_sense, require

Trace: TypeAlias = tuple[Tensor, ...]

LONGEST = 1000
"""Moments of an episode that are kept as states."""

NOWHERE = 1e4
"""Far from every state."""


class NoRecall(nn.Module):
    """The state is what is seen now."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape) -> NoRecall:
            return NoRecall()

    def begin(self, like: Tensor) -> Trace:
        """The trace of episodes that only begin, for features `[B, D]`."""
        return ()

    def forward(self, features: Tensor, trace: Trace) -> tuple[Tensor, Trace]:
        """Features of the present `[B, D]` and what is kept -> state `[B, D]`, what is kept now."""
        return features, trace


class Belief(NoRecall):
    """A gated recurrent unit carries on what matters; the state is what is seen plus a reading of
    it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape) -> Belief:
            return Belief(prod(shape), self.hidden)

    def __init__(self, state: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(state, hidden)
        self.read = nn.Linear(hidden, state)

    def begin(self, like: Tensor) -> Trace:
        return (like.new_zeros(len(like), self.cell.hidden_size),)

    def forward(self, features: Tensor, trace: Trace) -> tuple[Tensor, Trace]:
        carried = self.cell(features, trace[0])
        return features + self.read(carried), (carried,)


class Associative(NoRecall):
    """The last `moments` of the episode as keys and values; the present asks, and the state is what
    is seen plus what the answer says."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        moments: int = 64
        """The most that is kept; then the oldest is overwritten."""
        size: int = 32
        """Numbers of a key and of a value."""

        def __post_init__(self) -> None:
            require(self, moments=HORIZON, size=WIDTH)

        def build(self, shape: Shape) -> Associative:
            return Associative(prod(shape), self)

    def __init__(self, state: int, config: Config) -> None:
        super().__init__()
        self.moments, self.size = config.moments, config.size
        self.key = nn.Linear(state, config.size)
        self.value = nn.Linear(state, config.size)
        self.query = nn.Linear(state, config.size)
        self.read = nn.Linear(config.size, state)

    def begin(self, like: Tensor) -> Trace:
        kept = like.new_zeros(len(like), self.moments, self.size)
        return kept, kept, torch.zeros(len(like), dtype=torch.long, device=like.device)

    def forward(self, features: Tensor, trace: Trace) -> tuple[Tensor, Trace]:
        keys, values, age = trace  # [B, M, K], [B, M, K], [B]
        slot = torch.arange(self.moments, device=age.device)
        here = (slot == (age % self.moments)[:, None])[..., None]  # [B, M, 1]
        keys = torch.where(here, self.key(features)[:, None], keys)
        values = torch.where(here, self.value(features)[:, None], values)
        match = torch.einsum("bmk,bk->bm", keys, self.query(features)) / sqrt(self.size)
        match = match.masked_fill(slot > age[:, None], -torch.inf)
        answer = torch.einsum("bm,bmk->bk", match.softmax(1), values)
        return features + self.read(answer), (keys, values, age + 1)


Recall = NoRecall | Belief | Associative


def renew(trace: Trace, fresh: Tensor) -> Trace:
    """The trace with nothing left of the worlds `fresh` `[B]`, whose episodes begin."""
    return tuple(part.masked_fill(fresh.reshape(-1, *[1] * (part.ndim - 1)), 0) for part in trace)


def recalled(recall: NoRecall, features: Tensor) -> Tensor:
    """Features `[B, T, D]` of stretches taken for whole episodes -> states `[B, T, D]`."""
    trace, states = recall.begin(features[:, 0]), []
    for now in features.unbind(1):
        state, trace = recall(now, trace)
        states.append(state)
    return torch.stack(states, 1)


class Landmarks(nn.Module):
    """A few of all the moments that were ever lived: what there is to be recognised."""

    filled: Tensor

    def __init__(self, blank: Observation) -> None:
        """Room for observations `[K, *O]` like these, none of them lived yet."""
        super().__init__()
        self.names = list(by_sense(blank))
        for index, part in enumerate(by_sense(blank).values()):
            self.register_buffer(f"sense_{index}", part)
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @property
    def room(self) -> int:
        """K"""
        return len(self.get_buffer("sense_0"))

    def keep(self, moments: Observation) -> None:
        """These `[K, *O]` instead of those before."""
        for index, name in enumerate(self.names):
            self.get_buffer(f"sense_{index}").copy_(by_sense(moments)[name])
        self.filled.fill_(True)

    def seen(self) -> Observation:
        """`[K, *O]`, or none `[0, *O]` before anything was lived."""
        count = self.room if self.filled else 0
        parts = {n: self.get_buffer(f"sense_{i}")[:count] for i, n in enumerate(self.names)}
        return parts.get("obs", parts)


class ShortTerm(Stateful):
    """What an agent keeps of the episodes that it is in, one in each of B worlds."""

    episode_state = ("trace", "states")

    def __init__(self, recall: NoRecall) -> None:
        self.recall = recall
        self.trace: Trace | None = None
        self.states: list[Tensor] = []

    def begin(self, fresh: Tensor | None = None) -> None:
        """Episodes begin: in all worlds, or in those of `fresh` `[B]`."""
        if fresh is None or self.trace is None or len(fresh) != len(self.states[0]):
            self.trace, self.states = None, []
            return
        fresh = fresh.to(self.states[0].device)
        self.trace = renew(self.trace, fresh)
        self.states = [state.masked_fill(fresh[:, None], NOWHERE) for state in self.states]

    def see(self, features: Tensor, keep: int = 1) -> Tensor:
        """Features of the next moment `[B, D]` -> its state `[B, D]`; the last `keep` are kept."""
        if self.trace is None or len(features) != len(self.states[0]):
            self.trace, self.states = self.recall.begin(features), []
        state, self.trace = self.recall(features, self.trace)
        self.states = [*self.states, state][-keep:]
        return state

    def lived(self) -> Tensor:
        """`[B, M, D]`: the states of the episode so far, the present one included."""
        return torch.stack(self.states, 1)
