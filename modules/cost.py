"""Cost: how much a state hurts. C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s) (LeCun 2022, 4.3).

Intrinsic costs are functions: they have no parameters, so nothing can train them. The critic is a
module and learns the intrinsic cost still to come, here as the number of steps to a goal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from modules.layers import Neighbourhoods, mlp
from modules.types import Energy, Focus, Rollout, Shape, UnusableInput


def reach(rollout: Rollout, focus: Focus) -> Tensor:
    """Not being at the goal: mean squared difference of state and goal, mean over the path;
    `[B, P]`."""
    difference = rollout.states[:, :, 1:] - focus.goal[:, None, None]  # [B, P, H, D]
    return difference.square().mean((-2, -1))


def effort(rollout: Rollout, focus: Focus) -> Tensor:
    """Squared length of the actions, mean over the path; `[B, P]`."""
    return rollout.actions.square().sum(-1).mean(-1)


INTRINSIC: Mapping[str, Energy] = {"reach": reach, "effort": effort}


class Quasimetric(nn.Module):
    """A distance that need not be symmetric but always obeys the triangle inequality.

    d(s, g) = mean over groups of the max over units of relu(f(g) - f(s)); a simple relative of the
    interval quasimetric embedding (Wang & Isola 2022).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128
        groups: int = 8
        units: int = 8

        def build(self, shape: Shape) -> Quasimetric:
            embed = mlp(prod(shape), self.hidden, self.groups * self.units)
            return Quasimetric(embed, self.groups)

    def __init__(self, embed: nn.Module, groups: int) -> None:
        super().__init__()
        self.embed, self.groups = embed, groups

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """Embedded states `[..., F]`, embedded goals `[..., F]` -> steps `[...]`."""
        ahead = (goal - start).relu().unflatten(-1, (self.groups, -1))
        return ahead.amax(-1).mean(-1)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States `[..., D]`, goals `[..., D]`, broadcast -> steps still to go `[...]`."""
        return self.between(self.embed(state), self.embed(goal))


class MapQuasimetric(Quasimetric):
    """The same distance, whose embedding looks at neighbourhoods of a map state first."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        channels: int = 32
        hidden: int = 256
        groups: int = 8
        units: int = 8

        def build(self, shape: Shape) -> MapQuasimetric:
            size = self.groups * self.units
            embed = Neighbourhoods(shape, self.channels, self.hidden, size)
            return MapQuasimetric(embed, self.groups)


class Critic(nn.Module):
    """Steps still to go, averaged over an imagined path."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        distance: Quasimetric.Config | MapQuasimetric.Config = field(
            default_factory=Quasimetric.Config
        )

        def build(self, shape: Shape) -> Critic:
            return Critic(self.distance.build(shape))

    def __init__(self, distance: Quasimetric) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, rollout: Rollout, focus: Focus) -> Tensor:
        """`[B, P]`"""
        return self.distance(rollout.states[:, :, 1:], focus.goal[:, None, None]).mean(-1)


class NoCritic(nn.Module):
    """No foresight beyond the horizon: the ablation of the critic."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape) -> NoCritic:
            return NoCritic()

    def forward(self, rollout: Rollout, focus: Focus) -> Tensor:
        return 0 * rollout.actions.sum((-2, -1))  # has a gradient, as every energy has


class Cost(nn.Module):
    """The weighted energies. The sum is for the optimiser, the names are for the reader."""

    def __init__(self, critic: Critic | NoCritic) -> None:
        super().__init__()
        self.critic = critic

    def energies(self) -> dict[str, Energy]:
        """Every energy there is, by the name of its weight."""
        return {**INTRINSIC, "critic": self.critic}

    def check(self, weights: Mapping[str, float]) -> None:
        """Raises UnusableInput for weights that name no energy, or are negative or not finite."""
        names = list(self.energies())
        for name, weight in weights.items():
            if name not in names:
                raise UnusableInput(f"no cost is called {name!r}; there are {', '.join(names)}")
            if not 0 <= weight < float("inf"):
                raise UnusableInput(f"the weight of {name!r} is {weight}; it must be 0 or more")
        if not any(weights.values()):
            raise UnusableInput(f"no cost has a weight, so nothing is wanted: weigh {names}")

    def forward(self, rollout: Rollout, focus: Focus) -> dict[str, Tensor]:
        """Weighted energies by name, each `[B, P]`; what has no weight is not computed."""
        energies = self.energies()
        return {
            name: weight * energies[name](rollout, focus)
            for name, weight in focus.weights.items()
            if weight
        }
