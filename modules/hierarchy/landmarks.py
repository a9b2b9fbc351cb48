"""A level above that goes by a graph of remembered states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.graph import Legs, distrusted, shortest_paths, strides, way
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

CHUNK = 64
"""Last landmarks that are looked at in one go: [B, K, K] at once may be too large to hold."""

LEAST = 1e-3
"""Price of a hop, at least."""


class Map(NamedTuple):
    """The landmarks for who fears as much as it does."""

    price: Tensor  # [K, K] of each hop
    total: Tensor  # [K, K] of the cheapest way
    luck: Tensor  # [K] steps that luck costs in a step there


class LandmarkGraph(nn.Module, Stateful):
    """A level that plans by dynamic programming over remembered states (search on the replay
    buffer, Eysenbach et al. 2019; landmarks, Huang et al. 2019).

    A hop from one to another of d steps, as the critic has it, costs d (1 + (d / hop)^2): near by
    it can be trusted, and the further the less. A hop that nobody has ever made is dearer still: it
    may lead through a wall. And where luck may throw one back, in its pit for instance, every step
    costs as much more as the way back is long, on the mean or at the worst as the task has it.

    The subgoal lies a stride along the cheapest way; it is the goal itself where going there
    directly is no dearer, so short ways are flat. Who gets nowhere looks for another way
    (`Trust`)."""

    episode_state = ("calls", "hopes", "embedded", "trust", "feared")
    rungs: Sequence[Rung] = ()  # remembered, not learnt
    about = (
        "The level above keeps landmarks, places where life has been, with what it costs to get "
        "from each to each. It takes the cheapest way over them to the goal. The next places on it "
        "are drawn; the first, a stride away, is the subgoal that the level below plans for."
    )
    states: Tensor
    steps: Tensor
    setbacks: Tensor
    price: Tensor
    total: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        landmarks: int = 300
        """K"""
        hop: float = 2.0
        """Steps from where on hops are distrusted."""
        unlived: float = 4.0
        """How many times as dear a hop is that nobody has made."""
        stride: float = 10.0
        """Steps along the way at which the subgoal lies."""
        ahead: int = 4
        """Strides hoped for, H."""
        hops: int = 32
        """How many landmarks ahead the way is looked at."""
        every: int = 1
        """Steps of the level below for which a subgoal stands."""
        futures: int = 256
        """How many next states of each landmark tell what luck may cost there, J."""
        patience: int = 8
        """Plans after which whoever has got nowhere looks for another way."""

        def __post_init__(self) -> None:
            many = (1, 100_000)
            require(self, landmarks=(2, 100_000), hop=(1e-3, 1e6), unlived=(1.0, 1e6))
            require(self, stride=(1e-3, 1e6), ahead=HORIZON, hops=many, every=HORIZON)
            require(self, futures=many, patience=ENV_STEPS)

        def build(
            self, shape: Shape, action_dim: int, distance: Distance | None, ahead: Ahead
        ) -> LandmarkGraph:
            if distance is None:
                raise UnusableInput(
                    "hierarchy LandmarkGraph needs the critic's distance, and there is no critic"
                )
            return LandmarkGraph(self, prod(shape), distance)

    def __init__(self, config: Config, size: int, distance: Distance) -> None:
        super().__init__()
        count = config.landmarks
        self.config, self.distance = config, distance
        self.register_buffer("states", torch.zeros(count, size))
        self.register_buffer("setbacks", torch.zeros(count, config.futures))
        for name in ("steps", "price", "total"):
            self.register_buffer(name, torch.zeros(count, count))
        self.known = False
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call plans, with the critic as it is by then."""
        self.calls, self.hopes = 0, torch.empty(0, 0, 0)
        self.embedded: Tensor | None = None  # the landmarks, [K, F]
        self.trust: Trust | None = None
        self.feared: dict[float, Map] = {}  # by the share of the worst that counts

    def charted(self) -> bool:
        """Whether there are landmarks yet; asked of the device only until there are."""
        self.known = self.known or bool(self.total.any())
        return self.known

    @torch.no_grad()
    def chart(self, states: Tensor, walks: Tensor, futures: Tensor) -> None:
        """These `[K, D]` are the landmarks. Stretches of life `[N, T, D]` tell which hops were
        made: from the landmark nearest to a state to the one nearest to a later state. `futures`
        `[K, J, D]`: where each landmark may lead in one and the same step; `[K, 1, D]` where all
        can be known."""
        known = self.distance.embed(states)
        steps = self.distance.between(known[:, None], known)
        self.reset()  # no way of another chart
        self.states.copy_(states)
        self.steps.copy_(steps)
        back = self.distance.between(self.distance.embed(futures), known[:, None])  # [K, J]
        self.setbacks.copy_((back - back.amin(1, keepdim=True)).sort(1, descending=True).values)
        price = torch.where(self._lived(known, walks), 1, self.config.unlived) * self._priced(steps)
        # nothing is for nothing but to stay, or two landmarks in one place would lead to each other
        self.price.copy_(price.clamp_min(LEAST).fill_diagonal_(0))
        self.total.copy_(shortest_paths(self._feared(self._luck(1.0))))

    def _lived(self, known: Tensor, walks: Tensor) -> Tensor:
        """`[K, F]`, `[N, T, D]` -> which hops were made, `[K, K]` bool."""
        nearest = torch.cat(
            [
                torch.cdist(self.distance.embed(part), known).argmin(-1)
                for part in walks.split(CHUNK)
            ]
        )  # [N, T]
        made = torch.zeros_like(self.price, dtype=torch.bool)
        for later in range(1, nearest.shape[1]):
            made[nearest[:, :-later], nearest[:, later:]] = True
        return made

    def forward(self, state: Tensor, focus: Focus) -> Focus:
        """`[B, D]` -> the same focus, the goal a stride ahead; flat before there are landmarks."""
        if not (any(focus.weights.get(name) for name in TO_GOAL) and self.charted()):
            return focus
        if len(self.hopes) != len(state):
            self.reset()
        if self.calls % self.config.every == 0:
            self.hopes = self._led(state, focus.goal, self._map(focus.tail))
        self.calls += 1
        return focus._replace(goal=self.hopes[:, 0], hopes=self.hopes[:, None])

    def plan(self, state: Tensor, goal: Tensor, tail: float = 1.0) -> Tensor:
        """States, goals `[B, D]` -> where the cheapest way leads, stride by stride `[B, H, D]`,
        when the worst share `tail` of what may come counts."""
        here = self.distance.embed(state)
        return self._way(here, goal, trusted(here, len(self.states)), self._map(tail))[0]

    def _map(self, tail: float) -> Map:
        """For who fears so much; found once an episode."""
        if tail not in self.feared:
            luck = self._luck(tail)
            price = self._feared(luck)
            total = self.total if tail == 1 else shortest_paths(price)
            self.feared[tail] = Map(price, total, luck)
        return self.feared[tail]

    def _luck(self, tail: float) -> Tensor:
        """`[K]`"""
        return self.setbacks[:, : max(1, round(tail * self.config.futures))].mean(1)

    def _feared(self, luck: Tensor) -> Tensor:
        """The price of every hop, `[K, K]`: who leaps over a place does not land there, so the
        worse of its two ends counts for all of it."""
        return self.price + self.steps * torch.maximum(luck[:, None], luck)

    def _led(self, state: Tensor, goal: Tensor, known: Map) -> Tensor:
        """The same, by a map that is repaired where it led nowhere."""
        here, between = self.distance.embed(state), self.distance.between
        trust = self.trust or trusted(here, len(self.states))
        planned = self.calls // self.config.every
        if planned and planned % self.config.patience == 0:
            moved, left = between(trust.before, here), between(here, self.distance.embed(goal))
            hop = self.config.hop
            trust = trust.repaired(here, moved, left > hop, self.steps < hop)
        hopes, chosen = self._way(here, goal, trust, known)
        self.trust = trust._replace(chosen=chosen)
        return hopes

    def _way(self, here: Tensor, goal: Tensor, trust: Trust, known: Map) -> tuple[Tensor, Tensor]:
        """From embedded states `[B, F]` to goals `[B, D]`: the way `[B, H, D]`, and its first hop
        `[B]`, K where it leads straight to the goal."""
        if self.embedded is None:
            self.embedded = self.distance.embed(self.states).detach()
        there = self.distance.embed(goal)
        last = self.distance.between(self.embedded, there[:, None])  # [B, K]
        onward = self._priced(last)
        to_go = onward  # [B, K]
        for total, left in zip(known.total.split(CHUNK, 1), onward.split(CHUNK, 1), strict=True):
            to_go = torch.minimum(to_go, (total + left[:, None]).amin(-1))
        first = self.distance.between(here[:, None], self.embedded)  # [B, K]
        direct = self.distance.between(here, there)
        leaving = trust.debt[:, :-1] + self._priced(first) + first * known.luck
        nodes, walked = way(
            Legs(first, leaving), Legs(direct, trust.debt[:, -1] + self._priced(direct)),
            Legs(self.steps, known.price), Legs(last, onward), to_go, self.config.hops,
        )  # fmt: skip
        index = strides(walked, self.config.stride, self.config.ahead)  # [B, H]
        following = (walked <= LITTLE).sum(-1).clamp_max(self.config.hops - 1)
        index[:, 0] = torch.where(trust.closely, following, index[:, 0])
        return spots(self.states, nodes.gather(1, index), goal), nodes[:, 0]

    def _priced(self, steps: Tensor) -> Tensor:
        return distrusted(steps, self.config.hop)
