"""How far it is: distances in steps that critics are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from modules.layers import First, Glance, Neighbourhoods, first_of, in_waves, mlp
from modules.types import WIDTH, Shape, require


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

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, groups=WIDTH, units=WIDTH)

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


class WaveQuasimetric(Quasimetric):
    """The same distance, whose embedding looks at the state in waves: what is near in space may be
    far on foot."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        groups: int = 8
        units: int = 8
        waves: int = 128
        detail: float = 2.0
        """Radians per unit of the state: how fine they are."""
        aims: int = 0
        """Numbers of the state, the first ones, that it is a distance of; 0: all. What a goal is
        about may be less than a state tells: a place, whatever the legs do there."""

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, groups=WIDTH, units=WIDTH, waves=WIDTH)
            require(self, detail=(0.0, 1e6), aims=(0, 65_536))

        def build(self, shape: Shape) -> WaveQuasimetric:
            aims = first_of(self.aims, shape)
            look = in_waves(aims or prod(shape), self.waves, self.detail, self.hidden)
            within = mlp(self.hidden, self.hidden, self.groups * self.units)
            first = [First(aims)] if aims else []
            return WaveQuasimetric(nn.Sequential(*first, look, nn.SiLU(), within), self.groups)


class MapQuasimetric(Quasimetric):
    """The same distance, whose embedding looks at neighbourhoods of a map state first."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        channels: int = 32
        hidden: int = 256
        groups: int = 8
        units: int = 8

        def __post_init__(self) -> None:
            require(self, channels=WIDTH, hidden=WIDTH, groups=WIDTH, units=WIDTH)

        def build(self, shape: Shape) -> MapQuasimetric:
            size = self.groups * self.units
            embed = Neighbourhoods(shape, self.channels, self.hidden, size)
            return MapQuasimetric(embed, self.groups)


class GlanceQuasimetric(Quasimetric):
    """The same distance in scenes, whose embedding looks at what is around that which moves."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        groups: int = 8
        units: int = 8
        glance: Glance.Config = field(default_factory=lambda: Glance.Config(reach=6))

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, groups=WIDTH, units=WIDTH)

        def build(self, shape: Shape) -> GlanceQuasimetric:
            glance = self.glance.build(shape)
            within = mlp(glance.out, self.hidden, self.groups * self.units)
            return GlanceQuasimetric(nn.Sequential(glance, within), self.groups)
