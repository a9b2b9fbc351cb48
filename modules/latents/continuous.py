"""Latent variables that are numbers: noise, and few numbers far from zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.latents.common import Dynamics, Inferred
from modules.layers import mlp
from modules.types import WIDTH, require

_EDGE = 1e-6


class _Informed(nn.Module):
    """Reads what the next state tells beyond state and action. The states are not drawn to make
    that easy: no gradient goes into them."""

    def __init__(self, state: int, action_dim: int, hidden: int, told: int) -> None:
        super().__init__()
        self.posterior = mlp(2 * state + action_dim, hidden, told)

    def _posterior(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        state, next_state = state.detach(), next_state.detach()
        return self.posterior(torch.cat([state, next_state - state, action], -1))


class GaussianLatent(_Informed):
    """Noise: q and p are normal, and the nats by which q may differ from p are few (the
    variational autoencoder, Kingma & Welling 2014, with a learnt p as in PlaNet, Hafner et al.
    2019). For what is a little uncertain everywhere: no normal p is as rare as a gust."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        size: int = 4
        """Z"""
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, size=WIDTH, hidden=WIDTH)

        def build(self, state: int, action_dim: int) -> GaussianLatent:
            return GaussianLatent(state, action_dim, self.hidden, self.size)

    def __init__(self, state: int, action_dim: int, hidden: int, size: int) -> None:
        super().__init__(state, action_dim, hidden, 2 * size)
        self.size = self.chances = size
        self.prior = mlp(state + action_dim, hidden, 2 * size)

    def infer(
        self, state: Tensor, action: Tensor, next_state: Tensor, chance: Tensor, dynamics: Dynamics
    ) -> Inferred:
        q = _normal(self._posterior(state, action, next_state))
        p = _normal(self.prior(torch.cat([state.detach(), action], -1)))
        z = q.mean + q.scale * _probit(chance)
        acting = torch.cat([action, z], -1)
        return Inferred(acting, nats(q, _still(p)), nats(_still(q), p))

    def draw(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        p = _normal(self.prior(torch.cat([state, action], -1)))
        return torch.cat([action, p.mean + p.scale * _probit(chance)], -1)

    def likeliest(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([action, _normal(self.prior(torch.cat([state, action], -1))).mean], -1)


class Normal(NamedTuple):
    """Independent normal numbers, `[..., Z]` each."""

    mean: Tensor
    scale: Tensor


def _normal(told: Tensor) -> Normal:
    mean, free = told.chunk(2, -1)
    return Normal(mean, nn.functional.softplus(free) + 1e-2)


def _still(normal: Normal) -> Normal:
    return Normal(normal.mean.detach(), normal.scale.detach())


def nats(q: Normal, p: Normal) -> Tensor:
    """KL(q || p), summed over Z, mean over the rest; scalar."""
    ratio = q.scale / p.scale
    apart = (q.mean - p.mean) / p.scale
    return ((ratio.square() + apart.square() - 1) / 2 - ratio.log()).sum(-1).mean()


def _probit(chance: Tensor) -> Tensor:
    return torch.special.ndtri(chance.clamp(_EDGE, 1 - _EDGE))


class SparseLatent(_Informed):
    """Few numbers far from zero: z has Laplace noise of unit scale about what is inferred, and the
    price |m| + exp(-|m|) - 1 of a mean m, an L1 norm but close to zero, is KL to such noise about
    zero (sparse coding as a variational autoencoder, Barello et al. 2018). What is drawn are z that
    were inferred last, wherever that was: noise alone would hardly ever be as rare as they are."""

    remembered: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        size: int = 8
        """Z"""
        hidden: int = 64
        remembered: int = 1024
        """Inferred z that are kept to be drawn."""

        def __post_init__(self) -> None:
            require(self, size=WIDTH, hidden=WIDTH, remembered=(1, 10_000_000))

        def build(self, state: int, action_dim: int) -> SparseLatent:
            return SparseLatent(self, state, action_dim)

    def __init__(self, config: Config, state: int, action_dim: int) -> None:
        super().__init__(state, action_dim, config.hidden, config.size)
        self.size = self.chances = config.size
        self.register_buffer("remembered", torch.zeros(config.remembered, config.size))

    def infer(
        self, state: Tensor, action: Tensor, next_state: Tensor, chance: Tensor, dynamics: Dynamics
    ) -> Inferred:
        mean = self._posterior(state, action, next_state)
        price = (mean.abs() + (-mean.abs()).exp() - 1).sum(-1).mean()
        z = mean + _laplace(chance)
        if self.training:
            self._remember(z.detach().flatten(0, -2))
        return Inferred(torch.cat([action, z], -1), price, action.new_zeros(()))

    def _remember(self, z: Tensor) -> None:
        """`[N, Z]`, from the smallest to the largest, so that equal parts of chance are alike."""
        count = len(self.remembered)
        kept = z[torch.arange(count, device=z.device) * len(z) // count]
        self.remembered.copy_(kept[kept.abs().sum(-1).argsort()])

    def draw(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        index = (chance[..., 0] * len(self.remembered)).long()
        return torch.cat([action, self.remembered[index].to(action)], -1)

    def likeliest(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([action, action.new_zeros(*action.shape[:-1], self.size)], -1)


def _laplace(chance: Tensor) -> Tensor:
    """Quantiles of the Laplace distribution of unit scale."""
    side = chance.clamp(_EDGE, 1 - _EDGE) - 0.5
    return -side.sign() * (-2 * side.abs()).log1p()
