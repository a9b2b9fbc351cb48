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

from modules.by_hand.autograd import differentiable_energy
from modules.by_hand.caches import DerivedFromWeights
from modules.by_hand.energies import CriticConstants, mean_steps_to_goal
from modules.by_hand.mlp import MLPConstants, embedding_constants
from modules.by_hand.protocol import PathEnergy
from modules.nets import (
    ConvHead,
    GlimpseConfig,
    TakeFirst,
    check_goal_dims,
    fourier_linear,
    silu_mlp,
)
from modules.types import WEIGHT, WIDTH, MapShape, Rollout, Settings, TaskContext


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

    def from_embeddings(self, start: Tensor, goal: Tensor) -> Tensor:
        """Embedded states and goals, `[..., F]` each, broadcast -> steps `[...]`."""
        difference = (goal - start).relu().unflatten(-1, (self.groups, -1))
        return difference.amax(-1).mean(-1)

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States and goals, `[..., D]` each, broadcast -> steps to go `[...]`."""
        return self.from_embeddings(self.embed(state), self.embed(goal))


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
class GoalCriticConfig(Settings):
    distance: (
        QuasimetricConfig
        | FourierQuasimetricConfig
        | GlimpseQuasimetricConfig
        | ConvQuasimetricConfig
    ) = field(default_factory=QuasimetricConfig)
    reachability: Annotated[float, WEIGHT] = 0.0
    """Weight of the steps by which the distance from the present state to an imagined one exceeds
    the steps that were imagined: a path that the world model lets through a wall. With a weight of
    1 or more no plan is better than the distance to the goal allows. For a critic that counts
    single steps."""

    def build(self, shape: MapShape) -> GoalCritic:
        return GoalCritic(self.distance.build(shape), self.reachability)


def excess_steps(distance: Tensor) -> Tensor:
    """Distances in steps from the present state to each of H imagined ones `[..., H]` -> by how
    many steps each exceeds the time until then: no path so short leads there."""
    time = torch.arange(1, distance.shape[-1] + 1, dtype=distance.dtype, device=distance.device)
    return (distance - time).relu()


class GoalCritic(nn.Module):
    """Steps to the goal, and steps that no path of that length can have come, mean over an imagined
    path: d(s_t, g) + w relu(d(s_0, s_t) - t). By the triangle inequality, that is at least
    d(s_0, g) - t if w is 1 or more, whatever the world model predicts."""

    def __init__(self, distance: Quasimetric, reachability: float = 0.0) -> None:
        super().__init__()
        self.distance, self.reachability = distance, reachability
        self.constants: DerivedFromWeights[MLPConstants] = DerivedFromWeights()

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """`[B, P]`"""
        states, goal = rollout.states, context.goal
        by_hand = None if goal.requires_grad or self.reachability else self.by_hand(goal)
        if by_hand is not None:
            return differentiable_energy(by_hand, states, goal)
        distance: Callable[[Tensor, Tensor], Tensor] = self.distance
        if self.reachability and type(self.distance) is Quasimetric:  # embeds each state once
            states, goal = self.distance.embed(states), self.distance.embed(goal)
            distance = self.distance.from_embeddings
        start, path = states[:, :, :1], states[:, :, 1:]
        steps = distance(path, goal[:, None, None])
        if self.reachability:
            steps = steps + self.reachability * excess_steps(distance(start, path))
        return steps.mean(-1)

    def by_hand(self, goal: Tensor) -> PathEnergy | None:
        """`forward`, faster (`modules/by_hand`). None if the weights take a gradient, or the
        embedding is neither a `silu_mlp` nor a `ConvHead`."""
        distance = self.distance
        if type(distance) is not Quasimetric:  # one of the user's own may have another formula
            return None
        embed = embedding_constants(distance.embed, self.constants)
        if embed is None:
            return None
        constants = CriticConstants(embed, distance.groups, self.reachability)
        return partial(mean_steps_to_goal, constants)


def no_goal_critic(rollout: Rollout, context: TaskContext) -> Tensor:
    """The energy without a goal critic, 0, `[B, P]`: planning looks no further than the horizon."""
    return 0 * rollout.actions.sum((-2, -1))  # planners differentiate every energy
