"""Adaptive mode ("auto"): Mode-1 where the imagined future of the policy is about as good as the
plan that Mode-2 is predicted to find, else Mode-2 (LeCun 2022, 3.1.1 and 3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.actor.planning.evaluator import (
    fitting_warm_start,
    safe_std,
    shift_actions,
    to_plan,
    without_nan,
)
from modules.nets import silu_mlp
from modules.types import (
    FRACTION,
    STEPS,
    WIDTH,
    EvaluatedRollouts,
    MapShape,
    Plan,
    PlannerCarry,
    PlannerProtocol,
    Settings,
    TaskContext,
)


class PlanEnergyPredictor(nn.Module):
    """Predicts the energy of the plan that Mode-2 would find, trained on its plans: state, goal and
    task vector `[B, ...]` -> `[B]`. The energies of K tasks differ by orders of magnitude, so each
    task has its own mean and standard deviation, found by its task vector, and by its index `task`
    (an int or `[B]`) among tasks of the same vector. Another task (None) has those of the nearest
    vector. Where vectors are empty, nothing is known of its energies: -inf is predicted."""

    task_vectors: Tensor  # [K, W]; infinite for tasks without training
    mean: Tensor  # [K]
    scale: Tensor  # [K]

    def __init__(self, layers: nn.Module, num_tasks: int, task_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("task_vectors", torch.full((num_tasks, task_dim), torch.inf))
        self.register_buffer("mean", torch.zeros(num_tasks))
        self.register_buffer("scale", torch.ones(num_tasks))

    def forward(
        self, state: Tensor, goal: Tensor, task_vector: Tensor, task: int | Tensor | None = None
    ) -> Tensor:
        if task is None and not task_vector.shape[-1]:
            return state.new_full((len(state),), -torch.inf)
        inputs = torch.cat([state, goal, goal - state, task_vector], -1)
        index = self._task_index(task_vector, task)
        return self.mean[index] + self.scale[index] * self.layers(inputs).squeeze(-1)

    def energy_std(self, task_vector: Tensor, task: int | Tensor | None = None) -> Tensor:
        """`[B, W]` -> the standard deviation of the plan energies of that task, `[B]`; 0 where
        nothing is known of them."""
        if task is None and not task_vector.shape[-1]:
            return task_vector.new_zeros(len(task_vector))
        return self.scale[self._task_index(task_vector, task)]

    def _task_index(self, task_vector: Tensor, task: int | Tensor | None) -> Tensor:
        """`[B, W]` -> the index of the nearest task vector, `[B]`: `task` if it is as near."""
        distance = (task_vector[:, None] - self.task_vectors).abs().sum(-1)  # [B, K]
        least, nearest = distance.min(1)
        if task is None:
            return nearest
        own = torch.zeros_like(nearest) + task
        return torch.where(distance.gather(1, own[:, None]).squeeze(1) <= least, own, nearest)

    @torch.no_grad()
    def adapt(self, task: int, task_vector: Tensor, energy: Tensor) -> None:
        """Takes mean and scale of a task from its vector `[W]` and the energies of plans `[N]`."""
        self.task_vectors[task] = task_vector
        self.mean[task] = energy.mean()
        self.scale[task] = safe_std(energy)


class PolicyEvaluator(Protocol):
    """A policy proposal that evaluates its own imagined future beside those of candidates."""

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts: ...


@dataclass(frozen=True, kw_only=True)
class AdaptiveActorConfig(Settings):
    hidden: Annotated[int, WIDTH] = 128
    """Units of the predictor's hidden layers."""
    tolerance: Annotated[float, FRACTION] = 0.1
    """Fraction of the predicted gain of planning over resting that Mode-1 may lose."""
    slack: Annotated[float, (0.0, 1e3)] = 0.05
    """Energy difference that is ignored, in standard deviations of the plan energies of the
    task."""
    patience: Annotated[int, STEPS] = 5
    """Steps after planning without planning again, unless the energy rises by more than `slack`."""

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


