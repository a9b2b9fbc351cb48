"""Mode-2 by collocation: the states of an imagined future are variables beside its actions, and a
penalty enforces the dynamics. The gradient of each step does not pass through the others, so its
depth does not grow with the horizon (GRASP: Psenka et al. 2026, arXiv 2602.00475)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from modules.actor.planning.evaluator import (
    RolloutEvaluator,
    best_plan,
    lowest_energy,
    shift_actions,
    total_energy,
)
from modules.actor.planning.gradient import Adam, DescentPlanner, best_of, descend
from modules.types import (
    FRACTION,
    HORIZON,
    ITERATIONS,
    Plan,
    PlannerCarry,
    ProposalFn,
    Rollout,
    Settings,
    TaskContext,
)

_TINY = 1e-8


class VirtualRollouts(NamedTuple):
    """Futures whose states need not follow from the actions yet."""

    raw: Tensor  # [B, P, H, A]: actions before squashing
    states: Tensor  # [B, P, H, D]: the state after each action


class Units(NamedTuple):
    """Units of state and energy, which make the settings independent of both."""

    full_step: Tensor  # [B, 1, 1, 1]: distance of a full action, by dimension of the state (RMS)
    energy_scale: Tensor  # [B, 1]: energy change if every state moved by a full step downhill


@dataclass(frozen=True, kw_only=True)
class CollocationConfig(Settings):
    horizon: Annotated[int, HORIZON] = 24
    """Planning horizon in steps, H."""
    iterations: Annotated[int, ITERATIONS] = 64
    """Gradient steps on virtual states and actions from a cold start."""
    warm_iterations: Annotated[int, ITERATIONS] = 16
    """Gradient steps from a warm start, the last plan shifted by one step."""
    sync_every: Annotated[int, (1, ITERATIONS[1])] = 64
    """Gradient steps between two syncs, in which the actions are polished on their real rollouts;
    the last step is followed by one."""
    polish_steps: Annotated[int, ITERATIONS] = 16
    """Gradient steps of each sync on the actions alone, by the energy of their real rollouts."""
    num_proposals: Annotated[int, (1, 1_000_000)] = 4
    """Candidates beside that of the policy, P: warm starts, then random ones."""
    num_warm_starts: Annotated[int, (0, 1_000_000)] = 2
    """Candidates of the last plan that are kept, the best ones; the others are drawn anew."""
    lr: Annotated[float, (0.0, 100.0)] = 0.05
    """Adam's learning rate on the unbounded actions."""
    state_lr: Annotated[float, (0.0, 100.0)] = 1.0
    """Adam's learning rate on the virtual states, in full steps (the distance of a full action)."""
    weight: Annotated[float, (_TINY, 1e6)] = 0.1
    """Initial weight of the dynamics penalty: a defect of one full step at one time costs as much
    energy as moving every state by this many full steps down the cost would save."""
    final_weight: Annotated[float, (_TINY, 1e6)] = 10.0
    """Weight of the dynamics penalty before each sync, to which it grows exponentially (a penalty
    method, Nocedal & Wright 2006, 17.1)."""
    dynamics_grad_scale: Annotated[float, FRACTION] = 1.0
    """Factor on the gradient that reaches a virtual state through the dynamics model: 0 is GRASP,
    for models whose state gradients are brittle; 1 is direct collocation."""
    landed_fraction: Annotated[float, FRACTION] = 0.5
    """Fraction of the cost that is evaluated at the states predicted from the virtual ones, which
    moves the actions; the rest is evaluated at the virtual states, which moves those."""
    linear_init: Annotated[float, FRACTION] = 1.0
    """With a goal: initial virtual states of random candidates, from their rollout (0) to a
    straight line to the goal (1)."""
    noise: Annotated[float, (0.0, 1e3)] = 0.03
    """Standard deviation of the noise added to the virtual states at every gradient step, in full
    steps; it decays to 0 before each sync."""

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> Collocation:
        return Collocation(self, evaluator, proposal_fn)


