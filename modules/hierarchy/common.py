"""What every hierarchy is asked for, and the one that has a single level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from modules.types import Distance, Focus, Shape


class Hierarchy(Protocol):
    """State `[B, D]` and focus -> the focus of the lowest level."""

    def reset(self, seed: int = 0) -> None: ...
    def __call__(self, state: Tensor, focus: Focus) -> Focus: ...


class Flat(nn.Module):
    """One level: the goal itself is what is pursued."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape, action_dim: int, distance: Distance | None) -> Flat:
            return Flat()

    def reset(self, seed: int = 0) -> None:
        """Hopes for nothing."""

    def forward(self, state: Tensor, focus: Focus) -> Focus:
        return focus
