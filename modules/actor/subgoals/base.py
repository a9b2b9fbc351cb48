"""What every hierarchy is asked for, and the one that has a single level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.types import LatentRolloutFn, MapShape, QuasimetricFns, TaskContext


class LevelInfo(NamedTuple):
    """A learnt level above, for whoever wants to look at it."""

    num_steps: int  # steps of the body that one of its own spans
    has_own_states: bool  # whether its states are its own, not those of the level below
    encode: Callable[[Tensor], Tensor]  # states of the lowest level `[..., D]` -> its own
    predict: Callable[[Tensor, Tensor], Tensor]
    """Its states `[N, D]`, actions of the body `[N, T, A]` -> `[N, T // stride + 1, D]`."""


class Hierarchy(Protocol):
    """State `[B, D]` and focus -> the focus of the lowest level. `learned_levels`: what is learnt above it,
    the lowest first. `description`: how it finds subgoals, for who looks at them."""

    description: str

    @property
    def learned_levels(self) -> Sequence[LevelInfo]: ...
    def reset(self, seed: int = 0) -> None: ...
    def __call__(self, state: Tensor, context: TaskContext) -> TaskContext: ...


@dataclass(frozen=True, kw_only=True)
class FlatConfig:
    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> Flat:
        return Flat()


class Flat(nn.Module):
    """One level: the goal itself is what is pursued."""

    learned_levels: Sequence[LevelInfo] = ()
    description = ""

    def reset(self, seed: int = 0) -> None:
        """Hopes for nothing."""

    def forward(self, state: Tensor, context: TaskContext) -> TaskContext:
        return context


def gather_waypoints(landmarks: Tensor, nodes: Tensor, goal: Tensor) -> Tensor:
    """Landmarks `[K, D]` or `[B, K, D]`, nodes `[B, H]`, K for the goal, goals `[B, D]` -> where
    these are, `[B, H, D]`."""
    count, rows = landmarks.shape[-2], torch.arange(len(nodes), device=nodes.device)[:, None]
    found = landmarks.expand(len(nodes), -1, -1)[rows, nodes.clamp_max(count - 1)]
    return torch.where((nodes == count)[..., None], goal[:, None], found)
