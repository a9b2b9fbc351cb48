"""Mode-2 by collocation: the states of an imagined future are variables beside its actions, and
the dynamics are a price on what can't follow. All moments are improved at once, none through the
others, so that a long horizon is no deeper than a short one (GRASP: Psenka et al. 2026,
arXiv 2602.00475)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RandomProposals,
    RolloutEvaluator,
    WarmStart,
    adam_epsilon,
)
from modules.actor.planning.gradient import keep_best
from modules.types import (
    FRACTION,
    GOAL_COSTS,
    HORIZON,
    ITERATIONS,
    Plan,
    ProposalFn,
    Rollout,
    Stateful,
    TaskContext,
    validate_ranges,
)

_TINY = 1e-8


class VirtualRollouts(NamedTuple):
    """Futures that need not be possible yet."""

    raw: Tensor  # [B, P, H, A]: actions, unbounded
    states: Tensor  # [B, P, H, D]: where one would be after each of them


class Units(NamedTuple):
    """The units of a thought."""

    full_step: Tensor  # [B, 1, 1, 1]: how far a full step leads in a dimension of the state
    energy_scale: (
        Tensor  # [B, 1]: energy that it would bring to have every moment a full step further
    )


@dataclass(frozen=True, kw_only=True)
class CollocationConfig:
    horizon: int = 24
    """Imagined steps, H."""
    iterations: int = 64
    """Improvements of the virtual futures when there is no plan to go on from."""
    warm_iterations: int = 16
    """Improvements when the last plan, one step later, is where thinking starts."""
    sync_every: int = 64
    """Improvements after which the actions meet their true futures; the end is always one."""
    polish_steps: int = 16
    """Improvements of the actions by the energy of their true futures, each time."""
    num_proposals: int = 4
    """Random first guesses beside those of the policy, P."""
    num_warm_starts: int = 2
    """How many of the last proposals are kept, the best; the others start afresh."""
    lr: float = 0.05
    """Adam's step on the unbounded actions, which saturate near 1."""
    state_lr: float = 1.0
    """Adam's step on the virtual states, in full steps of the body."""
    weight: float = 0.1
    """Price of the dynamics at first: to miss one moment by a full step costs as much as it
        would bring to have every moment this many full steps further down the cost."""
    final_weight: float = 10.0
    """Price of the dynamics before each sync, towards which it grows: first what is wanted,
        then how it can be done (a penalty method, Nocedal & Wright 2006, 17.1)."""
    dynamics_grad_scale: float = 1.0
    """How much of the gradient reaches a virtual state through the dynamics that start from it:
        0 is GRASP, for models that are brittle there; 1 is direct collocation."""
    landed_fraction: float = 0.5
    """How much of the cost is felt at the states that the actions lead to from virtual ones (it
        moves the actions) and not at the virtual ones themselves (it moves those)."""
    linear_init: float = 1.0
    """Where there is a goal, how far the virtual states of random guesses start from what the
        guess leads to (0) towards the straight way to the goal (1)."""
    noise: float = 0.03
    """Standard deviation of what is added to the virtual states after every improvement, in
        full steps; it fades to 0 before each sync."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, horizon=HORIZON, num_proposals=(1, 1_000_000), num_warm_starts=(0, 1_000_000)
        )
        validate_ranges(
            self, iterations=ITERATIONS, warm_iterations=ITERATIONS, polish_steps=ITERATIONS
        )
        validate_ranges(self, sync_every=(1, ITERATIONS[1]), lr=(0.0, 100.0), state_lr=(0.0, 100.0))
        validate_ranges(self, weight=(_TINY, 1e6), final_weight=(_TINY, 1e6), noise=(0.0, 1e3))
        validate_ranges(
            self, dynamics_grad_scale=FRACTION, landed_fraction=FRACTION, linear_init=FRACTION
        )

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> Collocation:
        return Collocation(self, evaluator, proposal_fn)


class Collocation(Stateful):
    """Adam on virtual states and on actions, of several proposals at once, down

        E(s, a) / worth + weight * sum_t |F(s_t, a_t) - s_{t+1}|^2 / pace^2,

    where pace is how far a full step leads and worth what such steps bring, so that a setting
    means the same in any representation and under any cost.

    Now and then, and at the end, the actions alone go on down the energy of what they really lead
    to; by that energy the best actions ever seen win, so that no plan claims a virtual future."""

    episode_state = ("rng",)

    def __init__(
        self, config: CollocationConfig, evaluator: RolloutEvaluator, proposal_fn: ProposalFn
    ) -> None:
        self.config, self.evaluator, self.proposal_fn = config, evaluator, proposal_fn
        self.random_proposals, self.warm_start = RandomProposals(evaluator), WarmStart()
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; guesses and noise that follow depend on the seed alone."""
        self.random_proposals.seed(seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.warm_start.clear()

    def set_warm_start(self, actions: Tensor) -> None:
        """The next thought goes on from these, `[B, K, H, A]`, not from the last plan."""
        self.warm_start.set(actions)

    def __call__(self, state: Tensor, context: TaskContext) -> Plan:
        """`[B, D]` -> the best plan found; no gradient is left in any parameter."""
        previous = self.warm_start.get(state, context, self.evaluator.action_dim)
        offered = torch.cat([previous, self.proposal_fn(state, context)], 1)
        random = self.random_proposals(
            state, context, max(0, self.config.num_proposals - previous.shape[1])
        )
        iterations = self.config.warm_iterations if previous.shape[1] else context.iterations
        best, energy = self._search(state, offered, random, context, iterations)
        ranked = energy.topk(
            min(self.config.num_warm_starts, energy.shape[1]), largest=False
        ).indices
        self.warm_start.store_shifted(
            best[torch.arange(len(best), device=best.device)[:, None], ranked]
        )
        return self.evaluator.best_plan(state, best, context)

    def _search(
        self, state: Tensor, offered: Tensor, random: Tensor, context: TaskContext, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """From two kinds of guesses -> the best seen of each proposal, its energy `[B, P]`."""
        best = torch.cat([offered, random], 1)
        with torch.no_grad():
            evaluated = self.evaluator.evaluate(state, best, context)
        initial = VirtualRollouts(
            self.evaluator.action_space.unsquash(best), evaluated.rollout.states[:, :, 1:]
        )
        lowest, units = evaluated.energy, self._units(state, initial, context)
        virtual = self._init_states(state, initial, offered.shape[1], context)
        for done in range(0, iterations, self.config.sync_every):
            virtual = self._optimize(
                state, virtual, units, context, min(self.config.sync_every, iterations - done)
            )
            raw, best, lowest = self._polish(state, virtual.raw, best, lowest, context)
            virtual = virtual._replace(raw=raw)
        return best, lowest

    def _init_states(
        self, state: Tensor, initial: VirtualRollouts, num_offered: int, context: TaskContext
    ) -> VirtualRollouts:
        """The same, but for the states of all behind those offered: they head for the goal."""
        given, ahead = initial.states[:, :num_offered], initial.states[:, num_offered:]
        fraction = torch.arange(1, context.horizon + 1).to(state)[:, None] / context.horizon
        line = state[:, None] + fraction * (context.goal - state)[:, None]  # [B, H, D]
        has_goal = any(context.weights.get(name) for name in GOAL_COSTS)
        ahead = torch.lerp(
            ahead, line[:, None].expand_as(ahead), self.config.linear_init * has_goal
        )
        return initial._replace(states=torch.cat([given, ahead], 1))

    def _units(self, state: Tensor, virtual: VirtualRollouts, context: TaskContext) -> Units:
        """How far full steps lead from here, and what such steps would be worth to the cost."""
        axes = torch.eye(self.evaluator.action_dim).to(state)
        directions = self.evaluator.action_space.project(torch.cat([axes, -axes]))[None, :, None]
        with torch.no_grad():
            moved = self.evaluator.imagine(state, directions.expand(len(state), -1, -1, -1)).states
        step_scale = (moved[:, :, 1] - moved[:, :, 0]).norm(dim=-1).mean(1).clamp_min(_TINY)  # [B]
        with torch.enable_grad():
            leaf = virtual._replace(states=virtual.states.detach().requires_grad_())
            energy, defects = self._defects(state, leaf, context, grad_scale=1, landed_fraction=0)
            # a cost of actions alone has no slope in the states, and is worth nothing there
            (slope,) = torch.autograd.grad(energy.sum() + 0 * defects.sum(), leaf.states)
        energy_scale = (step_scale * slope.norm(dim=-1).sum(-1).mean(1)).clamp_min(_TINY)
        step = step_scale / state.shape[1] ** 0.5
        return Units(step[:, None, None, None], energy_scale[:, None])

    def _optimize(
        self,
        state: Tensor,
        virtual: VirtualRollouts,
        units: Units,
        context: TaskContext,
        iterations: int,
    ) -> VirtualRollouts:
        """States and actions downhill together, all moments at once."""
        action_step, state_step = Adam(self.config.lr), Adam(self.config.state_lr)
        raw, states = virtual
        for step in range(1, iterations + 1):
            weight = self._weight(step / iterations)
            by_action, by_state = self._slopes(
                state, VirtualRollouts(raw, states), units, weight, context
            )
            raw = raw - action_step(by_action)
            fade = self.config.noise * (1 - step / iterations)
            states = states + units.full_step * (fade * self._noise(states) - state_step(by_state))
        return VirtualRollouts(raw, states)

    def _weight(self, fraction: float) -> float:
        """The price of the dynamics when this share of the way to a sync is gone."""
        return self.config.weight * (self.config.final_weight / self.config.weight) ** fraction

    def _noise(self, states: Tensor) -> Tensor:
        """Standard normal numbers, the same for every world: each is planned for as if alone."""
        return torch.randn(states.shape[1:], generator=self.rng).to(states, non_blocking=True)

    def _slopes(
        self,
        state: Tensor,
        virtual: VirtualRollouts,
        units: Units,
        weight: float,
        context: TaskContext,
    ) -> tuple[Tensor, Tensor]:
        """Gradients in the unbounded actions, and in the states per full step."""
        grad_scale, landed_fraction = self.config.dynamics_grad_scale, self.config.landed_fraction
        with torch.enable_grad():
            leaf = VirtualRollouts(*(part.detach().requires_grad_() for part in virtual))
            energy, defects = self._defects(state, leaf, context, grad_scale, landed_fraction)
            defect_norm = (
                (defects / units.full_step).square().mean(-1).sum(-1)
            )  # [B, P], squared full steps
            # not backward(): the world model and the critic keep no gradient
            total = energy / units.energy_scale + weight * defect_norm
            by_action, by_state = torch.autograd.grad(total.sum(), tuple(leaf))
        return by_action, by_state * units.full_step

    def _defects(
        self,
        state: Tensor,
        virtual: VirtualRollouts,
        context: TaskContext,
        grad_scale: float,
        landed_fraction: float,
    ) -> tuple[Tensor, Tensor]:
        """How much virtual futures would hurt, `[B, P]`, and by how much the actions miss them,
        `[B, P, H, D]`: one step from every state, a batch over time and not a chain."""
        shape, actions = virtual.raw.shape[:3], self.evaluator.action_space.squash(virtual.raw)
        current = state[:, None, None].expand(-1, shape[1], 1, -1)
        start = torch.cat([current, virtual.states[:, :, :-1]], 2)
        start = torch.lerp(start.detach(), start, grad_scale)
        once = self.evaluator.imagine(start.flatten(0, 2), actions.flatten(0, 2)[:, None, None])
        landed = once.states[:, 0, 1].unflatten(0, shape)
        path = torch.cat([current, torch.lerp(virtual.states, landed, landed_fraction)], 2)
        latents, interoception = (
            part[:, 0, 0].unflatten(0, shape) for part in (once.latents, once.interoception)
        )
        # not weigh(): of a virtual future there is one, however many may come of real actions
        terms = self.evaluator.cost_terms(Rollout(path, actions, latents, interoception), context)
        return torch.stack(list(terms.values())).sum(0), landed - virtual.states

    def _polish(
        self, state: Tensor, raw: Tensor, best: Tensor, lowest: Tensor, context: TaskContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The actions down the energy of what they lead to; beside them the best ones seen."""
        action_step = Adam(self.config.lr)
        for step in range(self.config.polish_steps + 1):
            with torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                actions = self.evaluator.action_space.squash(leaf)
                energy = self.evaluator.evaluate(state, actions, context).energy
                (slope,) = torch.autograd.grad(energy.sum(), leaf)
            best, lowest = keep_best(best, lowest, actions.detach(), energy.detach())
            raw = raw - action_step(slope) * (step < self.config.polish_steps)
        return raw, best, lowest


class Adam:
    """How far to go against a slope (Kingma & Ba 2015)."""

    def __init__(self, lr: float) -> None:
        self.lr, self.count = lr, 0
        self.momentum: Tensor | float = 0.0
        self.scale: Tensor | float = 0.0
        self.eps: Tensor | float = 1e-8

    def __call__(self, slope: Tensor) -> Tensor:
        self.count += 1
        if self.count == 1:
            self.eps = adam_epsilon(slope)
        self.momentum = 0.9 * self.momentum + 0.1 * slope
        self.scale = 0.999 * self.scale + 0.001 * slope.square()
        unbiased = (self.scale / (1 - 0.999**self.count)).sqrt() + self.eps
        return self.lr / (1 - 0.9**self.count) * self.momentum / unbiased
