"""The energy of a next state y after a state and an action x with a latent variable z,
E(x, y, z) = C(y, Pred(x, z)) + lambda R(z) (LeCun 2022, 4.2 and 4.3), and z inferred by minimising
it.

C is half the squared distance of y from the predicted state. R limits the information in z; without
it, z could describe any y, and all y would have the same energy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.types import COUNT, Settings

_EPS = 1e-12


def squared_error(target: Tensor, predicted: Tensor) -> Tensor:
    """C: half the squared distance, `[..., D]` each -> `[...]`."""
    return (target - predicted).square().sum(-1) / 2


class Regularizer(Protocol):
    """R(z) of a latent variable `[..., Z]`."""

    def __call__(self, z: Tensor) -> Tensor:
        """`[...]`"""
        ...

    def prox(self, z: Tensor, step: Tensor) -> Tensor:
        """The proximal operator: the v that minimises `step` R(v) + |v - z|^2 / 2, for steps
        `[..., 1]`."""
        ...


@dataclass(frozen=True)
class GroupSparsity:
    """The L1 norm; or, of groups of `group_size` numbers each, the sum of their Euclidean norms
    times the square root of `group_size`, which sets whole groups to zero (group lasso, Yuan & Lin
    2006)."""

    group_size: int = 1

    def __call__(self, z: Tensor) -> Tensor:
        return sqrt(self.group_size) * group_norms(z, self.group_size).sum(-1)

    def prox(self, z: Tensor, step: Tensor) -> Tensor:
        return shrink(z, sqrt(self.group_size) * step, self.group_size)


class NormalPrior(NamedTuple):
    """The negative log-likelihood in nats under independent normal numbers, without the constant:
    half the squared distance from the mean in standard deviations."""

    mean: Tensor  # [..., Z]
    scale: Tensor  # [..., Z]

    def __call__(self, z: Tensor) -> Tensor:
        return ((z - self.mean) / self.scale).square().sum(-1) / 2

    def prox(self, z: Tensor, step: Tensor) -> Tensor:
        ratio = step / self.scale.square()
        return (z + ratio * self.mean) / (1 + ratio)


def group_norms(z: Tensor, group_size: int) -> Tensor:
    """`[..., Z]` -> the Euclidean norm of each group of consecutive numbers,
    `[..., Z / group_size]`."""
    return z.abs() if group_size == 1 else z.unflatten(-1, (-1, group_size)).norm(dim=-1)


def shrink(z: Tensor, threshold: Tensor, group_size: int = 1) -> Tensor:
    """The norm of each group of `[..., Z]` less a threshold, `[..., 1]` or one for each group, and
    zero where it is below: soft thresholding."""
    norms = group_norms(z, group_size)
    factor = (1 - threshold / norms.clamp_min(_EPS)).relu()
    return z * factor.repeat_interleave(group_size, -1)


class LatentEnergy(NamedTuple):
    """E as a function of z, for given x and y."""

    predict: Callable[[Tensor], Tensor]  # z [..., Z] -> the next state that it leads to [..., D]
    target: Tensor  # [..., D]: y
    regularizer: Regularizer
    weight: float  # lambda

    def __call__(self, z: Tensor) -> Tensor:
        """`[..., Z]` -> `[...]`"""
        return self.error(z) + self.weight * self.regularizer(z)

    def error(self, z: Tensor) -> Tensor:
        """C alone, the part that has a gradient everywhere."""
        return squared_error(self.target, self.predict(z))


@dataclass(frozen=True, kw_only=True)
class ProximalDescentConfig(Settings):
    steps: Annotated[int, COUNT] = 10
    step_size: Annotated[float, (1e-6, 1e6)] = 1.0
    """Length of the first step; halved, for each z alone, where a step would raise the energy."""

    def build(self) -> ProximalDescent:
        return ProximalDescent(self.steps, self.step_size)


@dataclass(frozen=True)
class ProximalDescent:
    """Descends the energy from a guess of z: a gradient step on C, then the proximal operator of R.
    With a linear predictor and `GroupSparsity` this is ISTA (Daubechies et al. 2004; Beck &
    Teboulle 2009), which converges where the step is at most 1 over the largest eigenvalue of the
    predictor's Gram matrix. Whatever the step, the energy rises by rounding at most, so
    an amortised guess is only improved (semi-amortised inference, Kim et al. 2018)."""

    steps: int = 10
    step_size: float = 1.0

    def __call__(self, energy: LatentEnergy, guess: Tensor) -> Tensor:
        """Guess `[..., Z]` -> z of the same shape, without gradient."""
        z, rounding = guess.detach(), 8 * torch.finfo(guess.dtype).eps
        step = torch.full_like(z[..., :1], self.step_size)
        with torch.no_grad():
            lowest = energy(z)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                (slope,) = torch.autograd.grad(energy.error(leaf).sum(), leaf)
            with torch.no_grad():
                proposal = energy.regularizer.prox(z - step * slope, step * energy.weight)
                value = energy(proposal)
                # near the minimum, rounding alone decides which is lower, and steps would vanish
                is_lower = value <= lowest + rounding * lowest.abs()
                lowest = torch.where(is_lower, value, lowest)
                z = torch.where(is_lower[..., None], proposal, z)
                step = torch.where(is_lower[..., None], step, step / 2)
        return z


@dataclass(frozen=True, kw_only=True)
class LISTAConfig(Settings):
    layers: Annotated[int, (1, 1000)] = 3
    """Iterations that are unrolled, with shared weights."""

    def build(self, num_inputs: int, size: int, group_size: int = 1) -> LISTA:
        return LISTA(num_inputs, size, self.layers, group_size)


class LISTA(nn.Module):
    """ISTA unrolled for a few iterations whose matrices and thresholds are learnt, so that it needs
    fewer of them: z_0 = h(W y), z_k+1 = h(W y + S z_k), where h shrinks (Gregor & LeCun 2010,
    algorithm 3)."""

    def __init__(self, num_inputs: int, size: int, layers: int, group_size: int = 1) -> None:
        super().__init__()
        self.layers, self.group_size = layers, group_size
        self.filter = nn.Linear(num_inputs, size)  # W, and an offset
        self.inhibition = nn.Parameter(torch.zeros(size, size))  # S
        self.threshold = nn.Parameter(torch.full((size // group_size,), 0.1))

    @classmethod
    @torch.no_grad()
    def of_dictionary(
        cls, dictionary: Tensor, weight: float, layers: int, group_size: int = 1
    ) -> LISTA:
        """The network that computes `layers + 1` iterations of ISTA from 0, for the energy
        |y - dictionary z|^2 / 2 + weight R(z); dictionary `[D, Z]`."""
        largest = torch.linalg.matrix_norm(dictionary, 2).square()  # eigenvalue of the Gram matrix
        num_inputs, size = dictionary.shape
        network = cls(num_inputs, size, layers, group_size).to(dictionary)
        network.filter.weight.copy_(dictionary.T / largest)
        network.filter.bias.zero_()
        eye = torch.eye(size).to(dictionary)
        network.inhibition.copy_(eye - dictionary.T @ dictionary / largest)
        network.threshold.fill_(weight * sqrt(group_size) / largest)
        return network

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., num_inputs]` -> z `[..., Z]`"""
        filtered, threshold = self.filter(inputs), self.threshold.abs()
        z = shrink(filtered, threshold, self.group_size)
        for _ in range(self.layers):
            z = shrink(filtered + z @ self.inhibition.T, threshold, self.group_size)
        return z