class LastPlan(NamedTuple):
    """The energy of the last plan of Mode-2 in each of B environments, and the steps for which it
    is valid: planning again so soon would find the same plan."""

    energy: Tensor  # [B]
    steps_left: Tensor  # [B]

    @classmethod
    def none(cls, like: Tensor) -> LastPlan:
        """There is no plan yet, for energies `[B]`."""
        return cls(torch.full_like(like, -torch.inf), torch.zeros_like(like))

    def advance(self) -> LastPlan:
        """One step later."""
        return self._replace(steps_left=self.steps_left - 1)

    def expired(self, energy: Tensor) -> Tensor:
        """Energies `[B]` -> `[B]` bool: where the plan has expired or the energy exceeds its."""
        return (self.steps_left < 0) | (energy > self.energy)

    def record(self, env_ids: Tensor, energy: Tensor, patience: int) -> LastPlan:
        """New plans in the environments `[N]`, of energies `[N]`, valid for `patience` steps."""
        return LastPlan(
            self.energy.index_copy(0, env_ids, energy),
            self.steps_left.index_fill(0, env_ids, patience),
        )


class AdaptiveCarry(NamedTuple):
    """What `AdaptiveActor` carries from step to step."""

    planner: PlannerCarry
    warm_start: Tensor | None = None  # [B, 1, H, A]: the rest of the last plan
    last_plan: LastPlan | None = None


@dataclass
class AdaptiveActor:
    """Both modes as one actor. It follows the policy, or the rest of its last plan, where that
    gains all but `tolerance` of what planning is predicted to gain over resting, or as much as the
    last plan; elsewhere it plans."""

    config: AdaptiveActorConfig
    policy_proposal: PolicyEvaluator
    planner: PlannerProtocol
    plan_energy_predictor: PlanEnergyPredictor
    action_dim: int

    def initial_carry(self, seed: int) -> AdaptiveCarry:
        """No plan yet; random draws depend on the seed alone."""
        return AdaptiveCarry(PlannerCarry.initial(seed))

    def __call__(
        self, state: Tensor, context: TaskContext, carry: AdaptiveCarry
    ) -> tuple[Plan, AdaptiveCarry]:
        """`[B, D]` -> the better one of the policy's future and the rest of the last plan; where
        neither is good enough, a new plan."""
        previous = fitting_warm_start(carry.warm_start, state, context, self.action_dim)
        zero_actions = state.new_zeros(len(state), 1, context.horizon, self.action_dim)
        candidates = torch.cat([previous, zero_actions], 1)
        evaluated = self.policy_proposal.evaluate_with(state, candidates, context)
        energies = without_nan(evaluated.energy)  # a future that diverged is never good enough
        plan = to_plan(evaluated, energies[:, :-1].argmin(1), context)
        last_plan = carry.last_plan
        if last_plan is None or len(last_plan.energy) != len(state):
            last_plan = LastPlan.none(plan.energy)
        last_plan = last_plan.advance()
        std = self.plan_energy_predictor.energy_std(context.task_vector, context.task_index)
        slack = self.config.slack * std
        needs_planning = last_plan.expired(without_nan(plan.energy) - slack) & self._loses_too_much(
            state, energies, slack, context
        )
        plan = plan._replace(
            candidate_states=plan.states[:, None],
            candidate_energies=plan.energy[:, None],
            planned=needs_planning,
        )
        env_ids, planner_carry = needs_planning.nonzero().squeeze(1), carry.planner
        if len(env_ids):
            # the planner's own last plan may have been for other environments
            planner_carry = planner_carry._replace(
                warm_start=evaluated.rollout.actions[env_ids, :-1]
            )
            new_plan, planner_carry = self.planner(
                state[env_ids], context.select(env_ids), planner_carry
            )
            last_plan = last_plan.record(env_ids, new_plan.energy, self.config.patience)
            plan = merge_plans(plan, new_plan, env_ids)
        warm_start = shift_actions(plan.actions[:, None])
        return plan, AdaptiveCarry(planner_carry, warm_start, last_plan)

    def _loses_too_much(
        self, state: Tensor, energies: Tensor, slack: Tensor, context: TaskContext
    ) -> Tensor:
        """Energies `[B, P]`, the last that of resting -> `[B]` bool: where the best of the others
        loses too much of the predicted gain of planning over resting."""
        energy, rest_energy = energies[:, :-1].amin(1), energies[:, -1]
        expected = self.plan_energy_predictor(
            state, context.goal, context.task_vector, context.task_index
        )
        gain = (rest_energy - expected).relu()
        allowed = self.config.tolerance * gain.masked_fill(gain.isinf(), 0)
        return energy > expected + allowed + slack


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
