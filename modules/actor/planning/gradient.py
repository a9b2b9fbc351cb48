"""Mode-2 by gradient: the energy of an imagined future is differentiable in the actions, which
gradient descent improves (LeCun 2022, 3.1.2). The plan of the last step is the warm start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RandomProposals,
    RolloutEvaluator,
    best_plan,
    fitting_warm_start,
    lowest_energy,
    shift_actions,
    without_nan,
)
from modules.types import (
    HORIZON,
    ITERATIONS,
    EvaluatedRollouts,
    Plan,
    PlannerCarry,
    ProposalFn,
    Rollout,
    TaskContext,
    validate_ranges,
)

MAX_EVALUATIONS = 16
"""Evaluations that are kept until the best of each candidate is chosen from them."""


@dataclass(frozen=True, kw_only=True)
class GradientPlannerConfig:
    horizon: int = 8
    """Planning horizon in steps, H."""
    iterations: int = 8
    """Gradient steps from a cold start."""
    warm_iterations: int = 4
    """Gradient steps from a warm start, the last plan shifted by one step."""
    num_proposals: int = 4
    """Candidates beside that of the policy, P: warm starts, then random ones."""
    num_warm_starts: int = 2
    """Candidates of the last plan that are kept, the best ones; the others are drawn anew."""
    lr: float = 0.2
    """Adam's learning rate on the unbounded actions."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, horizon=HORIZON, num_proposals=(1, 1_000_000), num_warm_starts=(0, 1_000_000)
        )
        validate_ranges(self, iterations=ITERATIONS, warm_iterations=ITERATIONS, lr=(0.0, 100.0))

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> GradientPlanner:
        return GradientPlanner(self, evaluator, proposal_fn)


class DescentPlanner:
    """What planners share that improve a few candidates by gradient."""

    def __init__(self, config: Any, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> None:
        self.config, self.evaluator, self.proposal_fn = config, evaluator, proposal_fn
        self.random_proposals = RandomProposals(evaluator.action_space, evaluator.action_dim)

    def initial_candidates(
        self, state: Tensor, context: TaskContext, warm_start: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, int]:
        """Those offered by the last plan and the policy, the random ones, `[B, *, H, A]` each, and
        the number of iterations."""
        config = self.config
        previous = fitting_warm_start(warm_start, state, context, self.evaluator.action_dim)
        num_random = max(0, config.num_proposals - previous.shape[1])
        random = self.random_proposals(state, context, num_random, rng)
        offered = torch.cat([previous, self.proposal_fn(state, context, rng)], 1)
        iterations = config.warm_iterations if previous.shape[1] else context.iterations
        return offered, random, iterations


class GradientPlanner(DescentPlanner):
    """Adam on the actions of several candidates at once; the plan is the best actions evaluated."""

    config: GradientPlannerConfig

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """`[B, D]` -> the best plan found; no parameter keeps a gradient."""
        config, rng = self.config, carry.rng.clone_state()
        offered, random, iterations = self.initial_candidates(state, context, carry.warm_start, rng)
        raw = self.evaluator.action_space.unsquash(torch.cat([offered, random], 1))
        _, best = descend(self.evaluator, state, raw, context, iterations, config.lr)
        warm_start = lowest_energy(best.rollout.actions, best.energy, config.num_warm_starts)
        return best_plan(best, context), PlannerCarry(rng, shift_actions(warm_start))


def descend(
    evaluator: RolloutEvaluator, state: Tensor, raw: Tensor, context: TaskContext,
    iterations: int, lr: float,
) -> tuple[Tensor, EvaluatedRollouts]:  # fmt: skip
    """Adam on unbounded actions `[B, P, H, A]`, by the energy of their imagined futures -> the last
    unbounded actions, and of each candidate the best future evaluated on the way."""
    adam = Adam(lr)
    evaluations: list[EvaluatedRollouts] = []
    for step in range(iterations + 1):
        is_last = step == iterations
        with torch.set_grad_enabled(not is_last):
            leaf = raw.detach().requires_grad_(not is_last)
            evaluated = evaluator.evaluate(state, evaluator.action_space.squash(leaf), context)
            if not is_last:
                # not backward(), which would leave gradients in the world model and the critics
                (slope,) = torch.autograd.grad(evaluated.energy.sum(), leaf)
        if not is_last:
            raw = raw - adam(slope)
        evaluations = [*evaluations, evaluated.detach()]
        if len(evaluations) == MAX_EVALUATIONS:
            evaluations = [best_of(evaluations)]
    return raw, best_of(evaluations)


def best_of(evaluations: Sequence[EvaluatedRollouts]) -> EvaluatedRollouts:
    """Of each candidate, the evaluation of least energy; the first of several equal ones."""
    energies = torch.stack([evaluated.energy for evaluated in evaluations])  # [I, B, P]
    index = without_nan(energies).argmin(0, keepdim=True)

    def select(*parts: Tensor) -> Tensor:
        """From each evaluation `[B, P * K, ...]`, K futures of each candidate."""
        stacked = torch.stack(parts)
        repeats = stacked.shape[2] // index.shape[2]
        chosen = index.repeat_interleave(repeats, 2) if repeats > 1 else index
        chosen = chosen.reshape(*chosen.shape, *[1] * (stacked.ndim - 3))
        return stacked.take_along_dim(chosen, 0)[0]

    rollouts = [evaluated.rollout for evaluated in evaluations]
    return EvaluatedRollouts(
        rollout=Rollout(*map(select, *rollouts)),
        terms={
            name: select(*(evaluated.terms[name] for evaluated in evaluations))
            for name in evaluations[0].terms
        },
        energy=select(*energies),
        scenario_states=select(*(evaluated.scenario_states for evaluated in evaluations)),
    )


class Adam:
    """The step of Adam for a gradient `[B, ...]` (Kingma & Ba 2015). Its epsilon is 1e-8, or less
    in environments where all first gradients are below 1e-5 (with rewards of 1e-6 for instance)."""

    def __init__(self, lr: float) -> None:
        self.lr, self.count = lr, 0

    def __call__(self, slope: Tensor) -> Tensor:
        if self.count == 0:
            self.momentum, self.scale = torch.zeros_like(slope), torch.zeros_like(slope)
            largest = slope.flatten(1).abs().amax(1).reshape(-1, *[1] * (slope.ndim - 1))
            self.eps = 1e-8 * torch.where(largest < 1e-5, largest.clamp_min(1e-25), 1.0)
        self.count += 1
        self.momentum = self.momentum.lerp(slope, 0.1)
        self.scale = self.scale.lerp(slope.square(), 0.001)
        unbiased = (self.scale / (1 - 0.999**self.count)).sqrt() + self.eps
        return self.lr / (1 - 0.9**self.count) * self.momentum / unbiased
