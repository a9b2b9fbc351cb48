"""World model: what would happen if. A joint-embedding predictive architecture (LeCun 2022, 4.4):
it predicts states, never observations.

The model is a list of levels, finest first. Each level has its own dynamics and its own stride:
how many steps of the level below one of its steps spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.types import Rollout, Shape


class Dynamics(Protocol):
    """Forward model s, a -> s' and inverse model s, s' -> a, over flat states."""

    def __call__(self, state: Tensor, action: Tensor) -> Tensor: ...
    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor: ...


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A residual change that starts as no change makes long unrolls start stable."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class VectorDynamics(nn.Module):
    """s' = s + MLP(s, a) for vector states."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128

        def build(self, shape: Shape, action_dim: int) -> VectorDynamics:
            return VectorDynamics(self, shape, action_dim)

    def __init__(self, config: Config, shape: Shape, action_dim: int) -> None:
        super().__init__()
        state, hidden = prod(shape), config.hidden
        self.change = nn.Sequential(
            nn.Linear(state + action_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            _zero(nn.Linear(hidden, state)),
        )
        self.cause = nn.Sequential(
            nn.Linear(2 * state, hidden), nn.SiLU(), nn.Linear(hidden, action_dim)
        )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[N, D]`, `[N, A]` -> `[N, D]`"""
        return state + self.change(torch.cat([state, action], -1))

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        return self.cause(torch.cat([state, next_state], -1))


class MapDynamics(nn.Module):
    """s' = s + convolutions(s | a) for map states: what happens in a place depends on its
    neighbourhood, the same in every place; the action enters by feature-wise modulation
    (FiLM, Perez et al. 2018)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 64

        def build(self, shape: Shape, action_dim: int) -> MapDynamics:
            return MapDynamics(self, shape, action_dim)

    def __init__(self, config: Config, shape: Shape, action_dim: int) -> None:
        super().__init__()
        self.shape, channels, hidden = shape, shape[0], config.hidden
        self.look = nn.Conv2d(channels, hidden, 3, padding=1)
        self.film = nn.Linear(action_dim, 2 * hidden)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.change = _zero(nn.Conv2d(hidden, channels, 3, padding=1))
        self.compare = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.cause = nn.Linear(hidden, action_dim)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[N, D]`, `[N, A]` -> `[N, D]`"""
        scale, shift = self.film(action)[..., None, None].chunk(2, dim=1)
        seen = self.look(state.unflatten(-1, self.shape))
        seen = nn.functional.silu(torch.addcmul(seen + shift, seen, scale))
        return state + self.change(nn.functional.silu(self.mix(seen))).flatten(1)

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = torch.cat(
            [state.unflatten(-1, self.shape), next_state.unflatten(-1, self.shape)], -3
        )
        seen = nn.functional.silu(self.compare(both.flatten(0, -4)))
        return self.cause(seen.sum((-2, -1))).unflatten(0, state.shape[:-1])


class Level(nn.Module):
    """One time scale: a dynamics, and how many steps of the level below it strides over."""

    def __init__(self, dynamics: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.dynamics, self.stride = dynamics, stride

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[N, D]`, `[N, H, A]` -> `[N, H + 1, D]`: imagining H steps is stepping H times."""
        states = [state]
        for action in actions.unbind(1):
            states.append(self.dynamics(states[-1], action))
        return torch.stack(states, 1)


class WorldModel(nn.Module):
    """All levels, finest first."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        dynamics: VectorDynamics.Config | MapDynamics.Config

        def build(self, shape: Shape, action_dim: int) -> WorldModel:
            return WorldModel([Level(self.dynamics.build(shape, action_dim))])

    def __init__(self, levels: list[Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def level(self, index: int) -> Level:
        level = self.levels[index]
        assert isinstance(level, Level)
        return level

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        """`[B, D]`, `[B, P, H, A]` -> the futures at the finest level."""
        batch, proposals = actions.shape[:2]
        start = state[:, None].expand(-1, proposals, -1).flatten(0, 1)  # [B * P, D]
        states = self.level(0).unroll(start, actions.flatten(0, 1))
        states = states.unflatten(0, (batch, proposals))
        return Rollout(states, actions, actions[..., :0])
