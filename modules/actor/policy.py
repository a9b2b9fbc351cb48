"""Actor: action spaces, which map unbounded numbers to valid actions so that neither policies nor
planners ever clip; the policy (Mode-1; LeCun 2022, 3.1.1) and its use as an initial candidate of
Mode-2 (`planning/`); planners as actors, with recovery where the agent is stuck and open-loop
execution.

Within the agent every dimension of an action lies in [-1, 1]; the environment adapter converts it
to the units of the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from torch import Tensor, nn

from modules.by_hand.autograd import ByHand
from modules.by_hand.caches import DerivedFromWeights, version
from modules.by_hand.mlp import MLPConstants
from modules.by_hand.protocol import Pullback
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
    Settings,
    TaskContext,
)

if TYPE_CHECKING:
    from modules.actor.planning.evaluator import RolloutEvaluator

_NEARLY_ONE = 0.999
_EPS = 1e-6
MAX_ALTERNATIVES = 64
"""Largest number of discrete options whose alternatives are evaluated to improve a policy."""


class _ContinuousActions(Settings):
    def squash(self, raw: Tensor) -> Tensor:
        """Unbounded numbers `[..., A]` -> valid actions."""
        raise NotImplementedError

    def imitation_loss(self, raw: Tensor, targets: Tensor, absolute: bool = False) -> Tensor:
        """Squared distance of the squashed numbers to the target actions, both `[..., A]`;
        `[...]`. `absolute`: the sum of absolute differences."""
        difference = self.squash(raw) - targets
        return difference.abs().sum(-1) if absolute else difference.square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class BoxActions(_ContinuousActions):
    """Every dimension in [-1, 1] independently."""

    def squash(self, raw: Tensor) -> Tensor:
        """Unbounded numbers `[..., A]` -> valid actions."""
        return raw.tanh()

    def squash_by_hand(self, raw: Tensor) -> tuple[Tensor, Pullback]:
        """`squash` and its pullback."""
        actions = raw.tanh()
        return actions, lambda grad: (grad * (1 - actions.square()),)

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bounds are moved inside by 0.1 %."""
        return actions.clamp(-_NEARLY_ONE, _NEARLY_ONE).atanh()

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        return actions.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class BallActions(_ContinuousActions):
    """Action vectors of Euclidean length up to `radius`."""

    radius: Annotated[float, (_EPS, 1e3)] = 1.0
    """Greatest length; below 1 it keeps actions within the range of the training data."""

    def squash(self, raw: Tensor) -> Tensor:
        """r u tanh|u| / |u|, `[..., A]`."""
        if not (raw.requires_grad and torch.is_grad_enabled()):
            return self.squash_by_hand(raw)[0]
        return ByHand.apply(self.squash_by_hand, raw)

    def squash_by_hand(self, raw: Tensor) -> tuple[Tensor, Pullback]:
        """`squash` and its pullback, in half the operations."""
        # clamped, because the gradient at length 0 is undefined
        length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min_(_EPS)
        fraction = length.tanh()
        gain = fraction / length
        if self.radius != 1:
            gain *= self.radius

        def pullback(grad: Tensor) -> tuple[Tensor]:
            unit = raw / length
            along = (unit * grad).sum(-1, keepdim=True)
            # along the action the derivative is that of r tanh, across it the gain
            change = torch.ops.aten.tanh_backward(along, fraction)
            if self.radius != 1:
                change *= self.radius
            return (torch.addcmul(gain * grad, unit, change.addcmul_(along, gain, value=-1)),)

        return raw * gain, pullback

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bound are moved inside by 0.1 %."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(_EPS)
        fraction = length if self.radius == 1 else length / self.radius
        return actions * (fraction.clamp(max=_NEARLY_ONE).atanh() / length)

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True)
        return actions / (length / self.radius).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class OneHotActions(Settings):
    """One or several discrete choices, one-hot each. The most likely option is chosen, with the
    gradient of its probability (straight-through, Bengio et al. 2013; Jang et al. 2017)."""

    sizes: Annotated[tuple[int, ...], (1, 1_000_000)]
    """Number of options of each choice."""

    def squash(self, raw: Tensor) -> Tensor:
        """Logits `[..., A]` -> actions."""
        probs = torch.cat([part.softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return self.project(probs) + (probs - probs.detach())

    def imitation_loss(self, raw: Tensor, targets: Tensor, absolute: bool = False) -> Tensor:
        """Cross-entropy of the logits and the target actions, both `[..., A]`, sum over the
        choices; `[...]`. A squared distance would be 0 as soon as the target is the most likely
        option. `absolute` changes nothing: the most likely option is the median's counterpart."""
        log_probs = torch.cat([part.log_softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return -(targets * log_probs).sum(-1)

    def options(self) -> Tensor:
        """All actions, `[J, A]`: the combinations of the options of each choice."""
        index, parts = torch.arange(prod(self.sizes)), []
        for size in reversed(self.sizes):
            parts.append(nn.functional.one_hot(index % size, size))
            index = index // size
        return torch.cat(parts[::-1], -1)

    def alternatives(self, actions: Tensor) -> Tensor:
        """Actions `[B, A]` -> the actions with one choice replaced by each of its options,
        `[B, A, A]`; `[B, 0, A]` if there are more than MAX_ALTERNATIVES options."""
        width = actions.shape[-1]
        if width > MAX_ALTERNATIVES:
            return actions[:, None][:, :0]
        index = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        same_choice = (index[:, None] == index).to(actions.device)
        replaced = torch.eye(width).to(actions)
        return torch.where(same_choice, replaced, actions[:, None])

    def unsquash(self, actions: Tensor) -> Tensor:
        """Logits that `squash` maps to these actions, small enough that a planner can change
        them."""
        return actions.clone()

    def project(self, actions: Tensor) -> Tensor:
        """The option with the largest number, for each choice."""
        parts = actions.split(self.sizes, -1)
        one_hot = [torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0) for p in parts]
        return torch.cat(one_hot, -1)


ActionSpace = BoxActions | BallActions | OneHotActions


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
        pre_squash = self.pre_squash_for_task(goal, task_vector)
        if pre_squash is None:
            return lambda state: self(state, goal, task_vector)
        return lambda state: self.action_space.squash(pre_squash(state))

    def pre_squash_for_task(self, goal: Tensor, task_vector: Tensor) -> PolicyFn | None:
        """`pre_squash` likewise; None if the weights take a gradient, or the layers are no MLP."""
        weights, constants = MLPConstants.weights_of(self.layers), None
        if weights is not None and not torch.is_grad_enabled():
            size = goal.shape[-1]
            constants = self.constants.get(
                weights, lambda: TaskedMLP(size, self.goal_dims, *weights)
            )
        if constants is None:
            return None
        bias = constants.first_bias(goal, task_vector)
        return lambda state: constants.forward(state, bias)[-1]

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


@dataclass(frozen=True, kw_only=True)
class StuckPerturbationConfig(Settings):
    check_every: Annotated[int, HORIZON] = 3
    """Plans between two checks of progress."""
    min_progress: Annotated[float, FRACTION] = 0.75
    """Least decrease of the plan's energy between two checks, in units of the cost."""
    min_energy: Annotated[float, (0.0, 1e12)] = 2.0
    """Energy below which the agent is never considered stuck, in units of the cost."""
    max_steps: Annotated[int, HORIZON] = 1
    """Steps for which a random action is repeated, at most. It is made once at first, and twice as
    often as before each time that the agent is stuck again; progress makes it once."""

    def build(self, evaluator: RolloutEvaluator) -> StuckPerturbation:
        return StuckPerturbation(self, evaluator)


class StuckCarry(NamedTuple):
    """What the check of progress carries from step to step."""

    rng: torch.Generator
    num_plans: int = 0
    last_energy: Tensor | None = None  # [B]: that of the plan at the last check
    detour: Detour | None = None


class Detour(NamedTuple):
    """Random actions that are repeated, of B environments."""

    action: Tensor  # [B, A]
    repeats: Tensor  # [B]: how often the next one is made
    left: Tensor  # [B]: how often the present one will still be made


@dataclass(frozen=True)
class StuckPerturbation:
    """Where the energy of the plans does not decrease although they are followed, the world model
    or the critic errs: a random action replaces the planned one, for longer each time that this
    does not help (`max_steps`)."""

    config: StuckPerturbationConfig
    evaluator: RolloutEvaluator

    def __call__(
        self, plan: Plan, state: Tensor, context: TaskContext, carry: StuckCarry
    ) -> tuple[Plan, StuckCarry]:
        """A new plan for the states `[B, D]` -> the plan to follow."""
        carry = carry._replace(num_plans=carry.num_plans + 1)
        is_check = carry.num_plans % self.config.check_every == 0
        if not is_check and carry.detour is None:
            return plan, carry
        detour = carry.detour
        if detour is None or len(detour.left) != len(plan.energy):
            left = torch.zeros_like(plan.energy, dtype=torch.long)
            detour = Detour(plan.action, left + 1, left)
        if is_check:
            carry, detour = self._check(plan, carry, detour)
        first = torch.where((detour.left > 0)[:, None], detour.action, plan.action)
        if self.config.max_steps > 1:
            carry = carry._replace(detour=detour._replace(left=(detour.left - 1).clamp_min(0)))
        actions = torch.cat([first[:, None], plan.actions[:, 1:]], 1)
        # evaluated anew, because the first action has changed
        changed = self.evaluator.best_plan(state, actions[:, None], context)
        changed = changed._replace(
            candidate_states=plan.candidate_states, candidate_energies=plan.candidate_energies
        )
        return changed, carry

    def _check(self, plan: Plan, carry: StuckCarry, detour: Detour) -> tuple[StuckCarry, Detour]:
        """Begins a detour where the agent has made no progress since the last check. During a
        detour there is nothing to check, nor at the first check after it."""
        config, last = self.config, carry.last_energy  # [B]
        if last is None or len(last) != len(plan.energy):
            last = torch.full_like(plan.energy, torch.inf)
        progress, on_plan = last.to(plan.energy) - plan.energy, detour.left == 0
        too_little = progress < config.min_progress
        stuck = too_little & (plan.energy > config.min_energy) & on_plan
        repeats = torch.where(on_plan & ~too_little & progress.isfinite(), 1, detour.repeats)
        rng = carry.rng.clone_state()
        noise = torch.randn(plan.action.shape[-1], generator=rng).to(plan.action)
        action = torch.where(
            stuck[:, None], self.evaluator.action_space.squash(2 * noise), detour.action
        )
        left = torch.where(stuck, repeats, detour.left)
        repeats = torch.where(stuck, (2 * repeats).clamp_max(config.max_steps), repeats)
        energy = plan.energy.masked_fill(left > 1, torch.inf)
        return carry._replace(rng=rng, last_energy=energy), Detour(action, repeats, left)


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
