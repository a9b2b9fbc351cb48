"""A level above that goes by a graph of imagined states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.graph import Legs, cheapest, distrusted, strides, way
from modules.hierarchy.common import Rung, spots
from modules.hierarchy.patience import LITTLE, Trust, trusted
from modules.types import (
    ENV_STEPS,
    HORIZON,
    TO_GOAL,
    Ahead,
    Distance,
    Focus,
    Shape,
    Stateful,
    UnusableInput,
    require,
)

CHUNK = 16
"""Landmarks that all else is compared with in one go: all at once may be too much to hold."""

LEAST = 1e-3
"""Price of a hop, at least."""


class ImaginedGraph(nn.Module, Stateful):
    """A level that plans as `LandmarkGraph` does, in places where nobody has been: when an episode
    begins, its landmarks grow in imagination from where it is, as a tree grows into open space
    (RRT, LaValle 1998; in a learnt state, Ichter & Pavone 2019). The world model is asked where
    many ways lead from the newest landmarks, and some that come out far from all there are become
    landmarks as well. Then the cheapest way over them to the goal is found by dynamic programming,
    where a hop of d steps, as the critic has it, costs d (1 + (d / hop)^2). Who gets nowhere looks
    for another way (`Trust`). Nothing is remembered but what is true of all places: what actions
    do, and how far it is near by."""

    episode_state = (
        "seed", "calls", "landmarks", "trust", "embedded", "steps", "last", "onward", "price",
        "to_go",
    )  # fmt: skip
    rungs: Sequence[Rung] = ()  # imagined, not learnt
    about = (
        "When an episode begins, the level above imagines where its body could go from here, step "
        "by step, and keeps some of these places as landmarks. It takes the cheapest way over them "
        "to the goal. The next places on it are drawn; the first, a stride away, is the subgoal "
        "that the level below plans for."
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        landmarks: int = 97
        """K, that where it is among them."""
        grow: int = 8
        """How many become landmarks at a time."""
        ways: int = 12
        """Imagined from each of them."""
        length: int = 6
        """Steps of each, an action that is held."""
        apart: float = 2.0
        """Steps between landmarks, there or back, at least, while there is anything so far."""
        waiting: int = 64
        """Imagined states that may still become landmarks when others have."""
        hop: float = 2.0
        """Steps from where on hops are distrusted."""
        stride: float = 10.0
        """Steps along the way at which the subgoal lies."""
        ahead: int = 4
        """Strides hoped for, H."""
        hops: int = 32
        """How many landmarks ahead the way is looked at."""
        patience: int = 8
        """Plans after which whoever has got nowhere looks for another way."""

        def __post_init__(self) -> None:
            many = (1, 100_000)
            require(self, landmarks=(2, 100_000), grow=many, ways=many, length=HORIZON)
            require(self, apart=(0.0, 1e6), waiting=many, hop=(1e-3, 1e6), stride=(1e-3, 1e6))
            require(self, ahead=HORIZON, hops=many, patience=ENV_STEPS)

        def build(
            self, shape: Shape, action_dim: int, distance: Distance | None, ahead: Ahead
        ) -> ImaginedGraph:
            if distance is None:
                raise UnusableInput(
                    "hierarchy ImaginedGraph needs the critic's distance, and there is no critic"
                )
            return ImaginedGraph(self, action_dim, distance, ahead)

    def __init__(self, config: Config, action_dim: int, distance: Distance, ahead: Ahead) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.distance, self.ahead = distance, ahead
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call imagines landmarks; what chance does in that depends on the seed alone."""
        self.seed, self.calls = seed, 0
        self.landmarks = torch.empty(0, 0, 0)  # [B, K, D]

    def forward(self, state: Tensor, focus: Focus) -> Focus:
        """`[B, D]` -> the same focus, the goal a stride ahead; landmarks, and what it costs from
        them to the goals, stand until `reset`."""
        if not any(focus.weights.get(name) for name in TO_GOAL):
            return focus
        if len(self.landmarks) != len(state):
            self.chart(state, focus.goal)
        here, there = self.distance.embed(state), self.distance.embed(focus.goal)
        if self.calls and self.calls % self.config.patience == 0:
            self.trust = self._repaired(here, there)
        self.calls += 1
        hopes, chosen = self._way(here, focus.goal, there)
        self.trust = self.trust._replace(chosen=chosen)
        return focus._replace(goal=hopes[:, 0], hopes=hopes[:, None])

    @torch.no_grad()
    def chart(self, state: Tensor, goal: Tensor) -> None:
        """Landmarks are imagined from states `[B, D]`, and the price of the way from each to goals
        `[B, D]`."""
        between = self.distance.between
        self.landmarks = self._grown(state)
        self.trust = trusted(self.distance.embed(state), self.config.landmarks)
        self.embedded = self.distance.embed(self.landmarks)  # [B, K, F]
        self.steps = torch.cat(
            [
                between(part[:, :, None], self.embedded[:, None])
                for part in self.embedded.split(CHUNK, 1)
            ],
            1,
        )  # [B, K, K]
        self.last = between(self.embedded, self.distance.embed(goal)[:, None])  # [B, K]
        self.onward = distrusted(self.last, self.config.hop)
        self.price = distrusted(self.steps, self.config.hop).clamp_min(LEAST)
        self.to_go = cheapest(self.price, self.onward)

    def _grown(self, state: Tensor) -> Tensor:
        """`[B, D]` -> `[B, K, D]`. Chance is the same in all worlds, so that what is imagined in
        one does not depend on how many others there are."""
        config, rows = self.config, torch.arange(len(state), device=state.device)[:, None]
        random = torch.Generator().manual_seed(self.seed)
        found = fresh = state[:, None]
        known = self.distance.embed(found)
        waiting, seen = found[:, :0], known[:, :0]
        while found.shape[1] < config.landmarks:
            outcome = self._fan(fresh, random)
            waiting = torch.cat([waiting, outcome], 1)  # [B, W, D]
            seen = torch.cat([seen, self.distance.embed(outcome)], 1)
            apart = self._apart(seen, known)  # [B, W]
            chosen = []
            for _ in range(min(config.grow, config.landmarks - found.shape[1])):
                chosen.append(self._choice(apart, random).argmax(1, keepdim=True))
                apart = torch.minimum(apart, self._apart(seen, seen[rows, chosen[-1]]))
            index = torch.cat(chosen, 1)
            fresh = waiting[rows, index]
            found, known = torch.cat([found, fresh], 1), torch.cat([known, seen[rows, index]], 1)
            kept = self._choice(apart, random).topk(min(config.waiting, apart.shape[1])).indices
            waiting, seen = waiting[rows, kept], seen[rows, kept]
        return found

    def _fan(self, state: Tensor, random: torch.Generator) -> Tensor:
        """`[B, N, D]` -> where some ways lead from each, half way and at their end, `[B, M, D]`."""
        config = self.config
        shape = (state.shape[1], config.ways, 1, self.action_dim)
        free = torch.randn(shape, generator=random).to(state, non_blocking=True)
        held = free.expand(-1, -1, config.length, -1).repeat(len(state), 1, 1, 1)
        path = self.ahead(state.flatten(0, 1), held)  # [B * N, ways, length, D]
        marks = [config.length // 2, config.length - 1]
        return path[:, :, marks].flatten(1, 2).unflatten(0, state.shape[:2]).flatten(1, 2)

    def _apart(self, seen: Tensor, known: Tensor) -> Tensor:
        """`[B, W, F]`, `[B, K, F]` -> steps to the nearest of these, there or back, `[B, W]`."""
        between, here = self.distance.between, seen[:, :, None]
        nearest = seen.new_full(seen.shape[:2], torch.inf)
        for part in known[:, None].split(CHUNK, 2):
            apart = torch.maximum(between(here, part), between(part, here)).amin(-1)
            nearest = torch.minimum(nearest, apart)
        return nearest

    def _choice(self, apart: Tensor, random: torch.Generator) -> Tensor:
        """The larger the sooner, `[B, W]`: any of those that are far enough, for the very farthest
        are where imagination errs; and where there are none, the farthest."""
        luck = torch.rand(apart.shape[1], generator=random).to(apart, non_blocking=True)
        return torch.where(
            apart >= self.config.apart, 1 + luck, apart / (self.config.apart + LEAST)
        )

    def _repaired(self, here: Tensor, there: Tensor) -> Trust:
        """Who has got nowhere trusts the hop that it took less."""
        between, hop = self.distance.between, self.config.hop
        moved = between(self.trust.before, here)
        return self.trust.repaired(here, moved, between(here, there) > hop, self.steps < hop)

    def _way(self, here: Tensor, goal: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """From embedded states `[B, F]` to goals `[B, D]`, embedded `[B, F]`: the way, stride by
        stride, `[B, H, D]`, the goal itself where going there directly is no dearer; and its first
        hop `[B]`, K where it leads straight to the goal."""
        config, between, trust = self.config, self.distance.between, self.trust
        first, direct = between(here[:, None], self.embedded), between(here, there)
        nodes, walked = way(
            Legs(first, trust.debt[:, :-1] + distrusted(first, config.hop)),
            Legs(direct, trust.debt[:, -1] + distrusted(direct, config.hop)),
            Legs(self.steps, self.price), Legs(self.last, self.onward), self.to_go, config.hops,
        )  # fmt: skip
        # where it is already is no subgoal, however far the next landmark is
        index = strides(walked, config.stride, config.ahead)
        following = (walked <= LITTLE).sum(1).clamp_max(config.hops - 1)
        index = torch.maximum(index, following[:, None])
        index[:, 0] = torch.where(trust.closely, following, index[:, 0])
        return spots(self.landmarks, nodes.gather(1, index), goal), nodes[:, 0]
