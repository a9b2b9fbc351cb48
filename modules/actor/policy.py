"""The policy: Mode-1 (LeCun 2022, 3.1.1), and its use as an initial candidate of Mode-2."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.actor.action_space import ActionSpace
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.nets import (
    DerivedFromWeights,
    MLPConstants,
    check_goal_dims,
    relu_mlp,
    silu_mlp,
    version,
)
from modules.types import (
    WIDTH,
    EvaluatedRollouts,
    MapShape,
    Plan,
    PolicyFn,
    Settings,
    TaskContext,
)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Settings):
    hidden: Annotated[int, WIDTH] = 256
    goal_dims: Annotated[int, (0, 65_536)] = 0
    """The first so many dimensions of state and goal that define a goal; 0: all."""
    relu: bool = False
    """Three ReLU layers instead of two SiLU layers, for actions that change sharply with the
    state."""

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
        self.constants: DerivedFromWeights[TaskedMLP] = DerivedFromWeights()

    def for_task(self, goal: Tensor, task_vector: Tensor) -> PolicyFn:
        """The policy for goals `[B, D]` and task vectors `[B, W]`, as a function of states `[B, D]`
        alone: with constant weights, what depends on the task is computed once."""
        weights, constants = MLPConstants.weights_of(self.layers), None
        if weights is not None and not torch.is_grad_enabled():
            size = goal.shape[-1]
            constants = self.constants.get(
                weights, lambda: TaskedMLP(size, self.goal_dims, *weights)
            )
        if constants is None:
            return lambda state: self(state, goal, task_vector)
        bias = constants.first_bias(goal, task_vector)
        return lambda state: self.action_space.squash(constants.forward(state, bias)[-1])

    def forward(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """States, goals `[B, D]`, task vectors `[B, W]` -> actions `[B, A]`."""
        return self.action_space.squash(self.pre_squash(state, goal, task_vector))

    def pre_squash(self, state: Tensor, goal: Tensor, task_vector: Tensor) -> Tensor:
        """The unbounded numbers before `squash`; where they are large its gradient vanishes."""
        target, position = goal[..., : self.goal_dims], state[..., : self.goal_dims]
        inputs = torch.cat([state, target, target - position, task_vector], -1)
        return self.layers(inputs)


class TaskedMLP(MLPConstants):
    """The layers of a policy. The first, of state, goal, goal - state and task vector, becomes a
    layer of the state alone, whose bias depends on the task."""

    def __init__(self, size: int, goal_dims: int, *weights: Tensor) -> None:
        first, *rest = weights
        state_weight, goal_weight, difference_weight, task_weight = first.split(
            [size, goal_dims, goal_dims, first.shape[1] - size - 2 * goal_dims], 1
        )
        state_weight = torch.cat(
            [state_weight[:, :goal_dims] - difference_weight, state_weight[:, goal_dims:]], 1
        )
        super().__init__(state_weight, *rest)
        self.goal_dims, self.goal_weight_t = goal_dims, (goal_weight + difference_weight).t()
        self.task_weight_t = task_weight.t()

    def first_bias(self, goal: Tensor, task_vector: Tensor) -> Tensor:
        """`[B, D]`, `[B, W]` -> `[B, hidden]`"""
        kept_goal, kept_version, bias = self.last_input
        if kept_goal is not goal or kept_version != version(goal):
            bias = torch.addmm(self.biases[0], goal[:, : self.goal_dims], self.goal_weight_t)
            self.last_input = goal, version(goal), bias
        return torch.addmm(bias, task_vector, self.task_weight_t) if task_vector.shape[-1] else bias


@dataclass(frozen=True)
class ReactiveActor:
    """Mode-1 as an actor: one forward pass. It imagines no future, so the energy is NaN."""

    policy: Policy

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


@dataclass(frozen=True)
class PolicyProposal:
    """The actions of the policy over the next H imagined steps, as an initial candidate of
    Mode-2."""

    policy: Policy
    evaluator: RolloutEvaluator

    def __call__(self, state: Tensor, context: TaskContext, rng: torch.Generator) -> Tensor:
        """`[B, D]` -> `[B, 1, H, A]`; in mode "auto" `[B, 0, H, A]`: the adaptive actor gives the
        planner the policy's rollout itself."""
        no_candidates = self.evaluator.no_candidates(state, context)
        if context.mode == "auto":
            return no_candidates
        return self.evaluator.imagine_policy(state, self._policy_fn(context), no_candidates).actions

    def evaluate_with(
        self, state: Tensor, candidates: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        """`[B, D]` -> the futures of the policy and of candidates `[B, P, H, A]`, in this order."""
        policy_fn = self._policy_fn(context, 1 if context.noise is None else len(context.noise))
        return self.evaluator.evaluate_with(state, policy_fn, candidates, context)

    def _policy_fn(self, context: TaskContext, repeats: int = 1) -> PolicyFn:
        """The policy under the task, for `repeats` sampled futures of each environment."""
        goal, task_vector = (
            part.repeat_interleave(repeats, 0) if repeats > 1 else part
            for part in (context.goal, context.task_vector)
        )
        if type(self.policy) is Policy:  # a subclass may have another forward
            return self.policy.for_task(goal, task_vector)
        return lambda states: self.policy(states, goal, task_vector)
