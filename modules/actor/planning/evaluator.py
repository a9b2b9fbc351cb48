"""Shared parts of the planners: evaluation of candidate actions, random candidates, warm starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modules.actor.action_space import ActionSpace
from modules.actor.planning.risk import Deterministic, EvaluatedRollouts, RiskModel
from modules.types import (
    CostTermsFn,
    Plan,
    PolicyFn,
    PolicyRolloutFn,
    Rollout,
    RolloutFn,
    Stateful,
    TaskContext,
)


@dataclass(frozen=True)
class RolloutEvaluator:
    """World model, cost and risk model as one function from actions to energies."""

    imagine: RolloutFn
    imagine_policy: PolicyRolloutFn
    cost_terms: CostTermsFn
    action_space: ActionSpace
    action_dim: int
    risk_model: RiskModel = field(default_factory=Deterministic)
    callbacks: list[Callable[[EvaluatedRollouts], None]] = field(default_factory=list)
    """Called with every evaluated batch of rollouts."""

    def evaluate(self, state: Tensor, actions: Tensor, context: TaskContext) -> EvaluatedRollouts:
        """States `[B, D]`, candidates `[B, P, H, A]` -> their futures and energies."""
        return self.score(self.imagine(state, actions, *self.risk_model.noise(actions)), context)

    def evaluate_with(
        self, state: Tensor, policy: PolicyFn, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        """Futures and energies of a closed-loop policy, followed by those of the candidates
        `[B, P, H, A]`."""
        rollout = self.imagine_policy(state, policy, candidates, *self.risk_model.noise(candidates))
        return self.score(rollout, context)

    def score(self, rollout: Rollout, context: TaskContext) -> EvaluatedRollouts:
        """Adds the energies to imagined futures and aggregates the samples of each candidate."""
        terms = self.cost_terms(rollout, context)
        energy = torch.stack(list(terms.values())).sum(0)
        sampled = EvaluatedRollouts(rollout, terms, energy, rollout.states)
        evaluated = self.risk_model.aggregate(sampled, context)
        for callback in self.callbacks:
            callback(evaluated)
        return evaluated

    def best_plan(self, state: Tensor, actions: Tensor, context: TaskContext) -> Plan:
        """The candidate of least energy, as a plan."""
        evaluated = self.evaluate(state, actions, context)
        return to_plan(evaluated, evaluated.energy.argmin(1), context)


def to_plan(evaluated: EvaluatedRollouts, index: Tensor, context: TaskContext) -> Plan:
    """The candidates of index `[B]`, as a plan."""
    states, actions = evaluated.rollout.states, evaluated.rollout.actions
    return Plan(
        actions=select_candidate(actions, index),
        energy=select_candidate(evaluated.energy, index),
        terms={name: select_candidate(term, index) for name, term in evaluated.terms.items()},
        states=select_candidate(states, index),
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


def adam_epsilon(slope: Tensor) -> Tensor:
    """Adam's epsilon for gradients `[B, ...]`: 1e-8, or less in environments where all gradients
    are below 1e-5 (with rewards of 1e-6 for instance)."""
    largest = slope.flatten(1).abs().amax(1).reshape(-1, *[1] * (slope.ndim - 1))
    return 1e-8 * torch.where(largest < 1e-5, largest.clamp_min(1e-25), 1.0)


def select_candidate(candidates: Tensor, index: Tensor) -> Tensor:
    """`[B, P, ...]`, indices `[B]` -> `[B, ...]`."""
    return candidates[torch.arange(len(index), device=index.device), index]


def shift_actions(actions: Tensor) -> Tensor:
    """`[B, P, H, A]` one step later; the last action is repeated."""
    return torch.cat([actions[:, :, 1:], actions[:, :, -1:]], 2)


class RandomProposals(Stateful):
    """Random candidates that are constant over segments of the horizon, since independent actions
    average out. They are drawn on the host, so that a seed gives the same candidates on every
    device, and once for all environments, so that the plan for one does not depend on the number
    of others."""

    episode_state = ("rng",)

    def __init__(self, evaluator: RolloutEvaluator, num_segments: int = 2) -> None:
        self.evaluator, self.num_segments = evaluator, num_segments
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Restarts the random stream."""
        self.rng = torch.Generator().manual_seed(seed)

    def noise(self, state: Tensor, count: int, length: int) -> Tensor:
        """Standard normal numbers `[1, count, length, A]`, of the state's device and type."""
        shape = (1, count, length, self.evaluator.action_dim)
        return torch.randn(shape, generator=self.rng).to(state, non_blocking=True)

    def __call__(self, state: Tensor, context: TaskContext, count: int) -> Tensor:
        """`[B, D]` -> actions `[B, count, H, A]`; the first candidate is rest."""
        raw = self.noise(state, count, self.num_segments)
        raw[:, :1] = 0
        return self._hold_segments(raw, context.horizon).expand(len(state), -1, -1, -1)

    def piecewise_constant(
        self, state: Tensor, count: int, horizon: int, rng: torch.Generator
    ) -> Tensor:
        """Candidates `[B, count, horizon, A]` drawn from another generator with twice the standard
        deviation, different in each environment; the first is rest."""
        raw = torch.randn(
            len(state), count, self.num_segments, self.evaluator.action_dim, generator=rng
        )
        raw = 2 * raw.to(state)
        raw[:, :1] = 0
        return self._hold_segments(raw, horizon)

    def _hold_segments(self, raw: Tensor, horizon: int) -> Tensor:
        """Segments `[B, P, num_segments, A]`, unbounded -> actions `[B, P, H, A]`."""
        segment = -(-horizon // self.num_segments)
        return self.evaluator.action_space.squash(raw).repeat_interleave(segment, 2)[:, :, :horizon]


class WarmStart(Stateful):
    """Candidates of the last plan, shifted by one step, `[B, K, H, A]`; K is 0 before the first."""

    episode_state = ("actions",)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets the last plan."""
        self.actions = torch.empty(0, 0, 0, 0)

    def get(self, state: Tensor, context: TaskContext, action_dim: int) -> Tensor:
        """`[B, K, H, A]`; K is 0 if the last plan has another batch size or horizon."""
        fits = self.actions.shape[0] == len(state) and self.actions.shape[2] == context.horizon
        return self.actions if fits else state.new_empty(len(state), 0, context.horizon, action_dim)

    def store_shifted(self, actions: Tensor) -> None:
        """Stores a plan that is executed now, for the next step."""
        self.set(shift_actions(actions))

    def set(self, actions: Tensor) -> None:
        """Stores candidates that begin with the next step."""
        self.actions = actions
