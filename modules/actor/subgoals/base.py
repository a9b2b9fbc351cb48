"""The protocol of every hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modules.types import TaskContext


class LevelInfo(NamedTuple):
    """A learnt level above, for probing and display."""

    num_steps: int  # environment steps that one step of the level spans
    has_own_states: bool  # False if it shares the states of the level below
    encode: Callable[[Tensor], Tensor]  # states of the lowest level `[..., D]` -> its own
    predict: Callable[[Tensor, Tensor], Tensor]
    """Its states `[N, D]`, environment actions `[N, T, A]` -> `[N, T // num_steps + 1, D]`."""


class Hierarchy(Protocol):
    """State `[B, D]`, context and what the levels carry from step to step -> the context of the
    lowest level, and what they carry on. `learned_levels`: the learnt levels above it, the lowest
    first. `description`: how it finds subgoals, for display. `initial_carry`: at the beginning of
    an episode; `seed` is that of the random draws."""

    description: str

    @property
    def learned_levels(self) -> Sequence[LevelInfo]: ...
    def initial_carry(self, seed: int) -> Any: ...
    def __call__(
        self, state: Tensor, context: TaskContext, carry: Any
    ) -> tuple[TaskContext, Any]: ...


def gather_waypoints(landmarks: Tensor, nodes: Tensor, goal: Tensor) -> Tensor:
    """Landmarks `[K, D]` or `[B, K, D]`, node indices `[B, H]` where K is the goal, goals `[B, D]`
    -> the states of these nodes, `[B, H, D]`."""
    count, rows = landmarks.shape[-2], torch.arange(len(nodes), device=nodes.device)[:, None]
    found = landmarks.expand(len(nodes), -1, -1)[rows, nodes.clamp_max(count - 1)]
    return torch.where((nodes == count)[..., None], goal[:, None], found)
