"""Mode-2 by gradient: the energy of an imagined future is differentiable in the actions, which
gradient descent improves (LeCun 2022, 3.1.2). The plan of the last step is the warm start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RandomProposals,
    RolloutEvaluator,
    fitting_warm_start,
    lowest_energy,
    shift_actions,
    to_plan,
    without_nan,
)
from modules.by_hand.caches import row_numbers
from modules.compiled import Compiled, Keyed, check_compiler
from modules.types import (
    HORIZON,
    ITERATIONS,
    EvaluatedRollouts,
    Plan,
    PlannerCarry,
    ProposalFn,
    Rollout,
    Settings,
    TaskContext,
)

MAX_EVALUATIONS = 16
"""Evaluations that are kept until the best of each candidate is chosen from them."""


@dataclass(frozen=True, kw_only=True)
class GradientPlannerConfig(Settings):
    horizon: Annotated[int, HORIZON] = 8
    """Planning horizon in steps, H."""
    iterations: Annotated[int, ITERATIONS] = 8
    """Gradient steps from a cold start."""
    warm_iterations: Annotated[int, ITERATIONS] = 4
    """Gradient steps from a warm start, the last plan shifted by one step."""
    num_proposals: Annotated[int, (1, 1_000_000)] = 4
    """Candidates beside that of the policy, P: warm starts, then random ones."""
    num_warm_starts: Annotated[int, (0, 1_000_000)] = 2
    """Candidates of the last plan that are kept, the best ones; the others are drawn anew."""
    lr: Annotated[float, (0.0, 100.0)] = 0.2
    """Adam's learning rate on the unbounded actions."""

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> GradientPlanner:
        return GradientPlanner(self, evaluator, proposal_fn)


class DescentPlanner:
    """What planners share that improve a few candidates by gradient."""

    def __init__(self, config: Any, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> None:
        self.config, self.evaluator, self.proposal_fn = config, evaluator, proposal_fn
        self.random_proposals = RandomProposals(evaluator.action_space, evaluator.action_dim)

    def initial_candidates(
        self, state: Tensor, context: TaskContext, warm_start: Tensor | None, rng: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor], Tensor, int]:
        """The candidates of the last plan and of the policy, the random ones, `[B, *, H, A]` each,
        and the number of iterations."""
        config = self.config
        previous = fitting_warm_start(warm_start, state, context, self.evaluator.action_dim)
        num_random = max(0, config.num_proposals - previous.shape[1])
        random = self.random_proposals(state, context, num_random, rng)
        offered = previous, self.proposal_fn(state, context, rng)
        iterations = config.warm_iterations if previous.shape[1] else context.iterations
        return offered, random, iterations


class GradientPlanner(DescentPlanner):
    """Adam on the actions of several candidates at once; the plan is the best actions evaluated."""

    config: GradientPlannerConfig
    compiled: CompiledDescent | None = None

    def start_compilation(self) -> None:
        """From now on plans are made by compiled functions, each compiled when it is first called
        and once for each shape. ConfigError where there is no compiler."""
        check_compiler()
        self.compiled = CompiledDescent(self)

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """`[B, D]` -> the best plan found; no parameter keeps a gradient."""
        if self.compiled is not None and self.compiled.covers(context):
            return self.compiled(state, context, carry)
        config, rng = self.config, carry.rng.clone_state()
        offered, random, iterations = self.initial_candidates(state, context, carry.warm_start, rng)
        raw = self.evaluator.action_space.unsquash(torch.cat([*offered, random], 1))
        _, best = descend(self.evaluator, state, raw, context, iterations, config.lr)
        warm_start = lowest_energy(best.rollout.actions, best.energy, config.num_warm_starts)
        plan = to_plan(best, best.energy.argmin(1), context)
        return plan, PlannerCarry(rng, shift_actions(warm_start))


class Descent(NamedTuple):
    """Where a descent is: what Adam continues with, and the best so far."""

    raw: Tensor  # [B, P, H, A]
    moments: Moments
    best: EvaluatedRollouts


