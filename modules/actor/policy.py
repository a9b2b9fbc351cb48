"""Actor: the policy (Mode-1; LeCun 2022, 3.1.1), its use as an initial candidate of Mode-2
(`planning/`), and planners as actors, with recovery where the agent is stuck and open-loop
execution."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.actor.action_space import ActionSpace
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.nets import check_goal_dims, relu_mlp, silu_mlp
from modules.types import (
    FRACTION,
    HORIZON,
    WIDTH,
    EvaluatedRollouts,
    MapShape,
    Plan,
    PlannerCarry,
    PlannerProtocol,
    PolicyFn,
    TaskContext,
    validate_ranges,
)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    hidden: int = 256
    goal_dims: int = 0
    """The first so many dimensions of state and goal that define a goal; 0: all."""
    relu: bool = False
    """Three ReLU layers instead of two SiLU layers, for actions that change sharply with the
    state."""

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, goal_dims=(0, 65_536))

    def build(
        self, shape: MapShape, action_dim: int, action_space: ActionSpace, task_dim: int
    ) -> Policy:
        size, goal_dims = prod(shape), check_goal_dims(self.goal_dims, shape) or prod(shape)
        stack = relu_mlp if self.relu else silu_mlp
        layers = stack(size + 2 * goal_dims + task_dim, self.hidden, action_dim)
        return Policy(layers, action_dim, action_space, goal_dims)


class Policy(nn.Module):
    """pi(s, g, w) -> the action that Mode-2 would plan, in one forward pass. The task vector w is
    the weights of some costs, `[B, W]`; W may be 0."""

    def __init__(
        self, layers: nn.Module, action_dim: int, action_space: ActionSpace, goal_dims: int
    ) -> None:
        super().__init__()
        self.layers, self.action_space = layers, action_space
        self.action_dim, self.goal_dims = action_dim, goal_dims

    def forward(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """States, goals `[B, D]`, task vectors `[B, W]` -> actions `[B, A]`."""
        return self.action_space.squash(self.pre_squash(state, goal, task_vector))

    def pre_squash(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """The unbounded numbers before `squash`; where they are large its gradient vanishes."""
        target, position = goal[..., : self.goal_dims], state[..., : self.goal_dims]
        inputs = torch.cat([state, target, target - position, task_vector], -1)
        return self.layers(inputs)


class ReactiveActor:
    """Mode-1 as an actor: one forward pass. It imagines no future, so the energy is NaN."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def initial_carry(self, seed: int) -> None:
        """Nothing is carried from step to step."""

    def __call__(self, state: Tensor, context: TaskContext, carry: None) -> tuple[Plan, None]:
        """`[B, D]` -> a plan of one action."""
        states = state[:, None]
        plan = Plan(
            actions=self.policy(state, context.goal, context.task_vector)[:, None],
            energy=state.new_full((len(state),), torch.nan),
            terms={},
            states=states,
            upper_plans=context.upper_plans,
            candidate_states=states[:, None],
            candidate_energies=state.new_full((len(state), 1), torch.nan),
            planned=torch.zeros(len(state), dtype=torch.bool, device=state.device),
        )
        return plan, None


@dataclass(frozen=True, kw_only=True)
class PolicyProposalConfig:
    def build(self, policy: Policy, evaluator: RolloutEvaluator) -> PolicyProposal:
        return PolicyProposal(policy, evaluator)


class PolicyProposal:
    """The actions of the policy over the next H imagined steps, as an initial candidate of
    Mode-2."""

    def __init__(self, policy: Policy, evaluator: RolloutEvaluator) -> None:
        self.policy, self.evaluator = policy, evaluator

    def __call__(self, state: Tensor, context: TaskContext, rng: torch.Generator) -> Tensor:
        """`[B, D]` -> `[B, 1, H, A]`"""
        no_candidates = self.evaluator.no_candidates(state, context)
        return self.evaluator.imagine_policy(state, self._policy_fn(context), no_candidates).actions

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        """`[B, D]` -> the futures of the policy and of candidates `[B, P, H, A]`, in this order."""
        return self.evaluator.evaluate_with(state, self._policy_fn(context), candidates, context)

    def _policy_fn(self, context: TaskContext) -> PolicyFn:
        def act(states: Tensor) -> Tensor:
            repeats = len(states) // len(context.goal)  # sampled futures of each environment
            goal, task_vector = (
                part.repeat_interleave(repeats, 0) if repeats > 1 else part
                for part in (context.goal, context.task_vector)
            )
            return self.policy(states, goal, task_vector)

        return act


@dataclass(frozen=True, kw_only=True)
class StuckPerturbationConfig:
    check_every: int = 3
    """Plans between two checks of progress."""
    min_progress: float = 0.75
    """Least decrease of the plan's energy between two checks, in units of the cost."""
    min_energy: float = 2.0
    """Energy below which the agent is never considered stuck, in units of the cost."""

    def __post_init__(self) -> None:
        validate_ranges(self, check_every=HORIZON, min_progress=FRACTION, min_energy=(0.0, 1e12))

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


class PlanningActor:
    """Mode-2 as an actor: it executes `receding_horizon` actions of a plan before the next one, and
    perturbs the plans where the agent is stuck."""

    def __init__(
        self, planner: PlannerProtocol, receding_horizon: int = 1,
        stuck_recovery: StuckPerturbation | None = None,
    ) -> None:  # fmt: skip
        self.planner, self.receding_horizon = planner, receding_horizon
        self.stuck_recovery = stuck_recovery

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
