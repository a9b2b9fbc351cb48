"""Quasimetrics: learnt distances in steps between states, which the goal critics use."""

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
    """A distance that obeys the triangle inequality and need not be symmetric: d(s, g) = mean over
    groups of the max over units of relu(f(g) - f(s)), a simplified interval quasimetric embedding
    (Wang & Isola 2022)."""

    def __init__(self, embed: nn.Module, groups: int) -> None:
        super().__init__()
        self.embed, self.groups = embed, groups

    def from_embeddings(self, start: Tensor, goal: Tensor) -> Tensor:
        """Embedded states and goals, `[..., F]` each, broadcast -> steps `[...]`."""
        difference = (goal - start).relu().unflatten(-1, (self.groups, -1))
        return difference.amax(-1).mean(-1)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States and goals, `[..., D]` each, broadcast -> steps to go `[...]`."""
        return self.from_embeddings(self.embed(state), self.embed(goal))


@dataclass(frozen=True, kw_only=True)
class FourierQuasimetricConfig:
    hidden: int = 256
    groups: int = 8
    units: int = 8
    num_frequencies: int = 128
    frequency_scale: float = 2.0
    """Standard deviation of the frequencies, in radians per unit of the state."""
    goal_dims: int = 0
    """The first so many dimensions of the state that define a goal, its position for instance; 0:
    all."""

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
        embed = nn.Sequential(*first, input_layer, nn.SiLU(), head)
        return FourierQuasimetric(embed, self.groups)


class FourierQuasimetric(Quasimetric):
    """`Quasimetric` on Fourier features of the state, for states that are close in space but far
    apart in steps, on two sides of a wall for instance."""


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
    """`Quasimetric` of map states, with a convolutional embedding."""


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
    """`Quasimetric` on the keypoints of a state and the map around each, for states of a
    `KeypointMapEncoder`."""
