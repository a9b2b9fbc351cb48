"""Latent variables that are numbers: noise, and few numbers far from zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.nets import silu_mlp
from modules.types import WIDTH, validate_ranges
from modules.world_model.latents.common import Dynamics, InferredLatent

_EPS = 1e-6


class _PosteriorLatent(nn.Module):
    """Reads what the next state tells beyond state and action. The states are not drawn to make
    that easy: no gradient goes into them."""

    def __init__(self, state: int, action_dim: int, hidden: int, num_params: int) -> None:
        super().__init__()
        self.posterior_net = silu_mlp(2 * state + action_dim, hidden, num_params)

    def _posterior_params(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        state, next_state = state.detach(), next_state.detach()
        return self.posterior_net(torch.cat([state, next_state - state, action], -1))


@dataclass(frozen=True, kw_only=True)
class GaussianLatentConfig:
    size: int = 4
    """Z"""
    hidden: int = 64

    def __post_init__(self) -> None:
        validate_ranges(self, size=WIDTH, hidden=WIDTH)

    def build(self, state: int, action_dim: int) -> GaussianLatent:
        return GaussianLatent(state, action_dim, self.hidden, self.size)


class GaussianLatent(_PosteriorLatent):
    """Noise: q and p are normal, and the nats by which q may differ from p are few (the
    variational autoencoder, Kingma & Welling 2014, with a learnt p as in PlaNet, Hafner et al.
    2019). For what is a little uncertain everywhere: no normal p is as rare as a gust."""

    def __init__(self, state: int, action_dim: int, hidden: int, size: int) -> None:
        super().__init__(state, action_dim, hidden, 2 * size)
        self.size = self.noise_dim = size
        self.prior_net = silu_mlp(state + action_dim, hidden, 2 * size)

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        q = _normal(self._posterior_params(state, action, next_state))
        p = _normal(self.prior_net(torch.cat([state.detach(), action], -1)))
        z = q.mean + q.scale * _probit(noise)
        action_latent = torch.cat([action, z], -1)
        return InferredLatent(
            action_latent, kl_divergence(q, _detached(p)), kl_divergence(_detached(q), p)
        )

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        p = _normal(self.prior_net(torch.cat([state, action], -1)))
        return torch.cat([action, p.mean + p.scale * _probit(noise)], -1)

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([action, _normal(self.prior_net(torch.cat([state, action], -1))).mean], -1)


class Normal(NamedTuple):
    """Independent normal numbers, `[..., Z]` each."""

    mean: Tensor
    scale: Tensor


def _normal(params: Tensor) -> Normal:
    mean, raw_scale = params.chunk(2, -1)
    return Normal(mean, nn.functional.softplus(raw_scale) + 1e-2)


def _detached(normal: Normal) -> Normal:
    return Normal(normal.mean.detach(), normal.scale.detach())


def kl_divergence(q: Normal, p: Normal) -> Tensor:
    """KL(q || p), summed over Z, mean over the rest; scalar."""
    ratio = q.scale / p.scale
    distance = (q.mean - p.mean) / p.scale
    return ((ratio.square() + distance.square() - 1) / 2 - ratio.log()).sum(-1).mean()


def _probit(noise: Tensor) -> Tensor:
    return torch.special.ndtri(noise.clamp(_EPS, 1 - _EPS))


@dataclass(frozen=True, kw_only=True)
class SparseLatentConfig:
    size: int = 8
    """Z"""
    hidden: int = 64
    memory_size: int = 1024
    """Inferred z that are kept to be drawn."""

    def __post_init__(self) -> None:
        validate_ranges(self, size=WIDTH, hidden=WIDTH, memory_size=(1, 10_000_000))

    def build(self, state: int, action_dim: int) -> SparseLatent:
        return SparseLatent(self, state, action_dim)


class SparseLatent(_PosteriorLatent):
    """Few numbers far from zero: z has Laplace noise of unit scale about what is inferred, and the
    price |m| + exp(-|m|) - 1 of a mean m, an L1 norm but close to zero, is KL to such noise about
    zero (sparse coding as a variational autoencoder, Barello et al. 2018). What is drawn are z that
    were inferred last, wherever that was: noise alone would hardly ever be as rare as they are."""

    memory_bank: Tensor

    def __init__(self, config: SparseLatentConfig, state: int, action_dim: int) -> None:
        super().__init__(state, action_dim, config.hidden, config.size)
        self.size = self.noise_dim = config.size
        self.register_buffer("memory_bank", torch.zeros(config.memory_size, config.size))

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        mean = self._posterior_params(state, action, next_state)
        kl = (mean.abs() + (-mean.abs()).exp() - 1).sum(-1).mean()
        z = mean + _laplace(noise)
        if self.training:
            self._store(z.detach().flatten(0, -2))
        return InferredLatent(torch.cat([action, z], -1), kl, action.new_zeros(()))

    def _store(self, z: Tensor) -> None:
        """`[N, Z]`, from the smallest to the largest, so that equal parts of chance are alike."""
        count = len(self.memory_bank)
        kept = z[torch.arange(count, device=z.device) * len(z) // count]
        self.memory_bank.copy_(kept[kept.abs().sum(-1).argsort()])

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        index = (noise[..., 0] * len(self.memory_bank)).long()
        return torch.cat([action, self.memory_bank[index].to(action)], -1)

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([action, action.new_zeros(*action.shape[:-1], self.size)], -1)


def _laplace(noise: Tensor) -> Tensor:
    """Quantiles of the Laplace distribution of unit scale."""
    side = noise.clamp(_EPS, 1 - _EPS) - 0.5
    return -side.sign() * (-2 * side.abs()).log1p()
