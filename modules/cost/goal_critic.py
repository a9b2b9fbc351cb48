"""The goal critic, a trainable cost: the number of steps to the goal, by a quasimetric, a learnt
distance between states."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated

from torch import Tensor, nn

from modules.by_hand.autograd import differentiable_energy
from modules.by_hand.caches import DerivedFromWeights
from modules.by_hand.energies import mean_steps_to_goal
from modules.by_hand.mlp import MLPConstants, embedding_constants
from modules.by_hand.protocol import PathEnergy, own_method
from modules.nets import (
    ConvHead,
    GlimpseConfig,
    TakeFirst,
    check_goal_dims,
    fourier_linear,
    silu_mlp,
)
from modules.types import WIDTH, MapShape, Rollout, Settings, TaskContext


@dataclass(frozen=True, kw_only=True)
class QuasimetricConfig(Settings):
    hidden: Annotated[int, WIDTH] = 128
    groups: Annotated[int, WIDTH] = 8
    units: Annotated[int, WIDTH] = 8

    def build(self, shape: MapShape) -> Quasimetric:
        return Quasimetric(self.build_embedding(shape, self.groups * self.units), self.groups)

    def build_embedding(self, shape: MapShape, size: int) -> nn.Module:
        """`[..., D]` -> `[..., size]`"""
        return silu_mlp(prod(shape), self.hidden, size)


class Quasimetric(nn.Module):
    """A distance that obeys the triangle inequality and need not be symmetric: d(s, g) = mean over
    groups of the max over units of relu(f(g) - f(s)), a simplified interval quasimetric embedding
    (Wang & Isola 2022)."""

    def __init__(self, embed: nn.Module, groups: int) -> None:
        super().__init__()
        self.embed, self.groups = embed, groups
        self.constants: DerivedFromWeights[MLPConstants] = DerivedFromWeights()

    def from_embeddings(self, start: Tensor, goal: Tensor) -> Tensor:
        """Embedded states and goals, `[..., F]` each, broadcast -> steps `[...]`."""
        difference = (goal - start).relu().unflatten(-1, (self.groups, -1))
        return difference.amax(-1).mean(-1)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States and goals, `[..., D]` each, broadcast -> steps to go `[...]`."""
        return self.from_embeddings(self.embed(state), self.embed(goal))

    def path_mean(self, states: Tensor, goal: Tensor) -> Tensor:
        """Imagined states `[B, P, H + 1, D]`, goals `[B, D]` -> the steps to go, mean over the H
        states after the first, `[B, P]`."""
        offered = own_method(self, "path_mean_by_hand")
        by_hand = None if offered is None else offered(goal)
        if by_hand is None or goal.requires_grad:
            return self(states[:, :, 1:], goal[:, None, None]).mean(-1)
        return differentiable_energy(by_hand, states, goal)

    def path_mean_by_hand(self, goal: Tensor) -> PathEnergy | None:
        """`path_mean`, faster (`modules/by_hand`). None if the weights take a gradient, or the
        embedding is neither a `silu_mlp` nor a `ConvHead`."""
        embed = embedding_constants(self.embed, self.constants)
        return None if embed is None else partial(mean_steps_to_goal, embed, self.groups)


@dataclass(frozen=True, kw_only=True)
class FourierQuasimetricConfig(QuasimetricConfig):
    """A quasimetric on Fourier features of the state, for states that are close in space but far
    apart in steps, on two sides of a wall for instance."""

    hidden: int = 256
    num_frequencies: Annotated[int, WIDTH] = 128
    frequency_scale: Annotated[float, (0.0, 1e6)] = 2.0
    """Standard deviation of the frequencies, in radians per unit of the state."""
    goal_dims: Annotated[int, (0, 65_536)] = 0
    """The first so many dimensions of the state that define a goal, its position for instance; 0:
    all."""

    def build_embedding(self, shape: MapShape, size: int) -> nn.Module:
        goal_dims = check_goal_dims(self.goal_dims, shape)
        input_layer = fourier_linear(
            goal_dims or prod(shape), self.num_frequencies, self.frequency_scale, self.hidden
        )
        first = [TakeFirst(goal_dims)] if goal_dims else []
        head = silu_mlp(self.hidden, self.hidden, size)
        return nn.Sequential(*first, input_layer, nn.SiLU(), head)


@dataclass(frozen=True, kw_only=True)
class ConvQuasimetricConfig(QuasimetricConfig):
    """A quasimetric of map states, with a convolutional embedding."""

    channels: Annotated[int, WIDTH] = 32
    hidden: int = 256

    def build_embedding(self, shape: MapShape, size: int) -> nn.Module:
        return ConvHead(shape, self.channels, self.hidden, size)


@dataclass(frozen=True, kw_only=True)
class GlimpseQuasimetricConfig(QuasimetricConfig):
    """A quasimetric on the keypoints of a state and the map around each, for states of a
    `KeypointMapEncoder`."""

    hidden: int = 256
    glimpse: GlimpseConfig = field(default_factory=lambda: GlimpseConfig(radius=6))

    def build_embedding(self, shape: MapShape, size: int) -> nn.Module:
        glimpse = self.glimpse.build(shape)
        return nn.Sequential(glimpse, silu_mlp(glimpse.out, self.hidden, size))


@dataclass(frozen=True, kw_only=True)
class GoalCriticConfig:
    distance: (
        QuasimetricConfig
        | FourierQuasimetricConfig
        | GlimpseQuasimetricConfig
        | ConvQuasimetricConfig
    ) = field(default_factory=QuasimetricConfig)

    def build(self, shape: MapShape) -> GoalCritic:
        return GoalCritic(self.distance.build(shape))


class GoalCritic(nn.Module):
    """Steps to the goal, mean over an imagined path."""

    def __init__(self, distance: Quasimetric) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """`[B, P]`"""
        return self.distance.path_mean(rollout.states, context.goal)

    def by_hand(self, goal: Tensor) -> PathEnergy | None:
        """`forward`, faster (`modules/by_hand`); None as for `Quasimetric.path_mean_by_hand`."""
        offered = own_method(self.distance, "path_mean_by_hand")
        return None if offered is None else offered(goal)


def no_goal_critic(rollout: Rollout, context: TaskContext) -> Tensor:
    """The energy without a goal critic, 0, `[B, P]`: planning looks no further than the horizon."""
    return 0 * rollout.actions.sum((-2, -1))  # planners differentiate every energy