class CompiledDescent:
    """`GradientPlanner` as three compiled functions: the candidates and the first iteration, every
    other iteration, and the choice of the plan. A single function of all iterations would take
    minutes to compile, and more for each number of iterations."""

    def __init__(self, planner: GradientPlanner) -> None:
        self.planner, self.evaluator = planner, planner.evaluator
        self.start = Compiled(self._start, "the planner's first iteration")
        self.step = Compiled(self._step, "the planner's other iterations")
        self.finish = Compiled(self._finish, "the planner's choice")

    def covers(self, context: TaskContext) -> bool:
        """Whether plans in this context are compiled. Boredom reads the states of the episode,
        which are more in every step; callbacks are called after every iteration."""
        iterations = min(context.iterations, self.planner.config.warm_iterations)
        return not (context.episode_states.numel() or self.evaluator.callbacks or iterations < 1)

    @torch.no_grad()
    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        planner, config, rng = self.planner, self.planner.config, carry.rng.clone_state()
        previous = fitting_warm_start(carry.warm_start, state, context, self.evaluator.action_dim)
        num_warm = previous.shape[1]
        num_random = max(0, config.num_proposals - num_warm)
        random = planner.random_proposals(state, context, num_random, rng)
        given = torch.cat([previous, random], 1)  # as many from a cold start
        # the functions don't depend on how many iterations there are
        task = Keyed(context._replace(iterations=0))
        descent = self.start.keyed(state, task, given)
        for done in range(1, config.warm_iterations if num_warm else context.iterations):
            factors = _factors_tensor(config.lr, done + 1, state.dtype, state.device)
            descent = self.step.keyed(state, task, descent, factors)
        plan, warm_start = self.finish(state, task, descent)
        return plan._replace(upper_plans=context.upper_plans), PlannerCarry(rng, warm_start)

    def _start(self, state: Tensor, context: TaskContext, given: Tensor) -> Descent:
        # without a random stream: what is drawn here would be a constant
        offered = self.planner.proposal_fn(state, context, None)  # type: ignore[arg-type]
        raw = self.evaluator.action_space.unsquash(torch.cat([given, offered], 1))
        evaluated, slope = self.evaluator.slope_fn(context)(state, raw)
        raw = Adam(self.planner.config.lr).step(raw, slope)
        best = evaluated.detach()._replace(energy=without_nan(evaluated.energy))
        return Descent(raw, Moments.first(slope), best)

    def _step(
        self, state: Tensor, context: TaskContext, descent: Descent, factors: Tensor
    ) -> Descent:
        """`factors` `[2]`: the rate and the bias of this step of Adam."""
        evaluated, slope = self.evaluator.slope_fn(context)(state, descent.raw)
        moments, (rate, bias) = descent.moments.update(slope), factors.unbind()
        step = rate * moments.mean / (moments.square.sqrt() + bias * moments.eps)
        best = best_of([self._with_futures(descent.best), evaluated])
        return Descent(descent.raw - step, moments, best)

    def _finish(self, state: Tensor, context: TaskContext, descent: Descent) -> tuple[Plan, Tensor]:
        actions = self.evaluator.action_space.squash(descent.raw)
        last = self.evaluator.evaluate(state, actions, context)
        best = best_of([self._with_futures(descent.best), last])
        kept = lowest_energy(best.rollout.actions, best.energy, self.planner.config.num_warm_starts)
        return to_plan(best, best.energy.argmin(1), context), shift_actions(kept)

    def _with_futures(self, best: EvaluatedRollouts) -> EvaluatedRollouts:
        """An argument of a compiled function, in which equal tensors are one again."""
        if self.evaluator.risk_model is not None:
            return best
        return best._replace(scenario_states=best.rollout.states)


def descend(
    evaluator: RolloutEvaluator, state: Tensor, raw: Tensor, context: TaskContext,
    iterations: int, lr: float,
) -> tuple[Tensor, EvaluatedRollouts]:  # fmt: skip
    """Adam on unbounded actions `[B, P, H, A]`, by the energy of their imagined futures -> the last
    unbounded actions, and of each candidate the best future evaluated on the way."""
    adam, raw, with_slope = Adam(lr), raw.detach(), evaluator.slope_fn(context)
    evaluations: list[EvaluatedRollouts] = []
    for _ in range(iterations):
        evaluated, slope = with_slope(state, raw)
        raw = adam.step(raw, slope)
        evaluations.append(evaluated)
        if len(evaluations) == MAX_EVALUATIONS:
            evaluations = [best_of(evaluations)]
    with torch.no_grad():
        last = evaluator.evaluate(state, evaluator.action_space.squash(raw), context)
    evaluations.append(last)
    return raw, best_of(evaluations)


