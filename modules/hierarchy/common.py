"""What every hierarchy is asked for, and the one that has a single level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.types import Ahead, Distance, Focus, Shape


class Rung(NamedTuple):
    """A learnt level above, for whoever wants to look at it."""

    stride: int  # steps of the body that one of its own spans
    own: bool  # whether its states are its own, not those of the level below
    lift: Callable[[Tensor], Tensor]  # states of the lowest level `[..., D]` -> its own
    foresee: Callable[[Tensor, Tensor], Tensor]
    """Its states `[N, D]`, actions of the body `[N, T, A]` -> `[N, T // stride + 1, D]`."""


class Hierarchy(Protocol):
    """State `[B, D]` and focus -> the focus of the lowest level. `rungs`: what is learnt above it,
    the lowest first. `about`: how it finds subgoals, for who looks at them."""

    about: str

    @property
    def rungs(self) -> Sequence[Rung]: ...
    def reset(self, seed: int = 0) -> None: ...
    def __call__(self, state: Tensor, focus: Focus) -> Focus: ...


class Flat(nn.Module):
    """One level: the goal itself is what is pursued."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(
            self, shape: Shape, action_dim: int, distance: Distance | None, ahead: Ahead
        ) -> Flat:
            return Flat()

    rungs: Sequence[Rung] = ()
    about = ""

    def reset(self, seed: int = 0) -> None:
        """Hopes for nothing."""

    def forward(self, state: Tensor, focus: Focus) -> Focus:
        return focus


def spots(landmarks: Tensor, nodes: Tensor, goal: Tensor) -> Tensor:
    """Landmarks `[K, D]` or `[B, K, D]`, nodes `[B, H]`, K for the goal, goals `[B, D]` -> where
    these are, `[B, H, D]`."""
    count, rows = landmarks.shape[-2], torch.arange(len(nodes), device=nodes.device)[:, None]
    found = landmarks.expand(len(nodes), -1, -1)[rows, nodes.clamp_max(count - 1)]
    return torch.where((nodes == count)[..., None], goal[:, None], found)
