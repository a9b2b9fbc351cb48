"""What every planner shares: a mind's eye that looks at actions, and a few first guesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modules.bounds import Bounds
from modules.planners.outlook import OneFuture, Outlook, Thought
from modules.types import Decide, Evaluate, Focus, Imagine, Plan, Pursue, Rollout, Stateful


@dataclass(frozen=True)
class MindsEye:
    """The world model and the cost, seen as one function of actions."""

    imagine: Imagine
    pursue: Pursue
    evaluate: Evaluate
    bounds: Bounds
    action_dim: int
    outlook: Outlook = field(default_factory=OneFuture)
    listeners: list[Callable[[Thought], None]] = field(default_factory=list)
    """Told of every thought about futures that may come."""

    def look(self, state: Tensor, actions: Tensor, focus: Focus) -> Thought:
        """`[B, D]`, `[B, P, H, A]` -> what would come of it."""
        return self.weigh(self.imagine(state, actions, *self.outlook.chance(actions)), focus)

    def beside(self, state: Tensor, decide: Decide, others: Tensor, focus: Focus) -> Thought:
        """What would come of deciding as one goes, and beside it of others `[B, P, H, A]`."""
        futures = self.pursue(state, decide, others, *self.outlook.chance(others))
        return self.weigh(futures, focus)

    def weigh(self, rollout: Rollout, focus: Focus) -> Thought:
        """Futures, and how much each would hurt."""
        terms = self.evaluate(rollout, focus)
        energy = torch.stack(list(terms.values())).sum(0)
        thought = self.outlook.sum_up(Thought(rollout, terms, energy, rollout.states), focus)
        for listen in self.listeners:
            listen(thought)
        return thought

    def decide(self, state: Tensor, actions: Tensor, focus: Focus) -> Plan:
        """The best of these actions by energy, as a plan."""
        thought = self.look(state, actions, focus)
        return intended(thought, thought.energy.argmin(1), focus)


def intended(thought: Thought, index: Tensor, focus: Focus) -> Plan:
    """One of the imagined futures, `[B]`, as a plan."""
    states, actions = thought.rollout.states, thought.rollout.actions
    return Plan(
        actions=pick(actions, index),
        energy=pick(thought.energy, index),
        terms={name: pick(term, index) for name, term in thought.terms.items()},
        states=pick(states, index),
        hopes=focus.hopes,
        considered=thought.futures,
        energies=thought.energy,
        deliberated=torch.ones(len(states), dtype=torch.bool, device=states.device),
    )


def spread_of(energy: Tensor, dim: int | None = None) -> Tensor:
    """The standard deviation of energies, in whatever unit they are; where they don't differ, what
    the rounding of them is."""
    energy = energy.detach()
    size = energy.abs().amax() if dim is None else energy.abs().amax(dim, keepdim=True)
    spread = energy.std(correction=0) if dim is None else energy.std(dim, keepdim=True)
    return torch.maximum(spread, torch.finfo(energy.dtype).eps * size).clamp_min(1e-30)


def epsilon(slope: Tensor) -> Tensor:
    """Adam's epsilon for slopes `[B, ...]`: 1e-8, or less where all slopes of a world are so small
    that their unit must be (rewards of 1e-6 for instance)."""
    largest = slope.flatten(1).abs().amax(1).reshape(-1, *[1] * (slope.ndim - 1))
    return 1e-8 * torch.where(largest < 1e-5, largest.clamp_min(1e-25), 1.0)


def pick(proposals: Tensor, index: Tensor) -> Tensor:
    """`[B, P, ...]`, `[B]` -> `[B, ...]`: one proposal per world."""
    return proposals[torch.arange(len(index), device=index.device), index]


def shift(actions: Tensor) -> Tensor:
    """`[B, P, H, A]` one step later; the last action is held."""
    return torch.cat([actions[:, :, 1:], actions[:, :, -1:]], 2)


class Guesses(Stateful):
    """First guesses that are constant over a piece of the horizon: a body that trembles gets
    nowhere. Drawn on the host, so that a seed means the same guesses on every device, and once for
    all worlds, so that what is thought in one does not depend on how many others there are."""

    episode_state = ("random",)

    def __init__(self, eye: MindsEye, pieces: int = 2) -> None:
        self.eye, self.pieces = eye, pieces
        self.seed(0)

    def seed(self, seed: int) -> None:
        """What is guessed from here on depends on the seed alone."""
        self.random = torch.Generator().manual_seed(seed)

    def noise(self, state: Tensor, count: int, length: int) -> Tensor:
        """Standard normal numbers `[1, count, length, A]` where the state lives."""
        shape = (1, count, length, self.eye.action_dim)
        return torch.randn(shape, generator=self.random).to(state, non_blocking=True)

    def __call__(self, state: Tensor, focus: Focus, count: int) -> Tensor:
        """`[B, D]` -> actions `[B, count, H, A]`, the first of them rest."""
        free = self.noise(state, count, self.pieces)
        free[:, :1] = 0
        return self._hold(free, focus.horizon).expand(len(state), -1, -1, -1)

    def held(self, state: Tensor, count: int, horizon: int, random: torch.Generator) -> Tensor:
        """Guesses `[B, count, horizon, A]` from another chance, long ones too, the first rest."""
        free = torch.randn(len(state), count, self.pieces, self.eye.action_dim, generator=random)
        free = 2 * free.to(state)
        free[:, :1] = 0
        return self._hold(free, horizon)

    def _hold(self, free: Tensor, horizon: int) -> Tensor:
        """Pieces `[B, P, pieces, A]`, unbounded -> actions `[B, P, H, A]`."""
        piece = -(-horizon // self.pieces)
        return self.eye.bounds.bound(free).repeat_interleave(piece, 2)[:, :, :horizon]


class Warm(Stateful):
    """What is left of the last plan, one step later: `[B, K, H, A]`; K is 0 before the first."""

    episode_state = ("actions",)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """There is no last plan."""
        self.actions = torch.empty(0, 0, 0, 0)

    def start(self, state: Tensor, focus: Focus, action_dim: int) -> Tensor:
        """`[B, K, H, A]`; nothing when other worlds or another horizon were planned for."""
        fits = self.actions.shape[0] == len(state) and self.actions.shape[2] == focus.horizon
        return self.actions if fits else state.new_empty(len(state), 0, focus.horizon, action_dim)

    def keep(self, actions: Tensor) -> None:
        """The plan that is carried out now."""
        self.take(shift(actions))

    def take(self, actions: Tensor) -> None:
        """What is to be done from the next thought on."""
        self.actions = actions
