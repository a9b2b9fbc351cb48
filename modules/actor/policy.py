"""Actor, Mode-1: a policy that reacts, and what makes it an actor (Mode-2: `planners/`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.actor.action_space import ActionSpace
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.actor.planning.risk import EvaluatedRollouts
from modules.nets import ConvHead, check_goal_dims, relu_mlp, silu_mlp
from modules.types import (
    FRACTION,
    HORIZON,
    WIDTH,
    ActorProtocol,
    MapShape,
    Plan,
    PolicyFn,
    Stateful,
    TaskContext,
    validate_ranges,
)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    hidden: int = 256
    goal_dims: int = 0
    """Numbers of a goal, the first ones, that it looks at; 0: all."""
    relu: bool = False
    """Three layers with kinks in the place of two smooth ones, for what has to be timed."""

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
    """pi(s, g, task) -> the action that Mode-2 would have found after deliberation, in one pass.

    What is told of the task are the weights of some costs, `[B, W]`; W may be 0."""

    def __init__(
        self, layers: nn.Module, action_dim: int, action_space: ActionSpace, goal_dims: int
    ) -> None:
        super().__init__()
        self.layers, self.action_space, self.action_dim, self.goal_dims = (
            layers,
            action_space,
            action_dim,
            goal_dims,
        )

    def forward(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """States, goals `[B, D]`, the task `[B, W]` -> actions `[B, A]` inside the bounds."""
        return self.action_space.squash(self.pre_squash(state, goal, task_vector))

    def pre_squash(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """The same before they are bounded; where these are large, no gradient comes through."""
        target, position = goal[..., : self.goal_dims], state[..., : self.goal_dims]
        inputs = torch.cat([state, target, target - position, self.broadcast_task(task_vector)], -1)
        return self.layers(inputs)

    def broadcast_task(self, task_vector: Tensor) -> Tensor:
        """The task `[B, W]` as numbers beside those of a state."""
        return task_vector


@dataclass(frozen=True, kw_only=True)
class ConvPolicyConfig:
    channels: int = 32
    hidden: int = 256

    def __post_init__(self) -> None:
        validate_ranges(self, channels=WIDTH, hidden=WIDTH)

    def build(
        self, shape: MapShape, action_dim: int, action_space: ActionSpace, task_dim: int
    ) -> ConvPolicy:
        # flat maps one behind the other are their channels
        input_shape = (3 * shape[0] + task_dim, *shape[1:])
        layers = ConvHead(input_shape, self.channels, self.hidden, action_dim)
        return ConvPolicy(layers, action_dim, action_space, shape)


class ConvPolicy(Policy):
    """The same for map states: neighbourhoods of state and goal are looked at before the whole."""

    def __init__(
        self, layers: nn.Module, action_dim: int, action_space: ActionSpace, shape: MapShape
    ) -> None:
        super().__init__(layers, action_dim, action_space, prod(shape))
        self.num_positions = shape[1] * shape[2]

    def broadcast_task(self, task_vector: Tensor) -> Tensor:
        """The same number in every place, one channel for each."""
        return task_vector.repeat_interleave(self.num_positions, -1)


class ReactiveActor:
    """Mode-1 as an actor: one forward pass, nothing imagined, so no energy is claimed (NaN)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seed: int = 0) -> None:
        """A reflex has no past."""

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        """`[B, D]` -> a plan of one action."""
        states = state[:, None]
        return Plan(
            actions=self.policy(state, context.goal, context.task_vector)[:, None],
            energy=state.new_full((len(state),), torch.nan),
            terms={},
            states=states,
            upper_plans=context.upper_plans,
            candidate_states=states[:, None],
            candidate_energies=state.new_full((len(state), 1), torch.nan),
            planned=torch.zeros(len(state), dtype=torch.bool, device=state.device),
        )


@dataclass(frozen=True, kw_only=True)
class PolicyProposalConfig:
    def build(self, policy: Policy, evaluator: RolloutEvaluator) -> PolicyProposal:
        return PolicyProposal(policy, evaluator)


