"""Mode-2 by gradient: the energy of an imagined future is differentiable in the actions, which
gradient descent improves (LeCun 2022, 3.1.2). The plan of the last step is the warm start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RandomProposals,
    RolloutEvaluator,
    WarmStart,
    adam_epsilon,
)
from modules.types import (
    HORIZON,
    ITERATIONS,
    Plan,
    ProposalFn,
    Stateful,
    TaskContext,
    validate_ranges,
)


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


class GradientPlanner(Stateful):
    """Adam on the actions of several candidates at once; the plan is the best actions evaluated."""

    def __init__(
        self, config: GradientPlannerConfig, evaluator: RolloutEvaluator, proposal_fn: ProposalFn
    ) -> None:
        self.config, self.evaluator, self.proposal_fn = config, evaluator, proposal_fn
        self.random_proposals, self.warm_start = RandomProposals(evaluator), WarmStart()

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; random candidates depend on the seed alone."""
        self.random_proposals.seed(seed)
        self.warm_start.clear()

    def set_warm_start(self, actions: Tensor) -> None:
        """Makes the next call start from `actions` `[B, K, H, A]`, not from the last plan."""
        self.warm_start.set(actions)

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        """`[B, D]` -> the best plan found; no parameter keeps a gradient."""
        previous = self.warm_start.get(state, context, self.evaluator.action_dim)
        random = self.random_proposals(
            state, context, max(0, self.config.num_proposals - previous.shape[1])
        )
        candidates = torch.cat([previous, self.proposal_fn(state, context), random], 1)
        iterations = self.config.warm_iterations if previous.shape[1] else context.iterations
        best, energy = self._descend(state, candidates, context, iterations)
        self.warm_start.store_shifted(lowest_energy(best, energy, self.config.num_warm_starts))
        return self.evaluator.best_plan(state, best, context)

    def _descend(
        self, state: Tensor, candidates: Tensor, context: TaskContext, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Gradient descent from `[B, P, H, A]` -> the best actions of each candidate and their
        energies `[B, P]`."""
        raw = self.evaluator.action_space.unsquash(candidates)
        momentum, scale = torch.zeros_like(raw), torch.zeros_like(raw)
        eps: Tensor | float = 1e-8
        best, lowest = candidates, candidates.new_full(candidates.shape[:2], torch.inf)
        for step in range(1, iterations + 1):
            actions, energy, slope = self._slope(state, raw, context)
            best, lowest = keep_best(best, lowest, actions, energy)
            eps = adam_epsilon(slope) if step == 1 else eps
            momentum = momentum.lerp(slope, 0.1)
            scale = scale.lerp(slope.square(), 0.001)
            unbiased = (scale / (1 - 0.999**step)).sqrt() + eps
            raw = raw - self.config.lr / (1 - 0.9**step) * momentum / unbiased
        actions = self.evaluator.action_space.squash(raw)
        energy = self.evaluator.evaluate(state, actions, context).energy
        return keep_best(best, lowest, actions, energy)

    def _slope(
        self, state: Tensor, raw: Tensor, context: TaskContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their energy `[B, P]`, and its gradient in the unbounded actions."""
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            actions = self.evaluator.action_space.squash(raw)
            energy = self.evaluator.evaluate(state, actions, context).energy
            # not backward(), which would leave gradients in the world model and the critics
            (slope,) = torch.autograd.grad(energy.sum(), raw)
        return actions.detach(), energy.detach(), slope


def keep_best(
    best: Tensor, lowest: Tensor, actions: Tensor, energy: Tensor
) -> tuple[Tensor, Tensor]:
    """The best actions so far of each candidate, `[B, P, H, A]`, and their energies `[B, P]`."""
    improved = energy < lowest
    best = torch.where(improved[..., None, None], actions, best)
    return best, torch.where(improved, energy, lowest)


def lowest_energy(candidates: Tensor, energy: Tensor, count: int) -> Tensor:
    """`[B, P, H, A]`, `[B, P]` -> the `count` candidates of least energy, best first."""
    ranked = energy.topk(min(count, energy.shape[1]), largest=False).indices
    return candidates[torch.arange(len(ranked), device=ranked.device)[:, None], ranked]
