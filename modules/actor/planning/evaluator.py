"""Shared parts of the planners: evaluation of candidate actions, random candidates, warm starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from typing import TypeAlias

import torch
from torch import Tensor

from modules.actor.planning.risk import ScenarioCVaR
from modules.actor.policy import ActionSpace
from modules.by_hand.caches import no_numbers, row_numbers
from modules.by_hand.protocol import CostByHand, ImagineByHand, SquashByHand, own_method
from modules.types import (
    CostTermsFn,
    EvaluatedRollouts,
    Plan,
    PolicyFn,
    PolicyRolloutFn,
    Rollout,
    RolloutFn,
    TaskContext,
)

SlopeFn: TypeAlias = Callable[[Tensor, Tensor], tuple[EvaluatedRollouts, Tensor]]
"""States `[B, D]`, unbounded actions `[B, P, H, A]` -> their futures and energies, and the gradient
of the energies with respect to the unbounded actions."""


@dataclass(frozen=True)
class RolloutEvaluator:
    """World model, cost and risk model as one function from actions to energies."""

    imagine: RolloutFn
    imagine_policy: PolicyRolloutFn
    cost_terms: CostTermsFn
    action_space: ActionSpace
    action_dim: int
    risk_model: ScenarioCVaR | None = None
    """None for a deterministic world model, which imagines one future of each candidate."""
    callbacks: list[Callable[[EvaluatedRollouts], None]] = field(default_factory=list)
    """Called with every evaluated batch of rollouts."""
    by_hand: (
        tuple[Callable[[], ImagineByHand | None], Callable[[TaskContext], CostByHand | None]] | None
    ) = None
    """`imagine_by_hand` of the world model and `by_hand` of the cost, where both offer it."""

    def with_noise(self, context: TaskContext, rng: torch.Generator) -> TaskContext:
        """The context with noise for the futures of its horizon; unchanged if the world model is
        deterministic."""
        if self.risk_model is None:
            return context
        noise = self.risk_model.sample(context.horizon, rng)
        return context._replace(noise=noise.to(context.goal, non_blocking=True))

    def evaluate(self, state: Tensor, actions: Tensor, context: TaskContext) -> EvaluatedRollouts:
        """States `[B, D]`, candidates `[B, P, H, A]` -> their futures and energies."""
        return self._score(self.imagine(state, actions, *_noise(context)), context)

    def slope_fn(self, context: TaskContext) -> SlopeFn:
        """Evaluation with gradients for this task: written by hand where every part has one."""
        squash = own_method(self.action_space, "squash_by_hand")
        if self.by_hand and squash and self.risk_model is None:
            imagine, cost = self.by_hand[0](), self.by_hand[1](context)
            if imagine and cost:
                return partial(self._slope_by_hand, squash, imagine, cost)
        return partial(self._slope_by_autograd, context)

    def _slope_by_autograd(
        self, context: TaskContext, state: Tensor, raw: Tensor
    ) -> tuple[EvaluatedRollouts, Tensor]:
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            evaluated = self.evaluate(state, self.action_space.squash(raw), context)
            # not backward(), which would leave gradients in the world model and the critics
            (slope,) = torch.autograd.grad(evaluated.energy.sum(), raw)
        return evaluated, slope

    @torch.no_grad()
    def _slope_by_hand(
        self, squash: SquashByHand, imagine: ImagineByHand, cost: CostByHand,
        state: Tensor, raw: Tensor,
    ) -> tuple[EvaluatedRollouts, Tensor]:  # fmt: skip
        actions, raw_pullback = squash(raw)
        rollout, action_pullback = imagine(state, actions)
        terms, grad_states = cost(rollout)
        evaluated = EvaluatedRollouts(rollout, terms, total_energy(terms), rollout.states)
        for callback in self.callbacks:
            callback(evaluated)
        return evaluated, raw_pullback(action_pullback(grad_states))[0]  # type: ignore[return-value]

    def evaluate_with(
        self, state: Tensor, policy: PolicyFn, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        """Futures and energies of a closed-loop policy, followed by those of the candidates
        `[B, P, H, A]`."""
        rollout = self.imagine_policy(state, policy, candidates, *_noise(context))
        return self._score(rollout, context)

    def _score(self, rollout: Rollout, context: TaskContext) -> EvaluatedRollouts:
        """Adds the energies to imagined futures and aggregates the samples of each candidate."""
        terms = self.cost_terms(rollout, context)
        evaluated = EvaluatedRollouts(rollout, terms, total_energy(terms), rollout.states)
        if self.risk_model is not None and context.noise is not None:
            evaluated = self.risk_model.aggregate(evaluated, context)
        for callback in self.callbacks:
            callback(evaluated)
        return evaluated

    def no_candidates(
        self, state: Tensor, context: TaskContext, rng: torch.Generator | None = None
    ) -> Tensor:
        """`[B, 0, H, A]`: what the policy proposes to a planner that is to do without it."""
        return no_numbers(state, len(state), 0, context.horizon, self.action_dim)

    def best_plan(self, state: Tensor, actions: Tensor, context: TaskContext) -> Plan:
        """The candidate of least energy, as a plan."""
        return best_plan(self.evaluate(state, actions, context), context)


def _noise(context: TaskContext) -> tuple[Tensor, ...]:
    return () if context.noise is None else (context.noise,)


def total_energy(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the weighted terms, `[B, P]`."""
    return reduce(torch.add, terms.values())


