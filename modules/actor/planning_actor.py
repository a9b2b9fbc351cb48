"""Mode-2 as an actor (LeCun 2022, 3.1.2): it follows the plans of a planner (`planning/`) for one
or more steps each, and recovers where the agent is stuck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from modules.actor.planning.evaluator import RolloutEvaluator
from modules.types import (
    FRACTION,
    HORIZON,
    Plan,
    PlannerCarry,
    PlannerProtocol,
    Settings,
    TaskContext,
)


@dataclass(frozen=True, kw_only=True)
class StuckPerturbationConfig(Settings):
    check_every: Annotated[int, HORIZON] = 3
    """Plans between two checks of progress."""
    min_progress: Annotated[float, FRACTION] = 0.75
    """Least decrease of the plan's energy between two checks, in units of the cost."""
    min_energy: Annotated[float, (0.0, 1e12)] = 2.0
    """Energy below which the agent is never considered stuck, in units of the cost."""

    def build(self, evaluator: RolloutEvaluator) -> StuckPerturbation:
        return StuckPerturbation(self, evaluator)


class StuckCarry(NamedTuple):
    """What the check of progress carries from step to step."""

    rng: torch.Generator
    num_plans: int = 0
    last_energy: Tensor | None = None  # [B]: that of the plan at the last check


@dataclass(frozen=True)
class StuckPerturbation:
    """Where the energy of the plans does not decrease although they are followed, the world model
    errs: one random action replaces the planned one."""

    config: StuckPerturbationConfig
    evaluator: RolloutEvaluator

    def __call__(
        self, plan: Plan, state: Tensor, context: TaskContext, carry: StuckCarry
    ) -> tuple[Plan, StuckCarry]:
        """A new plan for the states `[B, D]` -> the plan to follow."""
        carry = carry._replace(num_plans=carry.num_plans + 1)
        if carry.num_plans % self.config.check_every:
            return plan, carry
        last = carry.last_energy  # [B]
        if last is None or len(last) != len(plan.energy):
            last = torch.full_like(plan.energy, torch.inf)
        progress = last.to(plan.energy) - plan.energy
        stuck = (progress < self.config.min_progress) & (plan.energy > self.config.min_energy)
        rng = carry.rng.clone_state()
        noise = torch.randn(plan.action.shape[-1], generator=rng).to(plan.action)
        first = torch.where(
            stuck[:, None], self.evaluator.action_space.squash(2 * noise), plan.action
        )
        actions = torch.cat([first[:, None], plan.actions[:, 1:]], 1)
        # evaluated anew, because the first action has changed
        changed = self.evaluator.best_plan(state, actions[:, None], context)
        changed = changed._replace(
            candidate_states=plan.candidate_states, candidate_energies=plan.candidate_energies
        )
        return changed, StuckCarry(rng, carry.num_plans, plan.energy)


class PlanningCarry(NamedTuple):
    """What `PlanningActor` carries from step to step."""

    planner: PlannerCarry
    stuck: StuckCarry
    remaining: tuple[Plan, ...] = ()  # the rest of the plan that is executed open loop


@dataclass(frozen=True)
class PlanningActor:
    """Mode-2 as an actor: it executes `receding_horizon` actions of a plan before the next one, and
    perturbs the plans where the agent is stuck."""

    planner: PlannerProtocol
    receding_horizon: int = 1
    stuck_recovery: StuckPerturbation | None = None

    def initial_carry(self, seed: int) -> PlanningCarry:
        """No plan yet; random draws depend on the seed alone."""
        stuck = StuckCarry(torch.Generator().manual_seed(seed))
        return PlanningCarry(PlannerCarry.initial(seed), stuck)

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlanningCarry
    ) -> tuple[Plan, PlanningCarry]:
        """`[B, D]` -> a new plan, or the rest of the last one."""
        if carry.remaining and len(carry.remaining[0].energy) == len(state):
            return carry.remaining[0], carry._replace(remaining=carry.remaining[1:])
        plan, planner_carry = self.planner(state, context, carry.planner)
        stuck = carry.stuck
        if self.stuck_recovery:
            plan, stuck = self.stuck_recovery(plan, state, context, stuck)
        num_steps = min(self.receding_horizon, context.horizon)
        remaining = tuple(drop_first(plan, step) for step in range(1, num_steps))
        return plan, PlanningCarry(planner_carry, stuck, remaining)


def drop_first(plan: Plan, count: int) -> Plan:
    """The plan without its first `count` actions."""
    return plan._replace(
        actions=plan.actions[:, count:],
        states=plan.states[:, count:],
        candidate_states=plan.candidate_states[:, :, count:],
    )
