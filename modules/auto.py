"""Mode by need: react where the policy's own imagined future is as good as what deliberation is
expected to find, else deliberate (LeCun 2022, 3.1: Mode-1 and Mode-2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from modules.layers import mlp
from modules.planners.common import Thought, Warm, intended, spread_of
from modules.types import FRACTION, STEPS, WIDTH, Focus, Plan, Planner, Shape, Stateful, require


class Expectation(nn.Module):
    """The energy of the plan that Mode-2 would find, learnt from the plans it found: state, goal
    and what is told of the task `[B, ..]` -> `[B]`. The energies of K tasks differ by orders of
    magnitude: each has its own mean and standard deviation, found by what is told of it."""

    kinds: Tensor  # [K, W] what is told of each task; infinite where nothing was learnt of it
    mean: Tensor  # [K]
    scale: Tensor  # [K]

    def __init__(self, layers: nn.Module, tasks: int, told: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("kinds", torch.full((tasks, told), torch.inf))
        self.register_buffer("mean", torch.zeros(tasks))
        self.register_buffer("scale", torch.ones(tasks))

    def forward(self, state: Tensor, goal: Tensor, condition: Tensor) -> Tensor:
        told, kind = torch.cat([state, goal, goal - state, condition], -1), self._kind(condition)
        return self.mean[kind] + self.scale[kind] * self.layers(told).squeeze(-1)

    def spread(self, condition: Tensor) -> Tensor:
        """`[B, W]` -> the standard deviation of the energies of such a task's plans, `[B]`."""
        return self.scale[self._kind(condition)]

    def _kind(self, condition: Tensor) -> Tensor:
        """`[B, W]` -> the task that is told of most alike, `[B]`."""
        return (condition[:, None] - self.kinds).abs().sum(-1).argmin(1)

    @torch.no_grad()
    def adapt(self, task: int, condition: Tensor, energy: Tensor) -> None:
        """What is told of a task, `[W]`, and energies of its plans, `[N]`."""
        self.kinds[task] = condition
        self.mean[task] = energy.mean()
        self.scale[task] = spread_of(energy)


class Promises(Stateful):
    """What thinking found in each of B worlds, and for how many steps it holds: to think again so
    soon would find the same."""

    episode_state = ("energy", "left")

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.clear()

    def clear(self) -> None:
        """Nothing was thought yet."""
        self.energy = self.left = torch.empty(0)

    def broken(self, energy: Tensor) -> Tensor:
        """A step later, energies `[B]` -> `[B]` bool: where nothing holds any more, or what comes
        is worse than what was found."""
        if len(self.energy) != len(energy):
            self.energy, self.left = torch.full_like(energy, -torch.inf), torch.zeros_like(energy)
        self.left = self.left - 1
        return (self.left < 0) | (energy > self.energy)

    def make(self, worlds: Tensor, energy: Tensor) -> None:
        """In some worlds, `[N]`, plans of these energies `[N]` were found."""
        self.energy = self.energy.index_copy(0, worlds, energy)
        self.left = self.left.index_fill(0, worlds, self.patience)


class Compare(Protocol):
    """A habit that imagines its own future, and others beside it."""

    def beside(self, state: Tensor, others: Tensor, focus: Focus) -> Thought: ...


class Auto(Stateful):
    """Both modes as one actor. What deliberation is expected to gain over resting is the measure:
    what the policy would do, or what was intended a step ago, is good enough where it gains all
    but `tolerance` of it, or as much as was found when it was last thought about."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128
        """Of the expectation."""
        tolerance: float = 0.1
        """Share of the expected gain that reacting may forgo."""
        slack: float = 0.05
        """Of one standard deviation of the energies of such plans: too little to think about."""
        patience: int = 5
        """Steps for which a thought holds, unless what it found gets worse by more than `slack`."""

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, tolerance=FRACTION, slack=(0.0, 1e3), patience=STEPS)

        def expectation(self, shape: Shape, tasks: int, told: int) -> Expectation:
            return Expectation(mlp(3 * prod(shape) + told, self.hidden, 1), tasks, told)

        def build(
            self, habit: Compare, planner: Planner, expectation: Expectation, action_dim: int
        ) -> Auto:
            return Auto(self, habit, planner, expectation, action_dim)

    def __init__(
        self, config: Config, habit: Compare, planner: Planner, expectation: Expectation,
        action_dim: int,
    ) -> None:  # fmt: skip
        self.config, self.habit, self.action_dim = config, habit, action_dim
        self.planner, self.expectation = planner, expectation
        self.intended, self.promises = Warm(), Promises(config.patience)

    def reset(self, seed: int = 0) -> None:
        """What is guessed from here on depends on the seed alone; nothing is intended yet."""
        self.planner.reset(seed)
        self.intended.clear()
        self.promises.clear()

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        """`[B, D]` -> the policy's own future, or the rest of what was intended a step ago, or,
        where neither is good enough, a new plan."""
        kept = self.intended.start(state, focus, self.action_dim)
        rest = state.new_zeros(len(state), 1, focus.horizon, self.action_dim)
        futures = self.habit.beside(state, torch.cat([kept, rest], 1), focus)
        plan = intended(futures, futures.energy[:, :-1].argmin(1), focus)
        poor = self._poor(state, plan.energy, futures.energy[:, -1], focus)
        plan = plan._replace(
            considered=plan.states[:, None], energies=plan.energy[:, None], deliberated=poor
        )
        worlds = poor.nonzero().squeeze(1)
        if len(worlds):
            # its last plan was for other worlds; what would be done anyway is where thinking starts
            self.planner.resume(futures.rollout.actions[worlds, :-1])
            thought = self.planner(state[worlds], focus.of(worlds))
            self.promises.make(worlds, thought.energy)
            plan = splice(plan, thought, worlds)
        self.intended.keep(plan.actions[:, None])
        return plan

    def _poor(self, state: Tensor, energy: Tensor, resting: Tensor, focus: Focus) -> Tensor:
        """Energies `[B]` -> `[B]` bool: where it forgoes too much of what thinking is expected to
        gain over resting."""
        expected = self.expectation(state, focus.goal, focus.condition)
        allowed = self.config.tolerance * (resting - expected).relu()
        slack = self.config.slack * self.expectation.spread(focus.condition)
        return (energy > expected + allowed + slack) & self.promises.broken(energy - slack)


def splice(plan: Plan, other: Plan, worlds: Tensor) -> Plan:
    """The plan of B worlds with that of `worlds` `[N]` put in; of all that was considered, only
    what was chosen is shown."""

    def put(into: Tensor, part: Tensor) -> Tensor:
        return into.index_copy(0, worlds, part)

    return Plan(
        actions=put(plan.actions, other.actions),
        energy=put(plan.energy, other.energy),
        terms={name: put(term, other.terms[name]) for name, term in plan.terms.items()},
        states=put(plan.states, other.states),
        hopes=put(plan.hopes, other.hopes),
        considered=put(plan.considered, other.states[:, None]),
        energies=put(plan.energies, other.energy[:, None]),
        deliberated=put(plan.deliberated, other.deliberated),
    )
