"""How far it is: distances in steps that critics are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from modules.nets import (
    ConvHead,
    GlimpseConfig,
    TakeFirst,
    check_goal_dims,
    fourier_linear,
    silu_mlp,
)
from modules.types import WIDTH, MapShape, validate_ranges


@dataclass(frozen=True, kw_only=True)
class QuasimetricConfig:
    hidden: int = 128
    groups: int = 8
    units: int = 8

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, groups=WIDTH, units=WIDTH)

    def build(self, shape: MapShape) -> Quasimetric:
        embed = silu_mlp(prod(shape), self.hidden, self.groups * self.units)
        return Quasimetric(embed, self.groups)


class Quasimetric(nn.Module):
    """A distance that need not be symmetric but always obeys the triangle inequality.

    d(s, g) = mean over groups of the max over units of relu(f(g) - f(s)); a simple relative of the
    interval quasimetric embedding (Wang & Isola 2022).
    """

    def __init__(self, embed: nn.Module, groups: int) -> None:
        super().__init__()
        self.embed, self.groups = embed, groups

    def from_embeddings(self, start: Tensor, goal: Tensor) -> Tensor:
        """Embedded states `[..., F]`, embedded goals `[..., F]` -> steps `[...]`."""
        difference = (goal - start).relu().unflatten(-1, (self.groups, -1))
        return difference.amax(-1).mean(-1)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States `[..., D]`, goals `[..., D]`, broadcast -> steps still to go `[...]`."""
        return self.from_embeddings(self.embed(state), self.embed(goal))


@dataclass(frozen=True, kw_only=True)
class FourierQuasimetricConfig:
    hidden: int = 256
    groups: int = 8
    units: int = 8
    num_frequencies: int = 128
    frequency_scale: float = 2.0
    """Radians per unit of the state: how fine they are."""
    goal_dims: int = 0
    """Numbers of the state, the first ones, that it is a distance of; 0: all. What a goal is
        about may be less than a state tells: a place, whatever the legs do there."""

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, groups=WIDTH, units=WIDTH, num_frequencies=WIDTH)
        validate_ranges(self, frequency_scale=(0.0, 1e6), goal_dims=(0, 65_536))

    def build(self, shape: MapShape) -> FourierQuasimetric:
        goal_dims = check_goal_dims(self.goal_dims, shape)
        input_layer = fourier_linear(
            goal_dims or prod(shape), self.num_frequencies, self.frequency_scale, self.hidden
        )
        head = silu_mlp(self.hidden, self.hidden, self.groups * self.units)
        first = [TakeFirst(goal_dims)] if goal_dims else []
        return FourierQuasimetric(nn.Sequential(*first, input_layer, nn.SiLU(), head), self.groups)


class FourierQuasimetric(Quasimetric):
    """The same distance, whose embedding looks at the state in waves: what is near in space may be
    far on foot."""


@dataclass(frozen=True, kw_only=True)
class ConvQuasimetricConfig:
    channels: int = 32
    hidden: int = 256
    groups: int = 8
    units: int = 8

    def __post_init__(self) -> None:
        validate_ranges(self, channels=WIDTH, hidden=WIDTH, groups=WIDTH, units=WIDTH)

    def build(self, shape: MapShape) -> ConvQuasimetric:
        size = self.groups * self.units
        embed = ConvHead(shape, self.channels, self.hidden, size)
        return ConvQuasimetric(embed, self.groups)


class ConvQuasimetric(Quasimetric):
    """The same distance, whose embedding looks at neighbourhoods of a map state first."""


@dataclass(frozen=True, kw_only=True)
class GlimpseQuasimetricConfig:
    hidden: int = 256
    groups: int = 8
    units: int = 8
    glimpse: GlimpseConfig = field(default_factory=lambda: GlimpseConfig(radius=6))

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, groups=WIDTH, units=WIDTH)

    def build(self, shape: MapShape) -> GlimpseQuasimetric:
        glimpse = self.glimpse.build(shape)
        head = silu_mlp(glimpse.out, self.hidden, self.groups * self.units)
        return GlimpseQuasimetric(nn.Sequential(glimpse, head), self.groups)


class GlimpseQuasimetric(Quasimetric):
    """The same distance in scenes, whose embedding looks at what is around that which moves."""