class Collocation(DescentPlanner):
    """Collocation: Adam on virtual states and actions of several candidates at once.

    The objective is

        E(s, a) / energy_scale + weight * sum_t |F(s_t, a_t) - s_{t+1}|^2 / full_step^2,

    where full_step is the distance of a full action and energy_scale the energy that such steps
    save (`Units`), so that settings mean the same for any representation and cost.

    At every sync the actions alone descend the energy of their real rollouts. The plan is the best
    actions by that energy, never a virtual future."""

    config: CollocationConfig

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """`[B, D]` -> the best plan found; no parameter keeps a gradient."""
        config, rng = self.config, carry.rng.clone_state()
        offered, random, iterations = self.initial_candidates(state, context, carry.warm_start, rng)
        with torch.no_grad():
            actions = torch.cat([*offered, random], 1)
            evaluations = [self.evaluator.evaluate(state, actions, context)]
        raw = self.evaluator.action_space.unsquash(evaluations[0].rollout.actions)
        initial = VirtualRollouts(raw, evaluations[0].rollout.states[:, :, 1:])
        units = self._units(state, initial, context)
        virtual = self._init_states(state, initial, actions.shape[1] - random.shape[1], context)
        for done in range(0, iterations, config.sync_every):
            count = min(config.sync_every, iterations - done)
            virtual = self._optimize(state, virtual, units, context, count, rng)
            raw, polished = descend(
                self.evaluator, state, virtual.raw, context, config.polish_steps, config.lr
            )
            evaluations = [best_of([*evaluations, polished])]
            virtual = virtual._replace(raw=raw)
        best = best_of(evaluations)
        warm_start = lowest_energy(best.rollout.actions, best.energy, config.num_warm_starts)
        return best_plan(best, context), PlannerCarry(rng, shift_actions(warm_start))

    def _init_states(
        self, state: Tensor, initial: VirtualRollouts, num_offered: int, context: TaskContext
    ) -> VirtualRollouts:
        """Moves the states of the random candidates, which follow the offered ones, towards a
        straight line to the goal."""
        offered, random = initial.states[:, :num_offered], initial.states[:, num_offered:]
        fraction = torch.arange(1, context.horizon + 1).to(state)[:, None] / context.horizon
        line = state[:, None] + fraction * (context.goal - state)[:, None]  # [B, H, D]
        line = line[:, None].expand_as(random)
        random = torch.lerp(random, line, self.config.linear_init * context.pursues_goal)
        return initial._replace(states=torch.cat([offered, random], 1))

    def _units(self, state: Tensor, virtual: VirtualRollouts, context: TaskContext) -> Units:
        """The distance of a full action from these states, and the energy that such steps save."""
        axes = torch.eye(self.evaluator.action_dim).to(state)
        directions = self.evaluator.action_space.project(torch.cat([axes, -axes]))[None, :, None]
        with torch.no_grad():
            moved = self.evaluator.imagine(state, directions.expand(len(state), -1, -1, -1)).states
        step_scale = (moved[:, :, 1] - moved[:, :, 0]).norm(dim=-1).mean(1).clamp_min(_TINY)  # [B]
        with torch.enable_grad():
            leaf = virtual._replace(states=virtual.states.detach().requires_grad_())
            energy, defects = self._defects(state, leaf, context, grad_scale=1, landed_fraction=0)
            # the defects keep the states in the graph of a cost that depends on actions alone
            (slope,) = torch.autograd.grad(energy.sum() + 0 * defects.sum(), leaf.states)
        energy_scale = (step_scale * slope.norm(dim=-1).sum(-1).nanmean(1)).clamp_min(_TINY)
        step = step_scale / state.shape[1] ** 0.5
        return Units(step[:, None, None, None], energy_scale[:, None])

    def _optimize(
        self,
        state: Tensor,
        virtual: VirtualRollouts,
        units: Units,
        context: TaskContext,
        iterations: int,
        rng: torch.Generator,
    ) -> VirtualRollouts:
        """Gradient steps on virtual states and actions together."""
        action_step, state_step = Adam(self.config.lr), Adam(self.config.state_lr)
        raw, states = virtual
        for step in range(1, iterations + 1):
            weight = self._weight(step / iterations)
            virtual = VirtualRollouts(raw, states)
            by_action, by_state = self._slopes(state, virtual, units, weight, context)
            raw = raw - action_step(by_action)
            fade = self.config.noise * (1 - step / iterations)
            # the same in every environment, so that the plan for one does not depend on the others
            noise = torch.randn(states.shape[1:], generator=rng).to(states, non_blocking=True)
            states = states + units.full_step * (fade * noise - state_step(by_state))
        return VirtualRollouts(raw, states)

    def _weight(self, fraction: float) -> float:
        """The weight of the dynamics penalty at this fraction of the way to a sync."""
        return self.config.weight * (self.config.final_weight / self.config.weight) ** fraction

    def _slopes(
        self,
        state: Tensor,
        virtual: VirtualRollouts,
        units: Units,
        weight: float,
        context: TaskContext,
    ) -> tuple[Tensor, Tensor]:
        """Gradients with respect to the unbounded actions, and to the states in full steps."""
        grad_scale, landed_fraction = self.config.dynamics_grad_scale, self.config.landed_fraction
        with torch.enable_grad():
            leaf = VirtualRollouts(*(part.detach().requires_grad_() for part in virtual))
            energy, defects = self._defects(state, leaf, context, grad_scale, landed_fraction)
            penalty = (defects / units.full_step).square().mean(-1).sum(-1)  # [B, P]
            total = energy / units.energy_scale + weight * penalty
            # not backward(), which would leave gradients in the world model and the critics
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
        """The energies of virtual futures, `[B, P]`, and the defects F(s_t, a_t) - s_{t+1},
        `[B, P, H, D]`: one step of the dynamics from every state, as one batch over time."""
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
        # not `evaluate`: a virtual future is one, and the risk model would expect K samples of it
        terms = self.evaluator.cost_terms(Rollout(path, actions, latents, interoception), context)
        return total_energy(terms), landed - virtual.states
