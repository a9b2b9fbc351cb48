"""Risk: how many futures of the same actions are sampled under a stochastic world model, and how
their energies are aggregated (CVaR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from modules.types import COUNT, EvaluatedRollouts, Rollout, Settings, TaskContext

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
        weights = cvar_weights(energies.detach(), context.cvar_alpha)
        energy = (weights * energies).sum(-1)
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