class PolicyProposal:
    """What the policy would do for the next H steps, as one proposal for Mode-2 to improve."""

    def __init__(self, policy: Policy, evaluator: RolloutEvaluator) -> None:
        self.policy, self.evaluator = policy, evaluator

    def __call__(self, state: Tensor, context: TaskContext) -> Tensor:
        """`[B, D]` -> `[B, 1, H, A]`"""
        no_candidates = state.new_empty(len(state), 0, context.horizon, self.evaluator.action_dim)
        return self.evaluator.imagine_policy(state, self._policy_fn(context), no_candidates).actions

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        """`[B, D]` -> the policy's own future, and beside it those of others `[B, P, H, A]`."""
        return self.evaluator.evaluate_with(state, self._policy_fn(context), candidates, context)

    def _policy_fn(self, context: TaskContext) -> PolicyFn:
        def act(states: Tensor) -> Tensor:
            repeats = len(states) // len(
                context.goal
            )  # several futures of each world, side by side
            goal, task_vector = (
                part.repeat_interleave(repeats, 0) if repeats > 1 else part
                for part in (context.goal, context.task_vector)
            )
            return self.policy(states, goal, task_vector)

        return act


@dataclass(frozen=True, kw_only=True)
class NoPolicyProposalConfig:
    def build(self, policy: Policy, evaluator: RolloutEvaluator) -> NoPolicyProposal:
        return NoPolicyProposal(policy.action_dim)


class NoPolicyProposal:
    """Nothing to go by: Mode-2 without a policy."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def __call__(self, state: Tensor, context: TaskContext) -> Tensor:
        return state.new_empty(len(state), 0, context.horizon, self.action_dim)


@dataclass(frozen=True, kw_only=True)
class NoStuckRecoveryConfig:
    def build(self, actor: ActorProtocol, evaluator: RolloutEvaluator) -> ActorProtocol:
        return actor


class NoStuckRecovery:
    """Trusts its plans, come what may."""


@dataclass(frozen=True, kw_only=True)
class StuckPerturbationConfig:
    check_every: int = 3
    """Actions between two looks at what was gained."""
    min_progress: float = 0.75
    """How much the energy of the plan must have fallen since the last look."""
    min_energy: float = 2.0
    """Energy below which there is nothing to gain; both in the units of the cost."""

    def __post_init__(self) -> None:
        validate_ranges(self, check_every=HORIZON, min_progress=FRACTION, min_energy=(0.0, 1e12))

    def build(self, actor: ActorProtocol, evaluator: RolloutEvaluator) -> ActorProtocol:
        return StuckPerturbation(self, actor, evaluator)


class StuckPerturbation(Stateful):
    """Where plans are followed and nothing gets better, the model is wrong about this place: one
    random action, and then the plans have their chance again."""

    episode_state = ("rng", "calls", "last_energy")

    def __init__(
        self, config: StuckPerturbationConfig, actor: ActorProtocol, evaluator: RolloutEvaluator
    ) -> None:
        self.config, self.actor, self.evaluator = config, actor, evaluator
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Nothing was tried yet."""
        self.actor.reset(seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.calls, self.last_energy = 0, torch.tensor(torch.inf)

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        plan = self.actor(state, context)
        self.calls += 1
        if self.calls % self.config.check_every:
            return plan
        progress = self.last_energy.to(plan.energy) - plan.energy  # [B]
        stuck = (progress < self.config.min_progress) & (plan.energy > self.config.min_energy)
        self.last_energy = plan.energy
        noise = torch.randn(plan.action.shape[-1], generator=self.rng).to(plan.action)
        first = torch.where(
            stuck[:, None], self.evaluator.action_space.squash(2 * noise), plan.action
        )
        actions = torch.cat([first[:, None], plan.actions[:, 1:]], 1)
        # what the rest of the plan comes to after that: a plan never shows what it won't do
        changed = self.evaluator.best_plan(state, actions[:, None], context)
        return changed._replace(
            candidate_states=plan.candidate_states, candidate_energies=plan.candidate_energies
        )


class OpenLoopActor(Stateful):
    """Carries out several actions of a plan before it is made anew."""

    episode_state = ("remaining",)

    def __init__(self, actor: ActorProtocol, receding_horizon: int) -> None:
        self.actor, self.receding_horizon = actor, receding_horizon
        self.remaining: list[Plan] = []

    def reset(self, seed: int = 0) -> None:
        """The next call plans, with nothing to go on from."""
        self.actor.reset(seed)
        self.remaining = []

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        if not self.remaining:
            plan = self.actor(state, context)
            self.remaining = [
                drop_first(plan, step)
                for step in range(min(self.receding_horizon, context.horizon))
            ]
        return self.remaining.pop(0)


def drop_first(plan: Plan, step: int) -> Plan:
    """The same plan after `step` of its actions were carried out."""
    return plan._replace(
        actions=plan.actions[:, step:],
        states=plan.states[:, step:],
        candidate_states=plan.candidate_states[:, :, step:],
    )
