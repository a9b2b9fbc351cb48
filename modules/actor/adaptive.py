"""Mode by need: react where the policy's own imagined future is as good as what deliberation is
expected to find, else deliberate (LeCun 2022, 3.1: Mode-1 and Mode-2)."""

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
    """The energy of the plan that Mode-2 would find, learnt from the plans it found: state, goal
    and what is told of the task `[B, ..]` -> `[B]`. The energies of K tasks differ by orders of
    magnitude: each has its own mean and standard deviation, found by what is told of it."""

    task_vectors: (
        Tensor  # [K, W] what is told of each task; infinite where nothing was learnt of it
    )
    mean: Tensor  # [K]
    scale: Tensor  # [K]

    def __init__(self, layers: nn.Module, num_tasks: int, task_dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("task_vectors", torch.full((num_tasks, task_dim), torch.inf))
        self.register_buffer("mean", torch.zeros(num_tasks))
        self.register_buffer("scale", torch.ones(num_tasks))

    def forward(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        inputs, task_index = (
            torch.cat([state, goal, goal - state, task_vector], -1),
            self._task_index(task_vector),
        )
        return self.mean[task_index] + self.scale[task_index] * self.layers(inputs).squeeze(-1)

    def energy_std(self, task_vector: Tensor) -> Tensor:
        """`[B, W]` -> the standard deviation of the energies of such a task's plans, `[B]`."""
        return self.scale[self._task_index(task_vector)]

    def _task_index(self, task_vector: Tensor) -> Tensor:
        """`[B, W]` -> the task that is told of most alike, `[B]`."""
        return (task_vector[:, None] - self.task_vectors).abs().sum(-1).argmin(1)

    @torch.no_grad()
    def adapt(self, task: int, task_vector: Tensor, energy: Tensor) -> None:
        """What is told of a task, `[W]`, and energies of its plans, `[N]`."""
        self.task_vectors[task] = task_vector
        self.mean[task] = energy.mean()
        self.scale[task] = safe_std(energy)


class ReplanTrigger(Stateful):
    """What thinking found in each of B worlds, and for how many steps it holds: to think again so
    soon would find the same."""

    episode_state = ("energy", "steps_left")

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.clear()

    def clear(self) -> None:
        """Nothing was thought yet."""
        self.energy = self.steps_left = torch.empty(0)

    def expired(self, energy: Tensor) -> Tensor:
        """A step later, energies `[B]` -> `[B]` bool: where nothing holds any more, or what comes
        is worse than what was found."""
        if len(self.energy) != len(energy):
            self.energy, self.steps_left = (
                torch.full_like(energy, -torch.inf),
                torch.zeros_like(energy),
            )
        self.steps_left = self.steps_left - 1
        return (self.steps_left < 0) | (energy > self.energy)

    def record(self, env_ids: Tensor, energy: Tensor) -> None:
        """In some worlds, `[N]`, plans of these energies `[N]` were found."""
        self.energy = self.energy.index_copy(0, env_ids, energy)
        self.steps_left = self.steps_left.index_fill(0, env_ids, self.patience)


class PolicyEvaluator(Protocol):
    """A habit that imagines its own future, and others beside it."""

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts: ...


@dataclass(frozen=True, kw_only=True)
class AdaptiveActorConfig:
    hidden: int = 128
    """Of the expectation."""
    tolerance: float = 0.1
    """Share of the expected gain that reacting may forgo."""
    slack: float = 0.05
    """Of one standard deviation of the energies of such plans: too little to think about."""
    patience: int = 5
    """Steps for which a thought holds, unless what it found gets worse by more than `slack`."""

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, tolerance=FRACTION, slack=(0.0, 1e3), patience=STEPS)

    def build_predictor(
        self, shape: MapShape, num_tasks: int, task_dim: int
    ) -> PlanEnergyPredictor:
        return PlanEnergyPredictor(
            silu_mlp(3 * prod(shape) + task_dim, self.hidden, 1), num_tasks, task_dim
        )

    def build(
        self,
        policy_proposal: PolicyEvaluator,
        planner: PlannerProtocol,
        plan_energy_predictor: PlanEnergyPredictor,
        action_dim: int,
    ) -> AdaptiveActor:
        return AdaptiveActor(self, policy_proposal, planner, plan_energy_predictor, action_dim)


class AdaptiveActor(Stateful):
    """Both modes as one actor. What deliberation is expected to gain over resting is the measure:
    what the policy would do, or what was intended a step ago, is good enough where it gains all
    but `tolerance` of it, or as much as was found when it was last thought about."""

    def __init__(
        self, config: AdaptiveActorConfig, policy_proposal: PolicyEvaluator, planner: PlannerProtocol, plan_energy_predictor: PlanEnergyPredictor,
        action_dim: int,
    ) -> None:  # fmt: skip
        self.config, self.policy_proposal, self.action_dim = config, policy_proposal, action_dim
        self.planner, self.plan_energy_predictor = planner, plan_energy_predictor
        self.warm_start, self.replan_trigger = WarmStart(), ReplanTrigger(config.patience)

    def reset(self, seed: int = 0) -> None:
        """What is guessed from here on depends on the seed alone; nothing is intended yet."""
        self.planner.reset(seed)
        self.warm_start.clear()
        self.replan_trigger.clear()

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        """`[B, D]` -> the policy's own future, or the rest of what was intended a step ago, or,
        where neither is good enough, a new plan."""
        previous = self.warm_start.get(state, context, self.action_dim)
        zero_actions = state.new_zeros(len(state), 1, context.horizon, self.action_dim)
        evaluated = self.policy_proposal.evaluate_with(
            state, torch.cat([previous, zero_actions], 1), context
        )
        plan = to_plan(evaluated, evaluated.energy[:, :-1].argmin(1), context)
        needs_planning = self._needs_planning(state, plan.energy, evaluated.energy[:, -1], context)
        plan = plan._replace(
            candidate_states=plan.states[:, None],
            candidate_energies=plan.energy[:, None],
            planned=needs_planning,
        )
        env_ids = needs_planning.nonzero().squeeze(1)
        if len(env_ids):
            # its last plan was for other worlds; what would be done anyway is where thinking starts
            self.planner.set_warm_start(evaluated.rollout.actions[env_ids, :-1])
            new_plan = self.planner(state[env_ids], context.select(env_ids))
            self.replan_trigger.record(env_ids, new_plan.energy)
            plan = merge_plans(plan, new_plan, env_ids)
        self.warm_start.store_shifted(plan.actions[:, None])
        return plan

    def _needs_planning(
        self, state: Tensor, energy: Tensor, rest_energy: Tensor, context: TaskContext
    ) -> Tensor:
        """Energies `[B]` -> `[B]` bool: where it forgoes too much of what thinking is expected to
        gain over resting."""
        expected = self.plan_energy_predictor(state, context.goal, context.task_vector)
        allowed = self.config.tolerance * (rest_energy - expected).relu()
        slack = self.config.slack * self.plan_energy_predictor.energy_std(context.task_vector)
        return (energy > expected + allowed + slack) & self.replan_trigger.expired(energy - slack)


def merge_plans(plan: Plan, other: Plan, env_ids: Tensor) -> Plan:
    """The plan of B worlds with that of `env_ids` `[N]` put in; of all that was considered, only
    what was chosen is shown."""

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