@lru_cache(maxsize=4096)
@torch.inference_mode(False)  # what is kept may be used outside
def _factors_tensor(lr: float, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(adam_factors(lr, count), dtype=dtype, device=device)


@torch.no_grad()
def best_of(evaluations: Sequence[EvaluatedRollouts]) -> EvaluatedRollouts:
    """Of each candidate, the evaluation of least energy, without gradients; the first of several
    equal ones."""
    energies = torch.stack([evaluated.energy for evaluated in evaluations])  # [I, B, P]
    energy, index = without_nan(energies).min(0)
    env = row_numbers(len(index), index.device)[:, None]
    candidate = row_numbers(index.shape[1], index.device)

    def select(*parts: Tensor) -> Tensor:
        """From each evaluation `[B, P * K, ...]`, K futures of each candidate."""
        if not parts[0].numel():
            return parts[0]
        repeats = parts[0].shape[1] // len(candidate)
        if repeats == 1:
            return torch.stack(parts)[index, env, candidate]
        futures = row_numbers(parts[0].shape[1], index.device)
        return torch.stack(parts)[index.repeat_interleave(repeats, 1), env, futures]

    rollout = Rollout(*map(select, *(evaluated.rollout for evaluated in evaluations)))
    one_future = all(e.scenario_states is e.rollout.states for e in evaluations)
    return EvaluatedRollouts(
        rollout=rollout,
        terms={
            name: select(*(evaluated.terms[name] for evaluated in evaluations))
            for name in evaluations[0].terms
        },
        energy=energy,
        scenario_states=rollout.states
        if one_future
        else select(*(evaluated.scenario_states for evaluated in evaluations)),
    )


class Moments(NamedTuple):
    """Adam's moving averages of a gradient `[B, ...]` and of its square, and its epsilon: 1e-8, or
    less in environments where all first gradients are below 1e-5 (with rewards of 1e-6 for
    instance)."""

    mean: Tensor  # [B, ...]
    square: Tensor  # [B, ...]
    eps: Tensor  # [B, 1, ...]

    @classmethod
    def first(cls, slope: Tensor) -> Moments:
        """After the first gradient."""
        largest = slope.abs().amax(tuple(range(1, slope.ndim)), keepdim=True)
        eps = 1e-8 * largest.clamp_min(1e-25).masked_fill_(largest >= 1e-5, 1.0)
        return cls(0.1 * slope, 0.001 * slope.square(), eps)

    def update(self, slope: Tensor) -> Moments:
        """After the next gradient."""
        square = (0.999 * self.square).addcmul_(slope, slope, value=0.001)
        return Moments(self.mean.lerp(slope, 0.1), square, self.eps)


class Adam:
    """The step of Adam for a gradient `[B, ...]` (Kingma & Ba 2015)."""

    moments: Moments | None = None

    def __init__(self, lr: float) -> None:
        self.lr, self.count = lr, 0

    def step(self, values: Tensor, slope: Tensor) -> Tensor:
        """The values `[B, ...]` one step down the slope."""
        rate, mean, divisor = self._update(slope)
        return torch.addcdiv(values, mean, divisor, value=-rate)

    def __call__(self, slope: Tensor) -> Tensor:
        """The step, to be subtracted."""
        rate, mean, divisor = self._update(slope)
        return rate * mean / divisor

    def _update(self, slope: Tensor) -> tuple[float, Tensor, Tensor]:
        """The factor of the mean gradient, the mean, and its divisor; factor and divisor are times
        the square root by which the mean square is biased."""
        last = self.moments
        self.moments = Moments.first(slope) if last is None else last.update(slope)
        self.count += 1
        mean, square, eps = self.moments
        rate, bias = adam_factors(self.lr, self.count)
        return rate, mean, square.sqrt().add_(eps, alpha=bias)


def adam_factors(lr: float, count: int) -> tuple[float, float]:
    """Of step `count`, from 1: the factor of the mean gradient, and the square root by which the
    mean square is biased."""
    bias = (1 - 0.999**count) ** 0.5
    return lr * bias / (1 - 0.9**count), bias
