"""The goal critic, a trainable cost: the number of steps to the goal, by a quasimetric, a learnt
distance between states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.by_hand.autograd import PathEnergy, differentiable
from modules.by_hand.caches import DerivedFromWeights, version
from modules.by_hand.mlp import ConvHeadConstants, MLPConstants
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
        by_hand = self.path_mean_by_hand(goal)
        if by_hand is None or goal.requires_grad:
            return self(states[:, :, 1:], goal[:, None, None]).mean(-1)
        return differentiable(by_hand, states, goal)

    def path_mean_by_hand(self, goal: Tensor) -> PathEnergy | None:
        """`path_mean` with its gradient. None if the weights take a gradient, or the embedding is
        neither a `silu_mlp` nor a `ConvHead`."""
        constants = self._constants()
        return None if constants is None else partial(self._path_mean, constants)

    def _path_mean(
        self, constants: MLPConstants, states: Tensor, goal: Tensor
    ) -> tuple[Tensor, Callable[[float], Tensor]]:
        *inner, embedded = constants.forward(states.reshape(-1, states.shape[-1]))
        grouped = embedded.view(*states.shape[:3], self.groups, -1)
        difference = self._goal_embedding(goal, constants) - grouped
        # never 0, so that only a positive maximum is equal to it
        largest = difference.amax(-1, keepdim=True).clamp_min_(torch.finfo(goal.dtype).tiny)

        def slope(weight: float) -> Tensor:
            is_largest = torch.eq(difference, largest, out=torch.empty_like(difference))
            scale = -weight / (len(states) * self.groups)
            grad = is_largest.view_as(embedded)
            return constants.gradient(grad, *inner, scale=scale).view_as(states)

        return largest.mean((0, 3, 4)), slope

    def _constants(self) -> MLPConstants | None:
        embed = self.embed
        if isinstance(embed, ConvHead):
            conv_weights = ConvHeadConstants.weights_of(embed)
            return self.constants.get(
                conv_weights, lambda: ConvHeadConstants(embed.shape, *conv_weights)
            )
        weights = MLPConstants.weights_of(embed)
        if weights is None:
            return None
        return self.constants.get(weights, lambda: MLPConstants(*weights))

    def _goal_embedding(self, goal: Tensor, constants: MLPConstants) -> Tensor:
        """`[B, 1, groups, units]`; kept, because a planner asks for that of the same goal many
        times."""
        kept_goal, kept_version, embedding = constants.last_input
        if kept_goal is not goal or kept_version != version(goal):
            with torch.no_grad():
                embedding = constants.forward(goal)[-1].view(len(goal), 1, self.groups, -1)
            constants.last_input = goal, version(goal), embedding
        return embedding


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


def no_goal_critic(rollout: Rollout, context: TaskContext) -> Tensor:
    """The energy without a goal critic, 0, `[B, P]`: planning looks no further than the horizon."""
    return 0 * rollout.actions.sum((-2, -1))  # planners differentiate every energy
