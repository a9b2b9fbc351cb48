"""Latent variables: what the state and the action do not determine of the next state (LeCun 2022,
4.2 and 4.8).

In training z is inferred from the next state, and the information it may carry about it is limited;
in planning z is sampled from a prior. Every kind fills in one energy, that of `energies.py`: it
says what R(z) is and how the z that minimises the energy is found. Noise is an argument, uniform in
[0, 1): the caller owns the random numbers, and the same numbers give the same future.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi, prod
from typing import Annotated, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from modules.nets import silu_mlp
from modules.types import WEIGHT, WIDTH, BadSetting, Settings
from modules.world_model.energies import (
    GroupSparsity,
    LatentEnergy,
    LISTAConfig,
    NormalPrior,
    ProximalDescent,
    ProximalDescentConfig,
    Regularizer,
    group_norms,
    squared_error,
)

Dynamics: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""State `[N, D]`, action and latent variable `[N, A + Z]` -> next state `[N, D]`."""

_EPS = 1e-6
MAX_CODES = 4096


class InferredLatent(NamedTuple):
    """A sample of the posterior, and its losses."""

    action_latent: Tensor  # [..., A + Z]
    kl: Tensor  # scalar, nats: information that z carries about the next state; trains q
    prior_nll: Tensor  # scalar, nats: the same divergence as a loss that trains the prior p