def best_plan(evaluated: EvaluatedRollouts, context: TaskContext) -> Plan:
    """The candidate of least energy, as a plan."""
    return to_plan(evaluated, without_nan(evaluated.energy).argmin(1), context)


def without_nan(energy: Tensor) -> Tensor:
    """Infinity in place of NaN: a future that diverged is never the best."""
    return energy.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def to_plan(evaluated: EvaluatedRollouts, index: Tensor, context: TaskContext) -> Plan:
    """The candidates of index `[B]`, as a plan."""
    states, actions = evaluated.rollout.states, evaluated.rollout.actions
    rows = row_numbers(len(index), index.device)
    return Plan(
        actions=actions[rows, index],
        energy=evaluated.energy[rows, index],
        terms={name: term[rows, index] for name, term in evaluated.terms.items()},
        states=states[rows, index],
        upper_plans=context.upper_plans,
        candidate_states=evaluated.scenario_states,
        candidate_energies=evaluated.energy,
        planned=torch.ones(len(states), dtype=torch.bool, device=states.device),
    )


def safe_std(energy: Tensor, dim: int | None = None) -> Tensor:
    """The standard deviation of energies, at least their rounding error, so that it can divide."""
    energy = energy.detach()
    size = energy.abs().amax() if dim is None else energy.abs().amax(dim, keepdim=True)
    std = energy.std(correction=0) if dim is None else energy.std(dim, keepdim=True)
    return torch.maximum(std, torch.finfo(energy.dtype).eps * size).clamp_min(1e-30)


def lowest_energy(candidates: Tensor, energy: Tensor, count: int) -> Tensor:
    """`[B, P, H, A]`, `[B, P]` -> the `count` candidates of least energy, best first."""
    count = min(count, energy.shape[1])
    ranked = without_nan(energy).topk(count, largest=False).indices
    return candidates[row_numbers(len(ranked), ranked.device)[:, None], ranked]


def shift_actions(actions: Tensor) -> Tensor:
    """`[B, P, H, A]` one step later; the last action is repeated."""
    return torch.cat([actions[:, :, 1:], actions[:, :, -1:]], 2)


def fitting_warm_start(
    warm_start: Tensor | None, state: Tensor, context: TaskContext, action_dim: int
) -> Tensor:
    """The warm start `[B, K, H, A]`; K is 0 if there is none of this batch size and horizon."""
    if warm_start is not None and (len(warm_start), warm_start.shape[2]) == (
        len(state),
        context.horizon,
    ):
        return warm_start
    return state.new_empty(len(state), 0, context.horizon, action_dim)


@dataclass(frozen=True)
class RandomProposals:
    """Random candidates that are constant over segments of the horizon, since independent actions
    average out. They are drawn on the host, so that a seed gives the same candidates on every
    device, and once for all environments, so that the plan for one does not depend on the number
    of others."""

    action_space: ActionSpace
    action_dim: int
    num_segments: int = 2

    def noise(self, state: Tensor, count: int, length: int, rng: torch.Generator) -> Tensor:
        """Standard normal numbers `[1, count, length, A]`, of the state's device and type."""
        shape = (1, count, length, self.action_dim)
        return torch.randn(shape, generator=rng).to(state, non_blocking=True)

    def __call__(
        self, state: Tensor, context: TaskContext, count: int, rng: torch.Generator
    ) -> Tensor:
        """`[B, D]` -> actions `[B, count, H, A]`; the first candidate is rest."""
        raw = self.noise(state, count, self.num_segments, rng)
        raw[:, :1].zero_()
        held = self._hold_segments(raw, context.horizon)
        return held if len(state) == 1 else held.expand(len(state), -1, -1, -1)

    def piecewise_constant(
        self, state: Tensor, count: int, horizon: int, rng: torch.Generator
    ) -> Tensor:
        """Candidates `[B, count, horizon, A]` with twice the standard deviation, different in each
        environment; the first is rest."""
        shape = (len(state), count, self.num_segments, self.action_dim)
        raw = 2 * torch.randn(shape, generator=rng).to(state)
        raw[:, :1] = 0
        return self._hold_segments(raw, horizon)

    def _hold_segments(self, raw: Tensor, horizon: int) -> Tensor:
        """Segments `[B, P, num_segments, A]`, unbounded -> actions `[B, P, H, A]`."""
        held = segment_numbers(horizon, self.num_segments, raw.device)
        return self.action_space.squash(raw)[:, :, held]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def segment_numbers(horizon: int, num_segments: int, device: torch.device) -> Tensor:
    """The number of the segment of each step, `[H]`, to be read only."""
    return torch.arange(horizon, device=device) // -(-horizon // num_segments)
