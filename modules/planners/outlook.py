"""What is made of several futures of the same actions, where not all can be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from modules.types import Focus, Rollout, Stateful, require

BELOW_ONE = 1 - 2**-24
"""The largest number of single precision that is less than 1."""


class Thought(NamedTuple):
    """Imagined futures and how much each would hurt."""

    rollout: Rollout
    terms: dict[str, Tensor]  # each [B, P]
    energy: Tensor  # [B, P]
    futures: Tensor  # [B, P * K, H + 1, D]: all that may come of it


class Outlook(Protocol):
    """How many futures are imagined of the same actions, and how they are summed up."""

    def reset(self, seed: int) -> None:
        """What is drawn from here on depends on the seed alone."""

    def renew(self) -> None:
        """Another moment, another chance: what is drawn next is drawn anew."""

    def chance(self, actions: Tensor) -> tuple[Tensor, ...]:
        """For actions `[..., H, A]`: what is drawn `[K, H, U]`; nothing where all can be known."""

    def sum_up(self, thought: Thought, focus: Focus) -> Thought:
        """Of K futures of each proposal, one after the other, one thought of each."""


class OneFuture:
    """All can be known."""

    def reset(self, seed: int) -> None:
        """Nothing is drawn."""

    def renew(self) -> None:
        """Nothing is drawn."""

    def chance(self, actions: Tensor) -> tuple[Tensor, ...]:
        return ()

    def sum_up(self, thought: Thought, focus: Focus) -> Thought:
        return thought


class ManyFutures(Stateful):
    """K futures of the same actions, the same chance for all that is compared: a proposal is never
    better for its luck (common random numbers; Glasserman 2003, 4.1). Of each number that is drawn,
    every K-th part of its range is met once (Latin hypercube, McKay et al. 1979). In the next
    moment it is another chance, so that what is rare is thought of now and then."""

    episode_state = ("random", "drawn")

    @dataclass(frozen=True, kw_only=True)
    class Config:
        count: int = 16
        """K"""

        def __post_init__(self) -> None:
            require(self, count=(1, 100_000))

        def build(self, chances: int) -> Outlook:
            """`chances`: U, how many numbers one step draws; 0 where all can be known."""
            return ManyFutures(self.count, chances) if chances else OneFuture()

    def __init__(self, count: int, chances: int) -> None:
        self.count, self.chances = count, chances
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.renew()

    def renew(self) -> None:
        self.drawn: dict[int, Tensor] = {}  # by horizon

    def chance(self, actions: Tensor) -> tuple[Tensor, ...]:
        horizon = actions.shape[-2]
        if horizon not in self.drawn:
            drawn = hypercube(self.count, horizon, self.chances, self.random)
            self.drawn[horizon] = drawn.to(actions, non_blocking=True)
        return (self.drawn[horizon],)

    def sum_up(self, thought: Thought, focus: Focus) -> Thought:
        """Every energy is the mean of the worst `focus.tail` of its futures (conditional value at
        risk, Rockafellar & Uryasev 2000); shown is the future that hurts about as much."""
        each = thought.energy.unflatten(1, (-1, self.count))  # [B, P, K]
        share = worst(each.detach(), focus.tail)
        energy = (share * each).sum(-1)
        typical = (each - energy[..., None]).abs().argmin(-1, keepdim=True)

        def show(part: Tensor) -> Tensor:
            futures = part.unflatten(1, (-1, self.count))  # [B, P, K, ...]
            index = typical.reshape(*typical.shape, *[1] * (part.ndim - 2))
            return futures.take_along_dim(index, 2)[:, :, 0]

        return Thought(
            rollout=Rollout(*(show(part) for part in thought.rollout)),
            terms={
                name: (share * term.unflatten(1, (-1, self.count))).sum(-1)
                for name, term in thought.terms.items()
            },
            energy=energy,
            futures=thought.futures,
        )


def hypercube(count: int, horizon: int, chances: int, random: torch.Generator) -> Tensor:
    """Numbers in [0, 1), `[K, H, U]`."""
    shape = (count, horizon, chances)
    order = torch.rand(shape, generator=random).argsort(0)
    within = (order + torch.rand(shape, generator=random)) / count
    return within.clamp_max(BELOW_ONE)  # the sum may be rounded up


def worst(energy: Tensor, tail: float) -> Tensor:
    """Energies `[..., K]` -> how much each counts, such that the worst share `tail` of them count
    alike and the rest don't; at least one does, and all do where `tail` is 1."""
    counted = max(1.0, tail * energy.shape[-1])
    rank = energy.argsort(-1, descending=True).argsort(-1)  # 0 is the worst
    return (counted - rank).clamp(0, 1) / counted
