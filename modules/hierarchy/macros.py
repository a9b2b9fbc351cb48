"""Levels above that plan by gradient: macro-actions under what the level has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from modules.bounds import Box
from modules.hierarchy.common import Rung
from modules.hierarchy.levels import UpperLevel
from modules.planners.common import MindsEye
from modules.planners.gradient import GradientPlanner
from modules.planners.outlook import ManyFutures
from modules.types import (
    HORIZON,
    TO_GOAL,
    WEIGHT,
    Ahead,
    BadSetting,
    Distance,
    Focus,
    Plan,
    Rollout,
    Shape,
    Stateful,
    require,
)


class Above(Stateful):
    """Mode-2 of a level above: the same planner, of macro-actions, toward a goal in its states."""

    episode_state = ("random",)

    def __init__(self, config: MacroLevels.Config, level: UpperLevel) -> None:
        self.level, self.config = level, config
        model = level.model
        self.outlook = config.futures.build(model.level(0).latent.chances)
        eye = MindsEye(model.imagine, model.pursue, self.evaluate, Box(), level.macro, self.outlook)
        self.planner = config.planner.build(eye, self.propose)
        self.reset()

    def reset(self, seed: int = 0) -> None:
        self.planner.reset(seed)
        self.outlook.reset(seed)
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, state: Tensor, goal: Tensor, focus: Focus) -> Plan:
        """States, goals `[B, D]` of this level -> a plan of this level."""
        config = self.config.planner
        self.outlook.renew()
        plan = self.planner(
            state, focus._replace(goal=goal, horizon=config.horizon, steps=config.steps)
        )
        # a step of the body later, a stride is far from over
        self.planner.resume(plan.actions[:, None])
        return plan

    def evaluate(self, rollout: Rollout, focus: Focus) -> dict[str, Tensor]:
        """Strides still to go, mean over the path; and macro-actions that life does not contain."""
        states = rollout.states
        surprise = self.level.macros(states[:, :, :-1]).surprise(rollout.actions)
        to_go = self.level.distance(states[:, :, 1:], focus.goal[:, None, None])
        return {"critic": to_go.mean(-1), "prior": self.config.prior * surprise.mean(-1)}

    def propose(self, state: Tensor, focus: Focus) -> Tensor:
        """`[B, D]` -> macro-actions as life contains them, `[B, P, H, M]`."""
        count = self.config.proposals
        here = state[:, None].expand(-1, count, -1).flatten(0, 1)
        drawn = []
        for _ in range(focus.horizon):
            known = self.level.macros(here)
            noise = torch.randn(count, self.level.macro, generator=self.random).to(here)
            noise = noise.repeat(len(state), 1)  # no world's depends on how many others there are
            drawn.append((known.mean + known.scale * noise).clamp(-1, 1))
            here = self.level.model.level(0).step(here, drawn[-1]).state
        return torch.stack(drawn, 1).unflatten(0, (len(state), count))


MOST_LEVELS = 8


class MacroLevels(nn.Module, Stateful):
    """Learnt levels above the lowest (H-JEPA). From the top down, each plans macro-actions toward
    what the level above hopes for, and the first state that it hopes for is the subgoal of the one
    below. A level that is less than a stride away from its goal is skipped: near by, plans are
    flat.

    A level with states of its own hopes for something in those; the subgoal is then the remembered
    state of the level below that comes nearest to it. So it is with shared states where it is to be
    `grounded`: a hope that was never lived is none."""

    episode_state = ("calls", "hopes", "memories")
    remembered: Tensor
    about = (
        "Levels above stride over several steps at once and plan as the lowest does, from the top "
        "down. What each hopes for is drawn; the first of it is the subgoal that the level below "
        "plans for."
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        strides: tuple[int, ...] = (6,)
        """From the lowest up: steps of the level below that a step of each spans."""
        level: UpperLevel.Config = field(default_factory=UpperLevel.Config)
        planner: GradientPlanner.Config = field(
            default_factory=lambda: GradientPlanner.Config(
                horizon=2, steps=12, warm_steps=4, proposals=1, carried=1, lr=0.1
            )
        )
        futures: ManyFutures.Config = field(default_factory=lambda: ManyFutures.Config(count=8))
        """Imagined of the same macro-actions, where a level has a latent variable."""
        proposals: int = 4
        """Drawn from the prior at every level, P."""
        prior: float = 0.3
        """Weight of macro-actions that life does not contain, in strides a nat."""
        grounded: bool = False
        """Whether subgoals are remembered states, where states are shared."""
        memories: int = 2000
        """States that subgoals are looked up among."""
        every: int = 1
        """Steps of the body for which a subgoal stands."""

        def __post_init__(self) -> None:
            require(self, proposals=(0, 100_000), prior=WEIGHT, memories=(1, 10_000_000))
            require(self, every=HORIZON)
            if not 1 <= len(self.strides) <= MOST_LEVELS:
                right = f"one number for each level above, from 1 to {MOST_LEVELS} of them"
                raise BadSetting("strides", self.strides, right)
            require(self, strides=(2, 10_000))

        def build(
            self, shape: Shape, action_dim: int, distance: Distance | None, ahead: Ahead
        ) -> MacroLevels:
            return MacroLevels(self, shape, action_dim, distance)

    def __init__(
        self, config: Config, shape: Shape, action_dim: int, distance: Distance | None
    ) -> None:
        super().__init__()
        self.config = config
        levels, below, span = [], (prod(shape), action_dim), 1
        for stride in config.strides:
            span *= stride
            levels.append(config.level.build(*below, stride, span, distance))
            below = levels[-1].size, levels[-1].macro
        self.levels = nn.ModuleList(levels)
        self.above = [Above(config, level) for level in levels]
        self.register_buffer("remembered", torch.zeros(config.memories, prod(shape)))
        self.known = False
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call plans."""
        self.calls, self.hopes = 0, torch.empty(0, 0, 0, 0)
        self.memories: dict[int, Tensor] = {}  # what is remembered, in states of a level above
        for above in self.above:
            above.reset(seed)

    def taught(self) -> bool:
        """Whether there is anything to go by; asked of the device only until there is."""
        self.known = self.known or bool(self.remembered.any())
        return self.known

    def forward(self, state: Tensor, focus: Focus) -> Focus:
        """`[B, D]` -> the same focus, the goal a stride ahead; flat before anything was learnt."""
        if not (any(focus.weights.get(name) for name in TO_GOAL) and self.taught()):
            return focus
        if len(self.hopes) != len(state) or self.calls % self.config.every == 0:
            self.hopes = self.plan(state, focus)
        self.calls += 1
        return focus._replace(goal=self.hopes[:, -1, 0], hopes=self.hopes)

    @torch.no_grad()
    def plan(self, state: Tensor, focus: Focus) -> Tensor:
        """`[B, D]` -> what each level hopes for, top first, in states of the lowest,
        `[B, L - 1, H, D]`."""
        goal, hopes = focus.goal, []
        for index in reversed(range(len(self.above))):
            above = self.above[index]
            here, there = (self.lifted(part, index) for part in (state, goal))
            plan = above(here, there, focus)
            near = above.level.distance(here, there) <= 1  # [B]
            hoped = torch.where(
                near[:, None, None], goal[:, None], self.lowered(plan.states[:, 1:], index)
            )
            hopes.append(hoped)
            goal = hoped[:, 0]
        return torch.stack(hopes, 1)

    def lifted(self, state: Tensor, index: int) -> Tensor:
        """States of the lowest level -> those of a level above, `[..., D]` each."""
        for above in self.above[: index + 1]:
            state = above.level.lift(state)
        return state

    @property
    def rungs(self) -> Sequence[Rung]:
        """Every level above."""
        strides, own = self.config.strides, bool(self.config.level.size)
        return [
            Rung(
                prod(strides[: i + 1]),
                own,
                partial(self.lifted, index=i),
                partial(self.foreseen, index=i),
            )
            for i in range(len(strides))
        ]

    def foreseen(self, state: Tensor, actions: Tensor, index: int) -> Tensor:
        """States `[N, D]` of a level above and actions of the body `[N, T, A]` -> what it foresees
        of them, `[N, T // stride + 1, D]`."""
        for above in self.above[: index + 1]:
            whole = actions.shape[1] // above.level.stride * above.level.stride
            actions = above.level.chunks(actions[:, :whole])
        return self.above[index].level.model.imagine(state, actions[:, None]).states[:, 0]

    def lowered(self, hoped: Tensor, index: int) -> Tensor:
        """States of a level above -> remembered states of the lowest that come nearest; or the
        states themselves, where all levels share theirs."""
        if not (self.config.grounded or self.config.level.size):
            return hoped
        if index not in self.memories:
            self.memories[index] = self.lifted(self.remembered, index)
        apart = torch.cdist(hoped.flatten(0, -2), self.memories[index])
        return self.remembered[apart.argmin(-1)].unflatten(0, hoped.shape[:-1])
