"""Mode-2 by sampling: a Gaussian over action sequences is refitted to its best samples (CEM,
MPPI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RandomProposals,
    RolloutEvaluator,
    fitting_warm_start,
    safe_std,
    shift_actions,
    without_nan,
)
from modules.types import (
    HORIZON,
    ITERATIONS,
    Plan,
    PlannerCarry,
    ProposalFn,
    Settings,
    TaskContext,
)


@dataclass(frozen=True, kw_only=True)
class _SamplerConfig(Settings):
    horizon: Annotated[int, HORIZON] = 8
    """Planning horizon in steps, H."""
    iterations: Annotated[int, ITERATIONS] = 4
    """Refits of the Gaussian from a cold start."""
    warm_iterations: Annotated[int, ITERATIONS] = 4
    """Refits from a warm start, the last plan shifted by one step."""
    num_samples: Annotated[int, (1, 1_000_000)] = 64
    """Sampled action sequences of each iteration, P."""
    init_std: Annotated[float, (0.0, 1e3)] = 0.7
    """Initial standard deviation of the actions, whose range is [-1, 1]."""


class _Sampler:
    """A Gaussian over action sequences, refitted a few times. The planners differ in `refit`
    only."""

    def __init__(
        self, config: _SamplerConfig, evaluator: RolloutEvaluator, proposal_fn: ProposalFn
    ) -> None:
        self.config, self.evaluator, self.proposal_fn = config, evaluator, proposal_fn
        self.random_proposals = RandomProposals(evaluator.action_space, evaluator.action_dim)

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, P, H, A]`, `[B, P]` -> mean and standard deviation, each `[B, 1, H, A]`."""
        raise NotImplementedError

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """`[B, D]` -> the best plan sampled."""
        rng, project = carry.rng.clone_state(), self.evaluator.action_space.project
        previous = fitting_warm_start(carry.warm_start, state, context, self.evaluator.action_dim)
        offered = torch.cat([previous, self.proposal_fn(state, context, rng)], 1)
        rest = self.random_proposals(state, context, 1, rng)
        mean = torch.cat([offered, rest], 1)[:, :1]
        std = torch.full_like(mean, self.config.init_std)
        best = mean
        for _ in range(self.config.warm_iterations if previous.shape[1] else context.iterations):
            noise = self.random_proposals.noise(
                state, self.config.num_samples, context.horizon, rng
            )
            samples = project(mean + std * noise)
            actions = torch.cat([best, project(mean), offered, samples], 1)
            energy = without_nan(self.evaluator.evaluate(state, actions, context).energy)
            mean, std = self.refit(actions, energy)
            index = energy.argmin(1, keepdim=True)
            best = actions.take_along_dim(index[..., None, None], 1)
        plan = self.evaluator.best_plan(state, torch.cat([best, project(mean)], 1), context)
        return plan, PlannerCarry(rng, shift_actions(plan.actions[:, None]))


@dataclass(frozen=True, kw_only=True)
class CEMConfig(_SamplerConfig):
    num_elites: Annotated[int, (1, 1_000_000)] = 8
    """Best samples that the Gaussian is refitted to."""

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> CEM:
        return CEM(self, evaluator, proposal_fn)


class CEM(_Sampler):
    """The cross-entropy method: a refit to the elite samples (Rubinstein 1999; PETS, Chua et al.
    2018)."""

    config: CEMConfig

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        index = energy.topk(min(self.config.num_elites, energy.shape[1]), 1, largest=False).indices
        elites = actions.take_along_dim(index[..., None, None], 1)
        return elites.mean(1, keepdim=True), elites.std(1, keepdim=True, correction=0)


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(_SamplerConfig):
    temperature: Annotated[float, (1e-6, 1e6)] = 0.2
    """Temperature in standard deviations of the energies, so that it does not depend on the
    cost."""

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> MPPI:
        return MPPI(self, evaluator, proposal_fn)


class MPPI(_Sampler):
    """Model-predictive path integral control: a refit to all samples, weighted by exp(-energy /
    temperature) (Williams et al. 2017)."""

    config: MPPIConfig

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        # a future that diverged has weight 0, and does not count in the spread of the others
        highest = energy.masked_fill(energy.isinf(), -torch.inf).amax(1, keepdim=True)
        finite = torch.where(energy.isinf(), highest, energy)
        scale = safe_std(finite, 1) * self.config.temperature
        weight = (-energy / scale).softmax(1)[..., None, None]  # [B, P, 1, 1]
        mean = (weight * actions).sum(1, keepdim=True)
        variance = (weight * (actions - mean).square()).sum(1, keepdim=True)
        return mean, variance.sqrt()
