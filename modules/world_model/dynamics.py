"""Dynamics models of one step of a level: the forward model s, a, z -> s' and the inverse model
s, s' -> a, over flat states. Action and latent variable come as one tensor, `[..., A + Z]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Annotated, TypeAlias

import torch
from torch import Tensor, nn

from modules.by_hand.caches import DerivedFromWeights, own_weights
from modules.by_hand.conv_unroll import ConvUnroll
from modules.by_hand.mlp_unroll import MLPUnroll
from modules.nets import GlimpseConfig, fourier_linear
from modules.types import WIDTH, MapShape, Settings


def _zero_init(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A residual branch that starts at zero keeps long rollouts stable at the start of training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


Modulation: TypeAlias = tuple[Tensor, Tensor]
"""Factor and shift of features, `[..., F]` each."""


class FiLM(nn.Module):
    """Features, scaled and shifted by functions of the action: products of state and action, which
    a sum of both is slow to learn (FiLM, Perez et al. 2018)."""

    def __init__(self, action_dim: int, features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(action_dim, 2 * features)

    def forward(self, action: Tensor) -> Modulation:
        """`[..., A]` -> the modulation under that action."""
        layer = self.modulation  # in two halves: the gradient of one product's halves is copied
        scale, shift = (
            nn.functional.linear(action, weight, bias)
            for weight, bias in zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
        )
        return 1 + scale, shift


def modulate(features: Tensor, modulation: Modulation) -> Tensor:
    """Features `[N, F]` -> the activations `[N, F]` under a modulation."""
    factor, shift = modulation
    return nn.functional.silu(torch.addcmul(shift, features, factor))


@dataclass(frozen=True, kw_only=True)
class MLPDynamicsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 128

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        input_layer = nn.Linear(prod(shape), self.hidden)
        return MLPDynamics(input_layer, self.hidden, prod(shape), action_dim, latent_dim)


class MLPDynamics(nn.Module):
    """s' = s + MLP(s | a) for vector states; the action modulates every hidden layer (FiLM). Only
    the first `moving_dims` numbers of a state change."""

    def __init__(
        self,
        input_layer: nn.Module,
        hidden: int,
        moving_dims: int,
        action_dim: int,
        latent_dim: int,
    ) -> None:
        super().__init__()
        self.input_layer, self.moving_dims = input_layer, moving_dims
        self.hidden_layer = nn.Linear(hidden, hidden)
        self.films = nn.ModuleList([FiLM(action_dim + latent_dim, hidden) for _ in range(2)])
        self.delta_head = _zero_init(nn.Linear(hidden, moving_dims))
        self.inverse_head = nn.Sequential(
            nn.Linear(2 * moving_dims, hidden), nn.SiLU(), nn.Linear(hidden, action_dim)
        )
        self.constants: DerivedFromWeights[MLPUnroll] = DerivedFromWeights()

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        first, second = self.films
        return self._step(state, first(action_latent), second(action_latent))

    def unroll_at_once(self, state: Tensor, action_latents: Tensor) -> list[Tensor]:
        """`[N, D]`, `[N, H, A + Z]` -> H + 1 states `[N, D]`. What depends on the actions alone is
        computed for all steps at once."""
        modulations = [film(action_latents.transpose(0, 1)) for film in self.films]  # [H, N, F]
        by_step = [list(zip(*(part.unbind(0) for part in m), strict=True)) for m in modulations]
        states = [state]
        for first, second in zip(*by_step, strict=True):
            states.append(self._step(states[-1], first, second))
        return states

    def unroll_by_hand(self) -> MLPUnroll | None:
        """H steps of `forward`, faster (`modules/by_hand`). None if the weights take a gradient or
        the first layer is not linear."""
        if not isinstance(self.input_layer, nn.Linear):
            return None
        layers = (self.input_layer, self.hidden_layer, self.delta_head)
        weights = own_weights(*layers, *(film.modulation for film in self.films))  # type: ignore[arg-type]
        return self.constants.get(weights, lambda: MLPUnroll(*weights))

    def _step(self, state: Tensor, first: Modulation, second: Modulation) -> Tensor:
        features = modulate(self.input_layer(state), first)
        delta = self.delta_head(modulate(self.hidden_layer(features), second))
        num_still = state.shape[-1] - self.moving_dims
        return state + (nn.functional.pad(delta, (0, num_still)) if num_still else delta)

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = state[..., : self.moving_dims], next_state[..., : self.moving_dims]
        return self.inverse_head(torch.cat(both, -1))


@dataclass(frozen=True, kw_only=True)
class FourierDynamicsConfig(Settings):
    """`MLPDynamics` on Fourier features of the state: for sharp changes of the dynamics, at thin
    walls for instance, in a smooth representation."""

    hidden: Annotated[int, WIDTH] = 256
    num_frequencies: Annotated[int, WIDTH] = 128
    frequency_scale: Annotated[float, (0.0, 1e6)] = 4.0
    """Standard deviation of the frequencies, in radians per unit of the state."""

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        size = prod(shape)
        layer = fourier_linear(size, self.num_frequencies, self.frequency_scale, self.hidden)
        return MLPDynamics(layer, self.hidden, size, action_dim, latent_dim)


@dataclass(frozen=True, kw_only=True)
class GlimpseDynamicsConfig(Settings):
    """`MLPDynamics` on the keypoints of a state and the map around each, for states of a
    `KeypointMapEncoder`: the effect of a wall is learnt once for all positions and all layouts."""

    hidden: Annotated[int, WIDTH] = 256
    glimpse: GlimpseConfig = field(default_factory=GlimpseConfig)

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        glimpse = self.glimpse.build(shape)
        layer = nn.Sequential(glimpse, nn.Linear(glimpse.out, self.hidden))
        return MLPDynamics(layer, self.hidden, glimpse.moving_dims, action_dim, latent_dim)


@dataclass(frozen=True, kw_only=True)
class ConvDynamicsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 64

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> ConvDynamics:
        return ConvDynamics(self, shape, action_dim, latent_dim)


class ConvDynamics(nn.Module):
    """s' = s + convolutions(s | a) for map states: the change of a cell is a function of its
    neighbourhood, the same in every cell; the action modulates the features (FiLM)."""

    def __init__(
        self, config: ConvDynamicsConfig, shape: MapShape, action_dim: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.shape, channels, hidden = shape, shape[0], config.hidden
        self.input_layer = nn.Conv2d(channels, hidden, 3, padding=1)
        self.film = nn.Linear(action_dim + latent_dim, 2 * hidden)
        self.hidden_layer = nn.Conv2d(hidden, hidden, 1)
        self.delta_head = _zero_init(nn.Conv2d(hidden, channels, 3, padding=1))
        self.pair_encoder = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.inverse_head = nn.Linear(hidden, action_dim)
        self.constants: DerivedFromWeights[ConvUnroll] = DerivedFromWeights()

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        scale, shift = self.film(action_latent)[..., None, None].chunk(2, dim=1)
        features = self.input_layer(state.unflatten(-1, self.shape))
        features = nn.functional.silu(torch.addcmul(features + shift, features, scale))
        return state + self.delta_head(nn.functional.silu(self.hidden_layer(features))).flatten(1)

    def unroll_by_hand(self) -> ConvUnroll | None:
        """H steps of `forward`, faster (`modules/by_hand`). None if the weights take a gradient."""
        weights = own_weights(self.input_layer, self.film, self.hidden_layer, self.delta_head)
        return self.constants.get(weights, lambda: ConvUnroll(self.shape, *weights))

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = torch.cat([s.unflatten(-1, self.shape) for s in (state, next_state)], -3)
        features = nn.functional.silu(self.pair_encoder(both.flatten(0, -4)))
        return self.inverse_head(features.sum((-2, -1))).unflatten(0, state.shape[:-1])
