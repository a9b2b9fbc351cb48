"""Risk: how many futures of the same actions are sampled under a stochastic world model, and how
their energies are aggregated: by conditional value at risk, or by their free energy, the entropic
risk measure."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Annotated

import torch
from torch import Tensor

from modules.types import (
    COUNT,
    BadSetting,
    EvaluatedRollouts,
    Rollout,
    Settings,
    TaskContext,
)

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""


@dataclass(frozen=True, kw_only=True)
class ScenarioCVaRConfig(Settings):
    num_scenarios: Annotated[int, COUNT] = 16
    """Sampled futures of each candidate, K."""

    def build(self, noise_dim: int) -> ScenarioCVaR | None:
        """`noise_dim`: U, the noise of one step of the world model; None for a deterministic one,
        whose U is 0."""
        return ScenarioCVaR(self.num_scenarios, noise_dim) if noise_dim else None


@dataclass(frozen=True)
class ScenarioCVaR:
    """K sampled futures of each candidate, aggregated by conditional value at risk. All candidates
    of a plan share the noise, so that none is better by luck (common random numbers; Glasserman
    2003, 4.1); each number is stratified into K parts (Latin hypercube, McKay et al. 1979). The
    next plan draws new noise, so that rare events are sampled sooner or later."""

    num_scenarios: int
    noise_dim: int

    def sample(self, horizon: int, rng: torch.Generator) -> Tensor:
        """Noise for the futures of one plan, `[K, H, U]` in [0, 1), on the host."""
        return latin_hypercube(self.num_scenarios, horizon, self.noise_dim, rng)

    def aggregate(self, evaluated: EvaluatedRollouts, context: TaskContext) -> EvaluatedRollouts:
        """The energy of a candidate is the mean of the worst fraction `context.cvar_alpha` of its
        futures (CVaR, Rockafellar & Uryasev 2000); its rollout is the future whose energy is
        nearest to that."""
        energies = evaluated.energy.unflatten(1, (-1, self.num_scenarios))  # [B, P, K]
        worst = cvar_weights(energies.detach(), context.cvar_alpha)
        energy, weights = self.combine(energies, worst)
        typical = (energies - energy[..., None]).abs().argmin(-1, keepdim=True)

        def select_typical(part: Tensor) -> Tensor:
            scenarios = part.unflatten(1, (-1, self.num_scenarios))  # [B, P, K, ...]
            index = typical.reshape(*typical.shape, *[1] * (part.ndim - 2))
            return scenarios.take_along_dim(index, 2)[:, :, 0]

        return EvaluatedRollouts(
            rollout=Rollout(*(select_typical(part) for part in evaluated.rollout)),
            terms={
                name: (weights * term.unflatten(1, (-1, self.num_scenarios))).sum(-1)
                for name, term in evaluated.terms.items()
            },
            energy=energy,
            scenario_states=evaluated.scenario_states,
        )

    def combine(self, energies: Tensor, worst: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of the futures and the weights of the worst of them, `[B, P, K]` each -> the
        energy of each candidate `[B, P]`, and the weights `[B, P, K]` with which the energies, and
        so their terms, sum to it."""
        return (worst * energies).sum(-1), worst


MIN_BETA, MAX_BETA = 1e-9, 1e9


@dataclass(frozen=True, kw_only=True)
class EntropicRiskConfig(ScenarioCVaRConfig):
    beta: Annotated[float, (-MAX_BETA, MAX_BETA)] = -1.0
    """Inverse temperature of the free energy, per unit of energy: below 0, bad futures count more
    (pessimistic), above 0 good ones (optimistic). Towards 0 it becomes the mean, far from 0 the
    worst or the best future."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)

    def build(self, noise_dim: int) -> EntropicRisk | None:
        if not noise_dim:
            return None
        return EntropicRisk(self.num_scenarios, noise_dim, self.beta)


def check_beta(beta: float) -> None:
    """Raises BadSetting for an inverse temperature at which there is no free energy, or only its
    rounding error."""
    if not (isfinite(beta) and MIN_BETA <= abs(beta) <= MAX_BETA):
        expected = f"from {MIN_BETA:g} to {MAX_BETA:g}, or the negative of that; 0 is the mean"
        raise BadSetting("beta", beta, expected)


@dataclass(frozen=True)
class EntropicRisk(ScenarioCVaR):
    """K sampled futures of each candidate, aggregated by their free energy at the inverse
    temperature beta. With beta < 0 this is the entropic risk measure
    log(mean(exp(theta E))) / theta of a cost, of risk aversion theta = -beta (risk-sensitive
    control, Howard & Matheson 1972; Föllmer & Schied 2002): about the mean plus theta / 2 times the
    variance. Of a task whose `cvar_alpha` is below 1, the worst fraction alone counts."""

    beta: float

    def combine(self, energies: Tensor, worst: Tensor) -> tuple[Tensor, Tensor]:
        energy = free_energy(energies, self.beta, worst)
        # the free energy lies between the mean under the Gibbs weights, its gradient, and the mean
        fixed = energies.detach()
        gibbs = ((-self.beta * fixed) + worst.log()).softmax(-1)
        # a future that diverged may have no weight, and 0 times infinity is no number
        mean, gibbs_mean = (
            torch.where(weights > 0, weights * fixed, 0).sum(-1) for weights in (worst, gibbs)
        )
        spread = gibbs_mean - mean
        fraction = ((energy.detach() - mean) / spread).nan_to_num(0).clamp(0, 1)[..., None]
        return energy, worst + fraction * (gibbs - worst)


def free_energy(energies: Tensor, beta: float, weights: Tensor | None = None) -> Tensor:
    """-1/beta log(mean(exp(-beta E))) of energies `[..., K]` of sampled latent variables -> `[...]`
    (LeCun et al. 2006, on latent variables, with the mean in place of the integral). `weights`
    `[..., K]`, which sum to 1, replace the equal weights of the mean.

    With the mean, beta -> 0 gives the expectation, beta -> infinity the minimum, and beta ->
    -infinity the maximum. With a sum in its place it would be log(K) / beta lower: the same
    minimum, but no expectation. Accurate to rounding for any beta.
    """
    check_beta(beta)
    exponents = -beta * energies
    if weights is None:
        weights = torch.full_like(energies, 1 / energies.shape[-1])
    largest = exponents.detach().masked_fill(weights == 0, -torch.inf).amax(-1, keepdim=True)
    # expm1 and log1p: for a small beta, the exponentials differ from 1 by little
    rest = (weights * (exponents - largest).clamp_max(0).expm1()).sum(-1).log1p()
    return -(largest.squeeze(-1) + rest) / beta


def latin_hypercube(count: int, horizon: int, noise_dim: int, rng: torch.Generator) -> Tensor:
    """Stratified uniform numbers in [0, 1), `[K, H, U]`."""
    shape = (count, horizon, noise_dim)
    order = torch.rand(shape, generator=rng).argsort(0)
    samples = (order + torch.rand(shape, generator=rng)) / count
    return samples.clamp_max(BELOW_ONE)  # the sum may be rounded up


def cvar_weights(energy: Tensor, cvar_alpha: float) -> Tensor:
    """Energies `[..., K]` -> weights that sum to 1: equal for the worst fraction `cvar_alpha` of
    them, at least one, and 0 for the rest."""
    counted = max(1.0, cvar_alpha * energy.shape[-1])
    rank = energy.argsort(-1, descending=True).argsort(-1)  # 0 is the worst
    return (counted - rank).clamp(0, 1) / counted
