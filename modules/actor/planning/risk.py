"""What is made of several futures of the same actions, where not all can be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from modules.types import Rollout, Stateful, TaskContext, validate_ranges

BELOW_ONE = 1 - 2**-24
"""The largest number of single precision that is less than 1."""


class EvaluatedRollouts(NamedTuple):
    """Imagined futures and how much each would hurt."""

    rollout: Rollout
    terms: dict[str, Tensor]  # each [B, P]
    energy: Tensor  # [B, P]
    scenario_states: Tensor  # [B, P * K, H + 1, D]: all that may come of it


class RiskModel(Protocol):
    """How many futures are imagined of the same actions, and how they are summed up."""

    def reset(self, seed: int) -> None:
        """What is drawn from here on depends on the seed alone."""

    def resample(self) -> None:
        """Another moment, another chance: what is drawn next is drawn anew."""

    def noise(self, actions: Tensor) -> tuple[Tensor, ...]:
        """For actions `[..., H, A]`: what is drawn `[K, H, U]`; nothing where all can be known."""

    def aggregate(self, evaluated: EvaluatedRollouts, context: TaskContext) -> EvaluatedRollouts:
        """Of K futures of each proposal, one after the other, one thought of each."""


class Deterministic:
    """All can be known."""

    def reset(self, seed: int) -> None:
        """Nothing is drawn."""

    def resample(self) -> None:
        """Nothing is drawn."""

    def noise(self, actions: Tensor) -> tuple[Tensor, ...]:
        return ()

    def aggregate(self, evaluated: EvaluatedRollouts, context: TaskContext) -> EvaluatedRollouts:
        return evaluated


@dataclass(frozen=True, kw_only=True)
class ScenarioCVaRConfig:
    num_scenarios: int = 16
    """K"""

    def __post_init__(self) -> None:
        validate_ranges(self, num_scenarios=(1, 100_000))

    def build(self, noise_dim: int) -> RiskModel:
        """`noise_dim`: U, how many numbers one step draws; 0 where all can be known."""
        return ScenarioCVaR(self.num_scenarios, noise_dim) if noise_dim else Deterministic()


class ScenarioCVaR(Stateful):
    """K futures of the same actions, the same chance for all that is compared: a proposal is never
    better for its luck (common random numbers; Glasserman 2003, 4.1). Of each number that is drawn,
    every K-th part of its range is met once (Latin hypercube, McKay et al. 1979). In the next
    moment it is another chance, so that what is rare is thought of now and then."""

    episode_state = ("rng", "noise_by_horizon")

    def __init__(self, num_scenarios: int, noise_dim: int) -> None:
        self.num_scenarios, self.noise_dim = num_scenarios, noise_dim
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.resample()

    def resample(self) -> None:
        self.noise_by_horizon: dict[int, Tensor] = {}  # by horizon

    def noise(self, actions: Tensor) -> tuple[Tensor, ...]:
        horizon = actions.shape[-2]
        if horizon not in self.noise_by_horizon:
            noise = latin_hypercube(self.num_scenarios, horizon, self.noise_dim, self.rng)
            self.noise_by_horizon[horizon] = noise.to(actions, non_blocking=True)
        return (self.noise_by_horizon[horizon],)

    def aggregate(self, evaluated: EvaluatedRollouts, context: TaskContext) -> EvaluatedRollouts:
        """Every energy is the mean of the worst `focus.tail` of its futures (conditional value at
        risk, Rockafellar & Uryasev 2000); shown is the future that hurts about as much."""
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
    """Numbers in [0, 1), `[K, H, U]`."""
    shape = (count, horizon, noise_dim)
    order = torch.rand(shape, generator=rng).argsort(0)
    samples = (order + torch.rand(shape, generator=rng)) / count
    return samples.clamp_max(BELOW_ONE)  # the sum may be rounded up


def cvar_weights(energy: Tensor, cvar_alpha: float) -> Tensor:
    """Energies `[..., K]` -> how much each counts, such that the worst share `cvar_alpha` of them count
    alike and the rest don't; at least one does, and all do where `cvar_alpha` is 1."""
    counted = max(1.0, cvar_alpha * energy.shape[-1])
    rank = energy.argsort(-1, descending=True).argsort(-1)  # 0 is the worst
    return (counted - rank).clamp(0, 1) / counted
