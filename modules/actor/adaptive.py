"""Adaptive mode ("auto"): Mode-1 where the imagined future of the policy is about as good as the
plan that Mode-2 is predicted to find, else Mode-2 (LeCun 2022, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.actor.planning.evaluator import EvaluatedRollouts, WarmStart, safe_std, to_plan
from modules.nets import silu_mlp
from modules.types import (
    FRACTION,
    STEPS,
    WIDTH,
    MapShape,
    Plan,
    PlannerProtocol,
    Stateful,
    TaskContext,
    validate_ranges,
)


class PlanEnergyPredictor(nn.Module):
    """Predicts the energy of the plan that Mode-2 would find, trained on its plans: state, goal and
    task vector `[B, ...]` -> `[B]`. The energies of K tasks differ by orders of magnitude, so each
    task has its own mean and standard deviation, found by its task vector."""

    task_vectors: Tensor  # [K, W]; infinite for tasks without training
    mean: Tensor  # [K]
    scale: Tensor  # [K]

    def __init__(self, layers: nn.Module, num_tasks: int, task_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("task_vectors", torch.full((num_tasks, task_dim), torch.inf))
        self.register_buffer("mean", torch.zeros(num_tasks))
        self.register_buffer("scale", torch.ones(num_tasks))

    def forward(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        inputs = torch.cat([state, goal, goal - state, task_vector], -1)
        task_index = self._task_index(task_vector)
        return self.mean[task_index] + self.scale[task_index] * self.layers(inputs).squeeze(-1)

    def energy_std(self, task_vector: Tensor) -> Tensor:
        """`[B, W]` -> the standard deviation of the plan energies of that task, `[B]`."""
        return self.scale[self._task_index(task_vector)]

    def _task_index(self, task_vector: Tensor) -> Tensor:
        """`[B, W]` -> the index of the nearest task vector, `[B]`."""
        return (task_vector[:, None] - self.task_vectors).abs().sum(-1).argmin(1)

    @torch.no_grad()
    def adapt(self, task: int, task_vector: Tensor, energy: Tensor) -> None:
        """Takes mean and scale of a task from its vector `[W]` and the energies of plans `[N]`."""
        self.task_vectors[task] = task_vector
        self.mean[task] = energy.mean()
        self.scale[task] = safe_std(energy)


class ReplanTrigger(Stateful):
    """The energy of the last plan in each of B environments, and the steps for which it is valid:
    planning again so soon would find the same plan."""

    episode_state = ("energy", "steps_left")

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.clear()

    def clear(self) -> None:
        """There is no plan yet."""
        self.energy = self.steps_left = torch.empty(0)

    def expired(self, energy: Tensor) -> Tensor:
        """Advances by one step. Energies `[B]` -> `[B]` bool: where the last plan has expired or
        the energy exceeds that of the plan."""
        if len(self.energy) != len(energy):
            self.energy = torch.full_like(energy, -torch.inf)
            self.steps_left = torch.zeros_like(energy)
        self.steps_left = self.steps_left - 1
        return (self.steps_left < 0) | (energy > self.energy)

    def record(self, env_ids: Tensor, energy: Tensor) -> None:
        """Records new plans in the environments `[N]`, of energies `[N]`."""
        self.energy = self.energy.index_copy(0, env_ids, energy)
        self.steps_left = self.steps_left.index_fill(0, env_ids, self.patience)


class PolicyEvaluator(Protocol):
    """A policy proposal that evaluates its own imagined future beside those of candidates."""

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts: ...


@dataclass(frozen=True, kw_only=True)
class AdaptiveActorConfig:
    hidden: int = 128
    """Units of the predictor's hidden layers."""
    tolerance: float = 0.1
    """Fraction of the predicted gain of planning over resting that Mode-1 may lose."""
    slack: float = 0.05
    """Energy difference that is ignored, in standard deviations of the plan energies of the
    task."""
    patience: int = 5
    """Steps after planning without planning again, unless the energy rises by more than `slack`."""

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, tolerance=FRACTION, slack=(0.0, 1e3), patience=STEPS)

    def build_predictor(
        self, shape: MapShape, num_tasks: int, task_dim: int
    ) -> PlanEnergyPredictor:
        layers = silu_mlp(3 * prod(shape) + task_dim, self.hidden, 1)
        return PlanEnergyPredictor(layers, num_tasks, task_dim)

    def build(
        self,
        policy_proposal: PolicyEvaluator,
        planner: PlannerProtocol,
        plan_energy_predictor: PlanEnergyPredictor,
        action_dim: int,
    ) -> AdaptiveActor:
        return AdaptiveActor(self, policy_proposal, planner, plan_energy_predictor, action_dim)


