"""Forward and inverse models of one step: the heart of every level of the world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.layers import Glance, in_waves
from modules.types import WIDTH, Shape, require


class Dynamics(Protocol):
    """Forward model s, a, z -> s' and inverse model s, s' -> a, over flat states; what acts on the
    state, action and latent variable, comes as one, `[..., A + Z]`."""

    def __call__(self, state: Tensor, acting: Tensor) -> Tensor: ...
    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor: ...


def unrolled(dynamics: Callable[[Tensor, Tensor], Tensor], state: Tensor, acting: Tensor) -> Tensor:
    """`[N, D]`, `[N, H, A + Z]` -> `[N, H + 1, D]`: imagining H steps is stepping H times."""
    states = [state]
    for act in acting.unbind(1):
        states.append(dynamics(states[-1], act))
    return torch.stack(states, 1)


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A residual change that starts as no change makes long unrolls start stable."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Film(nn.Module):
    """Features `[N, F]`, each scaled and shifted as the action `[N, A]` says: products of state and
    action, which sums alone are slow to learn (feature-wise modulation, Perez et al. 2018)."""

    def __init__(self, action_dim: int, features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(action_dim, 2 * features)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        scale, shift = self.modulation(action).chunk(2, -1)
        return nn.functional.silu(torch.addcmul(features + shift, features, scale))


class VectorDynamics(nn.Module):
    """s' = s + MLP(s | a) for vector states; the action modulates every hidden layer. What moves is
    the first `moving` numbers of a state, the rest stays as it is."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape, action_dim: int, latent: int = 0) -> VectorDynamics:
            look = nn.Linear(prod(shape), self.hidden)
            return VectorDynamics(look, self.hidden, prod(shape), action_dim, latent)

    def __init__(
        self, look: nn.Module, hidden: int, moving: int, action_dim: int, latent: int
    ) -> None:
        super().__init__()
        self.look, self.moving = look, moving
        self.mix = nn.Linear(hidden, hidden)
        self.films = nn.ModuleList([Film(action_dim + latent, hidden) for _ in range(2)])
        self.change = _zero(nn.Linear(hidden, moving))
        self.cause = nn.Sequential(
            nn.Linear(2 * moving, hidden), nn.SiLU(), nn.Linear(hidden, action_dim)
        )

    def forward(self, state: Tensor, acting: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        first, second = self.films
        seen = first(self.look(state), acting)
        change = self.change(second(self.mix(seen), acting))
        return state + nn.functional.pad(change, (0, state.shape[-1] - self.moving))

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = state[..., : self.moving], next_state[..., : self.moving]
        return self.cause(torch.cat(both, -1))


class WaveDynamics(VectorDynamics):
    """The same, looking at the state in waves: for worlds whose walls are thin in a state that is
    smooth. What is sharp is then what happens, not what is perceived."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        waves: int = 128
        detail: float = 4.0
        """Radians per unit of the state: how fine they are."""

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, waves=WIDTH, detail=(0.0, 1e6))

        def build(self, shape: Shape, action_dim: int, latent: int = 0) -> WaveDynamics:
            look = in_waves(prod(shape), self.waves, self.detail, self.hidden)
            return WaveDynamics(look, self.hidden, prod(shape), action_dim, latent)


class GlanceDynamics(VectorDynamics):
    """The same for scenes, looking at what is around that which moves: what walls do is learnt once
    for all places and all layouts."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        glance: Glance.Config = field(default_factory=Glance.Config)

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape, action_dim: int, latent: int = 0) -> GlanceDynamics:
            glance = self.glance.build(shape)
            look = nn.Sequential(glance, nn.Linear(glance.out, self.hidden))
            return GlanceDynamics(look, self.hidden, glance.moving, action_dim, latent)


class MapDynamics(nn.Module):
    """s' = s + convolutions(s | a) for map states: what happens in a place depends on its
    neighbourhood, the same in every place; the action modulates what is seen there."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape, action_dim: int, latent: int = 0) -> MapDynamics:
            return MapDynamics(self, shape, action_dim, latent)

    def __init__(self, config: Config, shape: Shape, action_dim: int, latent: int) -> None:
        super().__init__()
        self.shape, channels, hidden = shape, shape[0], config.hidden
        self.look = nn.Conv2d(channels, hidden, 3, padding=1)
        self.film = nn.Linear(action_dim + latent, 2 * hidden)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.change = _zero(nn.Conv2d(hidden, channels, 3, padding=1))
        self.compare = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.cause = nn.Linear(hidden, action_dim)

    def forward(self, state: Tensor, acting: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        scale, shift = self.film(acting)[..., None, None].chunk(2, dim=1)
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
