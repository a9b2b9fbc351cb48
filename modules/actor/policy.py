"""Actor: the policy (Mode-1), its use as an initial candidate of Mode-2 (`planning/`), and two
wrappers of actors: recovery where the agent is stuck, and open-loop execution."""

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
        inputs = torch.cat([state, target, target - position, self.broadcast_task(task_vector)], -1)
        return self.layers(inputs)

    def broadcast_task(self, task_vector: Tensor) -> Tensor:
        """The task vector `[B, W]` in the layout of the inputs."""
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
        # concatenated flat maps are the flat map of their concatenated channels
        input_shape = (3 * shape[0] + task_dim, *shape[1:])
        layers = ConvHead(input_shape, self.channels, self.hidden, action_dim)
        return ConvPolicy(layers, action_dim, action_space, shape)


class ConvPolicy(Policy):
    """`Policy` of map states, with convolutional layers."""

    def __init__(
        self, layers: nn.Module, action_dim: int, action_space: ActionSpace, shape: MapShape
    ) -> None:
        super().__init__(layers, action_dim, action_space, prod(shape))
        self.num_positions = shape[1] * shape[2]

    def broadcast_task(self, task_vector: Tensor) -> Tensor:
        """Each number as a constant channel of the map."""
        return task_vector.repeat_interleave(self.num_positions, -1)


class ReactiveActor:
    """Mode-1 as an actor: one forward pass. It imagines no future, so the energy is NaN."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seed: int = 0) -> None:
        """There is no state to reset."""

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
    """The actions of the policy over the next H imagined steps, as an initial candidate of
    Mode-2."""

    def __init__(self, policy: Policy, evaluator: RolloutEvaluator) -> None:
        self.policy, self.evaluator = policy, evaluator

    def __call__(self, state: Tensor, context: TaskContext) -> Tensor:
        """`[B, D]` -> `[B, 1, H, A]`"""
        no_candidates = state.new_empty(len(state), 0, context.horizon, self.evaluator.action_dim)
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
class NoPolicyProposalConfig:
    def build(self, policy: Policy, evaluator: RolloutEvaluator) -> NoPolicyProposal:
        return NoPolicyProposal(policy.action_dim)


class NoPolicyProposal:
    """No candidate from the policy."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def __call__(self, state: Tensor, context: TaskContext) -> Tensor:
        return state.new_empty(len(state), 0, context.horizon, self.action_dim)


@dataclass(frozen=True, kw_only=True)
class NoStuckRecoveryConfig:
    def build(self, actor: ActorProtocol, evaluator: RolloutEvaluator) -> ActorProtocol:
        return actor


class NoStuckRecovery:
    """No perturbation: the actor's plan is always followed."""


@dataclass(frozen=True, kw_only=True)
class StuckPerturbationConfig:
    check_every: int = 3
    """Actions between two checks of progress."""
    min_progress: float = 0.75
    """Least decrease of the plan's energy between two checks, in units of the cost."""
    min_energy: float = 2.0
    """Energy below which the agent is never considered stuck, in units of the cost."""

    def __post_init__(self) -> None:
        validate_ranges(self, check_every=HORIZON, min_progress=FRACTION, min_energy=(0.0, 1e12))

    def build(self, actor: ActorProtocol, evaluator: RolloutEvaluator) -> ActorProtocol:
        return StuckPerturbation(self, actor, evaluator)


class StuckPerturbation(Stateful):
    """Where the energy of the plans does not decrease although they are followed, the world model
    errs: one random action replaces the planned one."""

    episode_state = ("rng", "calls", "last_energy")

    def __init__(
        self, config: StuckPerturbationConfig, actor: ActorProtocol, evaluator: RolloutEvaluator
    ) -> None:
        self.config, self.actor, self.evaluator = config, actor, evaluator
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Resets the actor; random actions depend on the seed alone."""
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
        # evaluated anew, because the first action has changed
        changed = self.evaluator.best_plan(state, actions[:, None], context)
        return changed._replace(
            candidate_states=plan.candidate_states, candidate_energies=plan.candidate_energies
        )


class OpenLoopActor(Stateful):
    """Executes several actions of a plan before the next one."""

    episode_state = ("remaining",)

    def __init__(self, actor: ActorProtocol, receding_horizon: int) -> None:
        self.actor, self.receding_horizon = actor, receding_horizon
        self.remaining: list[Plan] = []

    def reset(self, seed: int = 0) -> None:
        """Drops the rest of the plan, so that the next call plans."""
        self.actor.reset(seed)
        self.remaining = []

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        if not self.remaining:
            plan = self.actor(state, context)
            num_steps = min(self.receding_horizon, context.horizon)
            self.remaining = [drop_first(plan, step) for step in range(num_steps)]
        return self.remaining.pop(0)


def drop_first(plan: Plan, count: int) -> Plan:
    """The plan without its first `count` actions."""
    return plan._replace(
        actions=plan.actions[:, count:],
        states=plan.states[:, count:],
        candidate_states=plan.candidate_states[:, :, count:],
    )