class AdaptiveActor(Stateful):
    """Both modes as one actor. It follows the policy, or the rest of its last plan, where that
    gains all but `tolerance` of what planning is predicted to gain over resting, or as much as the
    last plan; elsewhere it plans."""

    def __init__(
        self,
        config: AdaptiveActorConfig,
        policy_proposal: PolicyEvaluator,
        planner: PlannerProtocol,
        plan_energy_predictor: PlanEnergyPredictor,
        action_dim: int,
    ) -> None:
        self.config, self.policy_proposal, self.action_dim = config, policy_proposal, action_dim
        self.planner, self.plan_energy_predictor = planner, plan_energy_predictor
        self.warm_start, self.replan_trigger = WarmStart(), ReplanTrigger(config.patience)

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; random draws depend on the seed alone."""
        self.planner.reset(seed)
        self.warm_start.clear()
        self.replan_trigger.clear()

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        """`[B, D]` -> the better one of the policy's future and the rest of the last plan; where
        neither is good enough, a new plan."""
        previous = self.warm_start.get(state, context, self.action_dim)
        zero_actions = state.new_zeros(len(state), 1, context.horizon, self.action_dim)
        candidates = torch.cat([previous, zero_actions], 1)
        evaluated = self.policy_proposal.evaluate_with(state, candidates, context)
        plan = to_plan(evaluated, evaluated.energy[:, :-1].argmin(1), context)
        needs_planning = self._needs_planning(state, plan.energy, evaluated.energy[:, -1], context)
        plan = plan._replace(
            candidate_states=plan.states[:, None],
            candidate_energies=plan.energy[:, None],
            planned=needs_planning,
        )
        env_ids = needs_planning.nonzero().squeeze(1)
        if len(env_ids):
            # the planner's own last plan may have been for other environments
            self.planner.set_warm_start(evaluated.rollout.actions[env_ids, :-1])
            new_plan = self.planner(state[env_ids], context.select(env_ids))
            self.replan_trigger.record(env_ids, new_plan.energy)
            plan = merge_plans(plan, new_plan, env_ids)
        self.warm_start.store_shifted(plan.actions[:, None])
        return plan

    def _needs_planning(
        self, state: Tensor, energy: Tensor, rest_energy: Tensor, context: TaskContext
    ) -> Tensor:
        """Energies `[B]` -> `[B]` bool: where they lose too much of the predicted gain of planning
        over resting."""
        expected = self.plan_energy_predictor(state, context.goal, context.task_vector)
        allowed = self.config.tolerance * (rest_energy - expected).relu()
        slack = self.config.slack * self.plan_energy_predictor.energy_std(context.task_vector)
        return (energy > expected + allowed + slack) & self.replan_trigger.expired(energy - slack)


def merge_plans(plan: Plan, other: Plan, env_ids: Tensor) -> Plan:
    """`plan` of B environments with `other` in the environments `env_ids` `[N]`; of the candidates
    only the chosen one is kept."""

    def scatter(target: Tensor, part: Tensor) -> Tensor:
        return target.index_copy(0, env_ids, part)

    return Plan(
        actions=scatter(plan.actions, other.actions),
        energy=scatter(plan.energy, other.energy),
        terms={name: scatter(term, other.terms[name]) for name, term in plan.terms.items()},
        states=scatter(plan.states, other.states),
        upper_plans=scatter(plan.upper_plans, other.upper_plans),
        candidate_states=scatter(plan.candidate_states, other.states[:, None]),
        candidate_energies=scatter(plan.candidate_energies, other.energy[:, None]),
        planned=scatter(plan.planned, other.planned),
    )
