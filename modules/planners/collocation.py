"""Mode-2 by collocation: the states of an imagined future are variables beside its actions, and
the dynamics are a price on what can't follow. All moments are improved at once, none through the
others, so that a long horizon is no deeper than a short one (GRASP: Psenka et al. 2026,
arXiv 2602.00475)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modules.planners.common import Guesses, MindsEye, Warm, epsilon
from modules.planners.gradient import better
from modules.types import (
    FRACTION,
    HORIZON,
    ITERATIONS,
    TO_GOAL,
    Focus,
    Plan,
    Propose,
    Rollout,
    Stateful,
    require,
)

_TINY = 1e-8


class Virtual(NamedTuple):
    """Futures that need not be possible yet."""

    free: Tensor  # [B, P, H, A]: actions, unbounded
    states: Tensor  # [B, P, H, D]: where one would be after each of them


class Scale(NamedTuple):
    """The units of a thought."""

    step: Tensor  # [B, 1, 1, 1]: how far a full step leads in a dimension of the state
    worth: Tensor  # [B, 1]: energy that it would bring to have every moment a full step further


class Collocation(Stateful):
    """Adam on virtual states and on actions, of several proposals at once, down

        E(s, a) / worth + weight * sum_t |F(s_t, a_t) - s_{t+1}|^2 / pace^2,

    where pace is how far a full step leads and worth what such steps bring, so that a setting
    means the same in any representation and under any cost.

    Now and then, and at the end, the actions alone go on down the energy of what they really lead
    to; by that energy the best actions ever seen win, so that no plan claims a virtual future."""

    episode_state = ("random",)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        horizon: int = 24
        """Imagined steps, H."""
        steps: int = 64
        """Improvements of the virtual futures when there is no plan to go on from."""
        warm_steps: int = 16
        """Improvements when the last plan, one step later, is where thinking starts."""
        sync: int = 64
        """Improvements after which the actions meet their true futures; the end is always one."""
        settle: int = 16
        """Improvements of the actions by the energy of their true futures, each time."""
        proposals: int = 4
        """Random first guesses beside those of the policy, P."""
        carried: int = 2
        """How many of the last proposals are kept, the best; the others start afresh."""
        lr: float = 0.05
        """Adam's step on the unbounded actions, which saturate near 1."""
        state_lr: float = 1.0
        """Adam's step on the virtual states, in full steps of the body."""
        weight: float = 0.1
        """Price of the dynamics at first: to miss one moment by a full step costs as much as it
        would bring to have every moment this many full steps further down the cost."""
        last_weight: float = 10.0
        """Price of the dynamics before each sync, towards which it grows: first what is wanted,
        then how it can be done (a penalty method, Nocedal & Wright 2006, 17.1)."""
        through: float = 1.0
        """How much of the gradient reaches a virtual state through the dynamics that start from it:
        0 is GRASP, for models that are brittle there; 1 is direct collocation."""
        shaping: float = 0.5
        """How much of the cost is felt at the states that the actions lead to from virtual ones (it
        moves the actions) and not at the virtual ones themselves (it moves those)."""
        straight: float = 1.0
        """Where there is a goal, how far the virtual states of random guesses start from what the
        guess leads to (0) towards the straight way to the goal (1)."""
        noise: float = 0.03
        """Standard deviation of what is added to the virtual states after every improvement, in
        full steps; it fades to 0 before each sync."""

        def __post_init__(self) -> None:
            require(self, horizon=HORIZON, proposals=(1, 1_000_000), carried=(0, 1_000_000))
            require(self, steps=ITERATIONS, warm_steps=ITERATIONS, settle=ITERATIONS)
            require(self, sync=(1, ITERATIONS[1]), lr=(0.0, 100.0), state_lr=(0.0, 100.0))
            require(self, weight=(_TINY, 1e6), last_weight=(_TINY, 1e6), noise=(0.0, 1e3))
            require(self, through=FRACTION, shaping=FRACTION, straight=FRACTION)

        def build(self, eye: MindsEye, propose: Propose) -> Collocation:
            return Collocation(self, eye, propose)

    def __init__(self, config: Config, eye: MindsEye, propose: Propose) -> None:
        self.config, self.eye, self.propose = config, eye, propose
        self.guess, self.warm = Guesses(eye), Warm()
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; guesses and noise that follow depend on the seed alone."""
        self.guess.seed(seed)
        self.random = torch.Generator().manual_seed(seed)
        self.warm.clear()

    def resume(self, actions: Tensor) -> None:
        """The next thought goes on from these, `[B, K, H, A]`, not from the last plan."""
        self.warm.take(actions)

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        """`[B, D]` -> the best plan found; no gradient is left in any parameter."""
        kept = self.warm.start(state, focus, self.eye.action_dim)
        offered = torch.cat([kept, self.propose(state, focus)], 1)
        fresh = self.guess(state, focus, max(0, self.config.proposals - kept.shape[1]))
        steps = self.config.warm_steps if kept.shape[1] else focus.steps
        best, energy = self._search(state, offered, fresh, focus, steps)
        ranked = energy.topk(min(self.config.carried, energy.shape[1]), largest=False).indices
        self.warm.keep(best[torch.arange(len(best), device=best.device)[:, None], ranked])
        return self.eye.decide(state, best, focus)

    def _search(
        self, state: Tensor, offered: Tensor, fresh: Tensor, focus: Focus, steps: int
    ) -> tuple[Tensor, Tensor]:
        """From two kinds of guesses -> the best seen of each proposal, its energy `[B, P]`."""
        best = torch.cat([offered, fresh], 1)
        with torch.no_grad():
            thought = self.eye.look(state, best, focus)
        guessed = Virtual(self.eye.bounds.free(best), thought.rollout.states[:, :, 1:])
        lowest, scale = thought.energy, self._measure(state, guessed, focus)
        virtual = self._head(state, guessed, offered.shape[1], focus)
        for done in range(0, steps, self.config.sync):
            virtual = self._relax(state, virtual, scale, focus, min(self.config.sync, steps - done))
            free, best, lowest = self._settle(state, virtual.free, best, lowest, focus)
            virtual = virtual._replace(free=free)
        return best, lowest

    def _head(self, state: Tensor, guessed: Virtual, offered: int, focus: Focus) -> Virtual:
        """The same, but for the states of all behind those offered: they head for the goal."""
        kept, ahead = guessed.states[:, :offered], guessed.states[:, offered:]
        share = torch.arange(1, focus.horizon + 1).to(state)[:, None] / focus.horizon
        way = state[:, None] + share * (focus.goal - state)[:, None]  # [B, H, D]
        heading = any(focus.weights.get(name) for name in TO_GOAL)
        ahead = torch.lerp(ahead, way[:, None].expand_as(ahead), self.config.straight * heading)
        return guessed._replace(states=torch.cat([kept, ahead], 1))

    def _measure(self, state: Tensor, virtual: Virtual, focus: Focus) -> Scale:
        """How far full steps lead from here, and what such steps would be worth to the cost."""
        axes = torch.eye(self.eye.action_dim).to(state)
        ways = self.eye.bounds.project(torch.cat([axes, -axes]))[None, :, None]
        with torch.no_grad():
            moved = self.eye.imagine(state, ways.expand(len(state), -1, -1, -1)).states
        pace = (moved[:, :, 1] - moved[:, :, 0]).norm(dim=-1).mean(1).clamp_min(_TINY)  # [B]
        with torch.enable_grad():
            leaf = virtual._replace(states=virtual.states.detach().requires_grad_())
            energy, miss = self._foresee(state, leaf, focus, through=1, shaping=0)
            # a cost of actions alone has no slope in the states, and is worth nothing there
            (slope,) = torch.autograd.grad(energy.sum() + 0 * miss.sum(), leaf.states)
        worth = (pace * slope.norm(dim=-1).sum(-1).mean(1)).clamp_min(_TINY)
        step = pace / state.shape[1] ** 0.5
        return Scale(step[:, None, None, None], worth[:, None])

    def _relax(
        self, state: Tensor, virtual: Virtual, scale: Scale, focus: Focus, steps: int
    ) -> Virtual:
        """States and actions downhill together, all moments at once."""
        push, pull = Adam(self.config.lr), Adam(self.config.state_lr)
        free, states = virtual
        for step in range(1, steps + 1):
            weight = self._weight(step / steps)
            by_action, by_state = self._slopes(state, Virtual(free, states), scale, weight, focus)
            free = free - push(by_action)
            fade = self.config.noise * (1 - step / steps)
            states = states + scale.step * (fade * self._noise(states) - pull(by_state))
        return Virtual(free, states)

    def _weight(self, share: float) -> float:
        """The price of the dynamics when this share of the way to a sync is gone."""
        return self.config.weight * (self.config.last_weight / self.config.weight) ** share

    def _noise(self, states: Tensor) -> Tensor:
        """Standard normal numbers, the same for every world: each is planned for as if alone."""
        return torch.randn(states.shape[1:], generator=self.random).to(states, non_blocking=True)

    def _slopes(
        self, state: Tensor, virtual: Virtual, scale: Scale, weight: float, focus: Focus
    ) -> tuple[Tensor, Tensor]:
        """Gradients in the unbounded actions, and in the states per full step."""
        through, shaping = self.config.through, self.config.shaping
        with torch.enable_grad():
            leaf = Virtual(*(part.detach().requires_grad_() for part in virtual))
            energy, miss = self._foresee(state, leaf, focus, through, shaping)
            missed = (miss / scale.step).square().mean(-1).sum(-1)  # [B, P], squared full steps
            # not backward(): the world model and the critic keep no gradient
            total = energy / scale.worth + weight * missed
            by_action, by_state = torch.autograd.grad(total.sum(), tuple(leaf))
        return by_action, by_state * scale.step

    def _foresee(
        self, state: Tensor, virtual: Virtual, focus: Focus, through: float, shaping: float
    ) -> tuple[Tensor, Tensor]:
        """How much virtual futures would hurt, `[B, P]`, and by how much the actions miss them,
        `[B, P, H, D]`: one step from every state, a batch over time and not a chain."""
        shape, actions = virtual.free.shape[:3], self.eye.bounds.bound(virtual.free)
        here = state[:, None, None].expand(-1, shape[1], 1, -1)
        start = torch.cat([here, virtual.states[:, :, :-1]], 2)
        start = torch.lerp(start.detach(), start, through)
        once = self.eye.imagine(start.flatten(0, 2), actions.flatten(0, 2)[:, None, None])
        landed = once.states[:, 0, 1].unflatten(0, shape)
        path = torch.cat([here, torch.lerp(virtual.states, landed, shaping)], 2)
        latents, felt = (
            part[:, 0, 0].unflatten(0, shape) for part in (once.latents, once.interoception)
        )
        # not weigh(): of a virtual future there is one, however many may come of real actions
        terms = self.eye.evaluate(Rollout(path, actions, latents, felt), focus)
        return torch.stack(list(terms.values())).sum(0), landed - virtual.states

    def _settle(
        self, state: Tensor, free: Tensor, best: Tensor, lowest: Tensor, focus: Focus
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The actions down the energy of what they lead to; beside them the best ones seen."""
        push = Adam(self.config.lr)
        for step in range(self.config.settle + 1):
            with torch.enable_grad():
                leaf = free.detach().requires_grad_()
                actions = self.eye.bounds.bound(leaf)
                energy = self.eye.look(state, actions, focus).energy
                (slope,) = torch.autograd.grad(energy.sum(), leaf)
            best, lowest = better(best, lowest, actions.detach(), energy.detach())
            free = free - push(slope) * (step < self.config.settle)
        return free, best, lowest


class Adam:
    """How far to go against a slope (Kingma & Ba 2015)."""

    def __init__(self, lr: float) -> None:
        self.lr, self.count = lr, 0
        self.momentum: Tensor | float = 0.0
        self.scale: Tensor | float = 0.0
        self.small: Tensor | float = 1e-8

    def __call__(self, slope: Tensor) -> Tensor:
        self.count += 1
        if self.count == 1:
            self.small = epsilon(slope)
        self.momentum = 0.9 * self.momentum + 0.1 * slope
        self.scale = 0.999 * self.scale + 0.001 * slope.square()
        unbiased = (self.scale / (1 - 0.999**self.count)).sqrt() + self.small
        return self.lr / (1 - 0.9**self.count) * self.momentum / unbiased