class Latent(nn.Module):
    """z of one step of a level; here there is none, and the dynamics are deterministic. States
    `[..., D]`, actions `[..., A]`, noise `[..., U]`."""

    size: int = 0  # Z
    noise_dim: int = 0  # U

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        """z sampled from the posterior q(z | s, a, s')."""
        return InferredLatent(action, action.new_zeros(()), action.new_zeros(()))

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Action and z sampled from the prior p(z | s, a), `[..., A + Z]`."""
        return action

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        """Action and the most likely z under the prior, `[..., A + Z]`."""
        return action

    def energy(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> Tensor:
        """The energy of the next state at the z that minimises it, `[...]`; without a z, the error
        of the prediction."""
        predicted = _predict(dynamics, state, self.mode(state, action))
        return squared_error(next_state, predicted)


def _predict(dynamics: Dynamics, state: Tensor, action_latent: Tensor) -> Tensor:
    """The dynamics for any batch shape: `[..., D]`, `[..., A + Z]` -> `[..., D]`."""
    return dynamics(state.flatten(0, -2), action_latent.flatten(0, -2)).view_as(state)


InferFn: TypeAlias = Callable[[LatentEnergy, Tensor], Tensor]
"""An energy and a guess of z `[..., Z]` -> the inferred z, without gradient."""


def _check_weight(weight: float, inference: object) -> None:
    """Raises BadSetting where z is inferred by descent, be it in `ami probe` alone, and has no
    regularizer."""
    if not (isinstance(inference, LISTAConfig) or weight):
        raise BadSetting(
            "regularizer_weight", weight,
            "above 0 where z is inferred by descent: z without a prior describes any next state",
        )  # fmt: skip


class _PosteriorLatent(Latent):
    """Infers z from state, action and next state by a network, and may descend the energy from
    there. No gradient flows into the states, so the encoder is not trained to make z easy to
    infer."""

    def __init__(
        self, posterior_net: nn.Module, regularizer_weight: float,
        inference: InferFn | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.posterior_net = posterior_net
        self.regularizer_weight, self.inference = regularizer_weight, inference

    def _posterior_params(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        state, next_state = state.detach(), next_state.detach()
        return self.posterior_net(torch.cat([state, next_state - state, action], -1))

    def _guess(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The most likely z by the network alone, `[..., Z]`."""
        return self._posterior_params(state, action, next_state)[..., : self.size]

    def _regularizer(self, state: Tensor, action: Tensor) -> Regularizer:
        """R(z) in this state."""
        raise NotImplementedError

    def _energy_of_z(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> LatentEnergy:
        """E as a function of z; no gradient flows into the states."""
        state, next_state = state.detach(), next_state.detach()

        def predict(z: Tensor) -> Tensor:
            return _predict(dynamics, state, torch.cat([action, z], -1))

        regularizer = self._regularizer(state, action)
        return LatentEnergy(predict, next_state, regularizer, self.regularizer_weight)

    def energy(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> Tensor:
        energy = self._energy_of_z(state, action, next_state, dynamics)
        infer = self.inference or ProximalDescent()
        return energy(infer(energy, self._guess(state, action, next_state)))


@dataclass(frozen=True, kw_only=True)
class GaussianLatentConfig(Settings):
    size: Annotated[int, WIDTH] = 4
    """Z"""
    hidden: Annotated[int, WIDTH] = 64
    regularizer_weight: Annotated[float, WEIGHT] = 0.01
    """lambda: what a nat of z costs beside half the squared error of the next state, where z is
    inferred by minimising the energy. The loss has weights of its own."""
    inference: ProximalDescentConfig | None = None
    """How the mean of z is inferred: by an MLP, or by descent from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.inference, LISTAConfig):
            expected = "None or by descent: LISTA infers sparse latent variables"
            raise BadSetting("inference", self.inference, expected)
        _check_weight(self.regularizer_weight, self.inference)

    def build(self, state_dim: int, action_dim: int) -> GaussianLatent:
        return GaussianLatent(self, state_dim, action_dim)


class GaussianLatent(_PosteriorLatent):
    """Normal q and p, with a penalty on KL(q || p) (the variational autoencoder, Kingma & Welling
    2014, with a learnt prior as in PlaNet, Hafner et al. 2019). For small uncertainty everywhere; a
    normal prior can't represent rare events. R is the negative log-likelihood under the prior."""

    def __init__(self, config: GaussianLatentConfig, state_dim: int, action_dim: int) -> None:
        size, hidden = config.size, config.hidden
        super().__init__(
            silu_mlp(2 * state_dim + action_dim, hidden, 2 * size),
            config.regularizer_weight,
            None if config.inference is None else config.inference.build(),
        )
        self.size = self.noise_dim = size
        self.prior_net = silu_mlp(state_dim + action_dim, hidden, 2 * size)

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        q = Normal.from_params(self._posterior_params(state, action, next_state))
        p = self._prior(state.detach(), action)
        missed: Tensor | float = 0.0
        if self.inference:
            energy = self._energy_of_z(state, action, next_state, dynamics)
            mean, scale = self.inference(energy, q.mean), q.scale.detach()
            missed = kl_divergence(Normal(mean, scale), Normal(q.mean, scale))
            q = q._replace(mean=mean)
        z = q.mean + q.scale * _probit(noise)
        return InferredLatent(
            torch.cat([action, z], -1),
            kl_divergence(q, p.detach()) + missed,
            kl_divergence(q.detach(), p),
        )

    def _regularizer(self, state: Tensor, action: Tensor) -> Regularizer:
        p = self._prior(state, action).detach()
        return NormalPrior(p.mean, p.scale)

    def _prior(self, state: Tensor, action: Tensor) -> Normal:
        return Normal.from_params(self.prior_net(torch.cat([state, action], -1)))

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        p = self._prior(state, action)
        return torch.cat([action, p.mean + p.scale * _probit(noise)], -1)

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([action, self._prior(state, action).mean], -1)


class Normal(NamedTuple):
    """Independent normal numbers, `[..., Z]` each."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def from_params(cls, params: Tensor) -> Normal:
        """Outputs of a network `[..., 2 Z]` -> means and, by softplus, scales."""
        mean, raw_scale = params.chunk(2, -1)
        return cls(mean, nn.functional.softplus(raw_scale) + 1e-2)

    def detach(self) -> Normal:
        return Normal(self.mean.detach(), self.scale.detach())

    def nll(self, value: Tensor) -> Tensor:
        """Negative log-likelihood of `[..., Z]` in nats, mean over Z; `[...]`."""
        deviation = (value - self.mean) / self.scale
        return ((deviation.square() + log(2 * pi)) / 2 + self.scale.log()).mean(-1)


def kl_divergence(q: Normal, p: Normal) -> Tensor:
    """KL(q || p), summed over Z, mean over the rest; scalar."""
    ratio = q.scale / p.scale
    distance = (q.mean - p.mean) / p.scale
    return ((ratio.square() + distance.square() - 1) / 2 - ratio.log()).sum(-1).mean()


def _probit(noise: Tensor) -> Tensor:
    return torch.special.ndtri(noise.clamp(_EPS, 1 - _EPS))


@dataclass(frozen=True, kw_only=True)
class SparseLatentConfig(Settings):
    size: Annotated[int, WIDTH] = 8
    """Z"""
    hidden: Annotated[int, WIDTH] = 64
    memory_size: Annotated[int, (1, 10_000_000)] = 1024
    """Inferred z that are kept, from which planning samples."""
    group_size: Annotated[int, WIDTH] = 1
    """Numbers of z that are zero or not together; divides `size`."""
    regularizer_weight: Annotated[float, WEIGHT] = 0.01
    """lambda: what an absolute value of 1 in z costs beside half the squared error of the next
    state, where z is inferred by minimising the energy. The loss has weights of its own."""
    inference: ProximalDescentConfig | LISTAConfig | None = None
    """How the mean of z is inferred: by an MLP, by descent from there, or by LISTA instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % self.group_size:
            expected = f"a divisor of the size of the latent variable, {self.size}"
            raise BadSetting("group_size", self.group_size, expected)
        _check_weight(self.regularizer_weight, self.inference)

    def build(self, state_dim: int, action_dim: int) -> SparseLatent:
        return SparseLatent(self, state_dim, action_dim)


class SparseLatent(_PosteriorLatent):
    """Few entries far from zero: q is a Laplace distribution of unit scale about the inferred mean
    m, and the loss |m| + exp(-|m|) - 1, an L1 norm except near zero, is its KL divergence to one
    about zero (sparse coding as a variational autoencoder, Barello et al. 2018). The prior is the
    empirical distribution of the last inferred z, in any state: it reproduces rare events, which
    Laplace noise does not. With groups, their norms take the place of |m|. R is the L1 norm, or
    that of groups."""

    memory_bank: Tensor

    def __init__(self, config: SparseLatentConfig, state_dim: int, action_dim: int) -> None:
        num_inputs, inference = 2 * state_dim + action_dim, config.inference
        if isinstance(inference, LISTAConfig):
            network: nn.Module = inference.build(num_inputs, config.size, config.group_size)
            descent: InferFn | None = None
        else:
            network = silu_mlp(num_inputs, config.hidden, config.size)
            descent = None if inference is None else inference.build()
        super().__init__(network, config.regularizer_weight, descent)
        self.group_size = config.group_size
        self.size = self.noise_dim = config.size
        self.register_buffer("memory_bank", torch.zeros(config.memory_size, config.size))

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        mean = self._posterior_params(state, action, next_state)
        missed: Tensor | float = 0.0
        if self.inference:
            energy = self._energy_of_z(state, action, next_state, dynamics)
            guess, mean = mean, self.inference(energy, mean)
            missed = self._information(guess - mean)
        kl = self._information(mean) + missed
        z = mean + _laplace(noise)
        if self.training:
            self._store(z.detach().flatten(0, -2))
        return InferredLatent(torch.cat([action, z], -1), kl, action.new_zeros(()))

    def _information(self, mean: Tensor) -> Tensor:
        """The divergence of q about these means from one about zero, in nats; scalar."""
        norms = group_norms(mean, self.group_size)
        return (norms + (-norms).exp() - 1).sum(-1).mean()

    def _regularizer(self, state: Tensor, action: Tensor) -> Regularizer:
        return GroupSparsity(self.group_size)

    def _store(self, z: Tensor) -> None:
        """Keeps z `[N, Z]`, sorted by size, so that nearby noise gives similar samples."""
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


@dataclass(frozen=True, kw_only=True)
class CategoricalLatentConfig(Settings):
    num_categories: Annotated[int, (2, MAX_CODES)] = 16
    """Z"""
    noise_std: Annotated[float, (1e-4, 1e3)] = 0.05
    """Standard deviation of the residual in each dimension of the state."""
    hidden: Annotated[int, WIDTH] = 64

    def build(self, state_dim: int, action_dim: int) -> CategoricalLatent:
        return CategoricalLatent(self, torch.eye(self.num_categories), state_dim, action_dim)


@dataclass(frozen=True, kw_only=True)
class QuantizedLatentConfig(Settings):
    levels: Annotated[tuple[int, ...], (2, 64)] = (3, 3, 3)
    """Values that each number of z can have, evenly from -1 to 1."""
    noise_std: Annotated[float, (1e-4, 1e3)] = 0.05
    """Standard deviation of the residual in each dimension of the state."""
    hidden: Annotated[int, WIDTH] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or prod(self.levels) > MAX_CODES:
            expected = f"one number or more, whose product is at most {MAX_CODES:,}"
            raise BadSetting("levels", self.levels, expected)

    def build(self, state_dim: int, action_dim: int) -> CategoricalLatent:
        grid = torch.cartesian_prod(*(torch.linspace(-1, 1, count) for count in self.levels))
        return CategoricalLatent(self, grid.view(-1, len(self.levels)), state_dim, action_dim)


class CategoricalLatent(Latent):
    """One of N codes: one-hot categories, or the points of a grid (those of finite scalar
    quantization, Mentzer et al. 2024, to which a network's output is rounded there). The posterior
    q is exact, by Bayes' rule: the next state is predicted for every code, with normal noise of
    `noise_std`; straight-through gradients (Bengio et al. 2013) left most categories alike. The
    prior p is the frequency of each code in a state, so rare events stay rare (mixture density
    networks, Bishop 1994). R is the negative log-likelihood under the prior and lambda is
    `noise_std` squared, so q is the Gibbs distribution exp(-E / lambda) of the energy, and its
    minimum is found by enumeration."""

    noise_dim = 1
    codes: Tensor  # [N, Z]

    def __init__(
        self,
        config: CategoricalLatentConfig | QuantizedLatentConfig,
        codes: Tensor,
        state_dim: int,
        action_dim: int,
    ) -> None:
        super().__init__()
        count, self.size = codes.shape
        self.noise_std = config.noise_std
        self.prior_net = silu_mlp(state_dim + action_dim, config.hidden, count)
        self.register_buffer("codes", codes, persistent=False)

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        state, next_state = state.detach(), next_state.detach()
        p = self._log_prior(state, action)
        with torch.no_grad():
            log_joint = p + self._log_likelihood(state, action, next_state, dynamics)
            q = log_joint.log_softmax(-1)
            action_latent = self._with_code(action, _sample_index(q.exp(), noise))
        kl = (q.exp() * (q - p)).sum(-1).mean()
        return InferredLatent(action_latent, kl.detach(), kl)

    def energy(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> Tensor:
        return self.energies(state, action, next_state, dynamics).amin(-1)

    def energies(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> Tensor:
        """E of every code, `[..., N]`."""
        log_likelihood = self._log_likelihood(state, action, next_state, dynamics)
        return -(self.noise_std**2) * (self._log_prior(state, action) + log_likelihood)

    def _log_prior(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., N]`"""
        return self.prior_net(torch.cat([state, action], -1)).log_softmax(-1)

    def _log_likelihood(
        self, state: Tensor, action: Tensor, next_state: Tensor, dynamics: Dynamics
    ) -> Tensor:
        """Of the next state for each code, without the constant, `[..., N]`."""
        error = next_state[..., None, :] - self._predict_all(state, action, dynamics)
        return -error.square().sum(-1) / (2 * self.noise_std**2)

    def _predict_all(self, state: Tensor, action: Tensor, dynamics: Dynamics) -> Tensor:
        """The next state predicted for each code, `[..., N, D]`."""
        (count, size), batch = self.codes.shape, state.shape[:-1]
        actions = action[..., None, :].expand(*batch, count, -1)
        codes = self.codes.to(action).expand(*batch, count, size)
        action_latent = torch.cat([actions, codes], -1)
        states = state[..., None, :].expand(*batch, count, -1)
        next_states = dynamics(states.flatten(0, -2), action_latent.flatten(0, -2))
        return next_states.unflatten(0, (*batch, count))

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        p = self.prior_net(torch.cat([state, action], -1)).softmax(-1)
        return self._with_code(action, _sample_index(p, noise))

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        code = self.prior_net(torch.cat([state, action], -1)).argmax(-1)
        return self._with_code(action, code)

    def _with_code(self, action: Tensor, index: Tensor) -> Tensor:
        """Actions `[..., A]` and codes by their index `[...]` -> `[..., A + Z]`."""
        return torch.cat([action, self.codes.to(action)[index]], -1)


@torch.no_grad()
def _sample_index(probs: Tensor, noise: Tensor) -> Tensor:
    """Probabilities `[..., N]`, noise `[..., 1]` in [0, 1) -> the index of the sampled code,
    `[...]`."""
    return (probs.cumsum(-1)[..., :-1] <= noise).sum(-1)


LatentConfig: TypeAlias = (
    GaussianLatentConfig | SparseLatentConfig | CategoricalLatentConfig | QuantizedLatentConfig
)
