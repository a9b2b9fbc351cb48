"""Short-term memory within an episode: the state may depend on earlier observations.

Three interchangeable forms: none; a recurrent network (as in recurrent state-space models, Hafner
et al. 2019); an associative memory of keys and values with attention (LeCun 2022, 3 and 4.9;
neural episodic control, Pritzel et al. 2017).

A memory state is a tuple of tensors whose first dimension is the environment, all zero when an
episode begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Annotated, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from modules.types import HORIZON, WIDTH, MapShape, Observation, Settings, as_dict

MemoryState: TypeAlias = tuple[Tensor, ...]

MAX_STATES = 1000
"""Most states of an episode that are kept."""

FAR_AWAY = 1e4
"""Every number of a state that takes the place of those of an earlier episode: far from any other
state."""


class ShortTermMemory(nn.Module):
    """What the state keeps of the episode; here nothing, it is the features of the present
    observation."""

    def initial_state(self, like: Tensor) -> MemoryState:
        """The memory state at the start of episodes, for features `[B, D]`."""
        return ()

    def forward(self, features: Tensor, memory_state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Features of the present observation `[B, D]` -> state `[B, D]`, new memory state."""
        return features, memory_state


@dataclass(frozen=True, kw_only=True)
class GRUMemoryConfig(Settings):
    hidden: Annotated[int, WIDTH] = 64

    def build(self, shape: MapShape) -> GRUMemory:
        return GRUMemory(prod(shape), self.hidden)


class GRUMemory(ShortTermMemory):
    """A gated recurrent unit; the state is the features plus a linear readout of its hidden
    state."""

    def __init__(self, state_dim: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(state_dim, hidden)
        self.readout = nn.Linear(hidden, state_dim)

    def initial_state(self, like: Tensor) -> MemoryState:
        return (like.new_zeros(len(like), self.cell.hidden_size),)

    def forward(self, features: Tensor, memory_state: MemoryState) -> tuple[Tensor, MemoryState]:
        hidden = self.cell(features, memory_state[0])
        return features + self.readout(hidden), (hidden,)


@dataclass(frozen=True, kw_only=True)
class AttentionMemoryConfig(Settings):
    num_slots: Annotated[int, HORIZON] = 64
    """Observations that are kept; then the oldest is overwritten."""
    slot_dim: Annotated[int, WIDTH] = 32
    """Dimensions of a key and of a value."""

    def build(self, shape: MapShape) -> AttentionMemory:
        return AttentionMemory(prod(shape), self)


class AttentionMemory(ShortTermMemory):
    """The last `num_slots` observations of the episode as keys and values, queried by the present
    one; the state is the features plus a linear readout of the retrieved value."""

    def __init__(self, state_dim: int, config: AttentionMemoryConfig) -> None:
        super().__init__()
        self.num_slots, self.slot_dim = config.num_slots, config.slot_dim
        self.key = nn.Linear(state_dim, config.slot_dim)
        self.value = nn.Linear(state_dim, config.slot_dim)
        self.query = nn.Linear(state_dim, config.slot_dim)
        self.readout = nn.Linear(config.slot_dim, state_dim)

    def initial_state(self, like: Tensor) -> MemoryState:
        slots = like.new_zeros(len(like), self.num_slots, self.slot_dim)
        return slots, slots, torch.zeros(len(like), dtype=torch.long, device=like.device)

    def forward(self, features: Tensor, memory_state: MemoryState) -> tuple[Tensor, MemoryState]:
        keys, values, age = memory_state  # [B, M, K], [B, M, K], [B]
        slot = torch.arange(self.num_slots, device=age.device)
        is_slot = (slot == (age % self.num_slots)[:, None])[..., None]  # [B, M, 1]
        keys = torch.where(is_slot, self.key(features)[:, None], keys)
        values = torch.where(is_slot, self.value(features)[:, None], values)
        match = torch.einsum("bmk,bk->bm", keys, self.query(features)) / sqrt(self.slot_dim)
        match = match.masked_fill(slot > age[:, None], -torch.inf)
        retrieved = torch.einsum("bm,bmk->bk", match.softmax(1), values)
        return features + self.readout(retrieved), (keys, values, age + 1)


def reset_where(memory_state: MemoryState, reset_mask: Tensor) -> MemoryState:
    """The memory state, set to zero in the environments `reset_mask` `[B]`."""
    return tuple(
        part.masked_fill(reset_mask.reshape(-1, *[1] * (part.ndim - 1)), 0) for part in memory_state
    )


def unroll_memory(memory: ShortTermMemory, features: Tensor) -> Tensor:
    """Features `[B, T, D]` -> states `[B, T, D]`, from the initial memory state."""
    memory_state, states = memory.initial_state(features[:, 0]), []
    for current in features.unbind(1):
        state, memory_state = memory(current, memory_state)
        states.append(state)
    return torch.stack(states, 1)


class ReferenceObservations(nn.Module):
    """K observations from the replay buffer, which tell imagined states that can occur from those
    that can't."""

    filled: Tensor

    def __init__(self, blank: Observation) -> None:
        """`blank` `[K, *O]` provides shapes and types; nothing is stored yet."""
        super().__init__()
        self.names = list(as_dict(blank))
        for index, part in enumerate(as_dict(blank).values()):
            self.register_buffer(f"obs_{index}", part)
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @property
    def capacity(self) -> int:
        """K"""
        return len(self.get_buffer("obs_0"))

    def store(self, obs: Observation) -> None:
        """Replaces the observations by these `[K, *O]`."""
        for index, name in enumerate(self.names):
            self.get_buffer(f"obs_{index}").copy_(as_dict(obs)[name])
        self.filled.fill_(True)

    def observations(self) -> Observation:
        """`[K, *O]`, or `[0, *O]` before `store`."""
        count = self.capacity if self.filled else 0
        parts = {n: self.get_buffer(f"obs_{i}")[:count] for i, n in enumerate(self.names)}
        return parts.get("obs", parts)


class EpisodeMemory(NamedTuple):
    """The memory state and the states so far of the present episode in each of B environments."""

    memory_state: MemoryState | None = None
    states: tuple[Tensor, ...] = ()  # each [B, D], the present one last

    def reset(self, reset_mask: Tensor | None = None) -> EpisodeMemory:
        """An episode begins in all environments, or in those of `reset_mask` `[B]`."""
        if reset_mask is None or not self.states or len(reset_mask) != len(self.states[0]):
            return EpisodeMemory()
        assert self.memory_state is not None
        reset_mask = reset_mask.to(self.states[0].device)
        states = (state.masked_fill(reset_mask[:, None], FAR_AWAY) for state in self.states)
        return EpisodeMemory(reset_where(self.memory_state, reset_mask), tuple(states))

    def update(
        self, memory: ShortTermMemory, features: Tensor, keep: int = 1
    ) -> tuple[Tensor, EpisodeMemory]:
        """Features of the next observation `[B, D]` -> its state `[B, D]`, and the memory with it;
        the last `keep` states are kept."""
        memory_state, states = self
        if memory_state is None or len(features) != len(states[0]):
            memory_state, states = memory.initial_state(features), ()
        state, memory_state = memory(features, memory_state)
        return state, EpisodeMemory(memory_state, (*states, state)[-keep:])

    def episode_states(self) -> Tensor:
        """`[B, M, D]`: the states of the episode so far, the present one last."""
        return torch.stack(self.states, 1)
