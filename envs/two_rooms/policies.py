"""The expert, which takes the shortest path, and the behaviour policies of the published data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..base import pick
from ..geometry import direction
from ..rng import normal, truncated_normal, uniform, von_mises
from .dynamics import Arena, is_visible, sample_in_room

BLOCKED = 1e6  # the length of a path that isn't open
AT_WAYPOINT = 0.05  # pixels


def door_posts(arena: Arena, layout: Tensor) -> Tensor:
    """Layout [B, 2] -> [B, 4, 2]: the points at which a path through the door may bend."""
    margin = min(1.0, arena.half_door / 3)
    across, along = arena.half_wall + margin, arena.half_door - margin
    left, right = layout[:, 0] - across, layout[:, 0] + across
    top, bottom = layout[:, 1] - along, layout[:, 1] + along
    posts = [left, top, left, bottom, right, top, right, bottom]
    return torch.stack(posts, -1).unflatten(-1, (4, 2))


def next_waypoint(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[B, 2] each -> [B, 2]: where the shortest path first bends, or the goal if it is straight."""
    posts, layouts = door_posts(arena, layout), layout[:, None]
    here, there = start[:, None], goal[:, None]
    to_goal = (posts - there).norm(dim=-1)  # [B, 4]
    to_goal = torch.where(is_visible(arena, posts, there, layouts), to_goal, BLOCKED)
    onward = (torch.cdist(posts, posts) + to_goal[:, None]).amin(-1)
    to_post = (posts - here).norm(dim=-1)
    usable = is_visible(arena, here, posts, layouts) & (to_post > AT_WAYPOINT)
    best = (torch.where(usable, to_post, BLOCKED) + onward).argmin(-1)
    straight = is_visible(arena, start, goal, layout)
    return torch.where(straight[:, None], goal, pick(posts, best))


class BehaviourState(NamedTuple):
    """What the behaviour policy does in B environments."""

    last_move: Tensor  # [B, 2] pixels, before any contact
    target: Tensor  # [B, 2] where a directed policy goes
    directed: Tensor  # [B] bool: to the target, or wandering
    ignores_walls: Tensor  # [B] bool: straight to the target, into the wall
    steps_left: Tensor  # [B] until the policy is resampled
    keys: Tensor  # [B] int64


BehaviourPolicy: TypeAlias = Callable[
    [Arena, Tensor, Tensor, BehaviourState, float], BehaviourState
]
"""Arena, positions `[B, 2]`, layouts `[B, 2]`, state, `directed_fraction` -> the state one step
later, whose `last_move` is the move to make."""


def init_behaviour(position: Tensor, keys: Tensor) -> BehaviourState:
    """A behaviour policy as an episode begins, with a heading."""
    u, keys = uniform(keys, 1)
    zero = torch.zeros_like(u[:, 0])
    heading = direction(2 * math.pi * u[:, 0])
    return BehaviourState(heading, position, zero > 0, zero > 0, zero, keys)


def resample(
    arena: Arena,
    position: Tensor,
    layout: Tensor,
    behaviour: BehaviourState,
    directed_fraction: float,
    directed_steps: float,
    ignoring_fraction: float,
) -> BehaviourState:
    """Every 20 to 40 steps, or on arrival, the policy is resampled: with probability
    `directed_fraction` it goes to a position in the other room, until it arrives or for
    `directed_steps`; else it wanders. `ignoring_fraction` of the directed ones go straight on, meet
    the wall, and last as long as wandering."""
    u, keys = uniform(behaviour.keys, 5)
    arrived = (behaviour.target - position).norm(dim=-1) < 0.05 * arena.side
    renew = (behaviour.steps_left <= 0) | (behaviour.directed & arrived)
    directed = torch.where(renew, u[:, 0] < directed_fraction, behaviour.directed)
    wander_steps = 20 + (21 * u[:, 1]).floor()
    ignoring = torch.where(renew, u[:, 2] < ignoring_fraction, behaviour.ignores_walls) & directed
    steps = torch.where(directed & ~ignoring, directed_steps, wander_steps)
    to_right = position[:, 0] < layout[:, 0]
    target = sample_in_room(arena, layout, to_right, u[:, 3:])
    return BehaviourState(
        last_move=behaviour.last_move,
        target=torch.where(renew[:, None], target, behaviour.target),
        directed=directed,
        ignores_walls=ignoring,
        steps_left=torch.where(renew, steps, behaviour.steps_left) - 1,
        keys=keys,
    )


def noiseless_direction(
    arena: Arena, position: Tensor, layout: Tensor, behaviour: BehaviourState
) -> Tensor:
    """The direction [B, 2] to the target of a directed policy, or of the last move."""
    waypoint = next_waypoint(arena, position, behaviour.target, layout)
    target = torch.where(behaviour.ignores_walls[:, None], behaviour.target, waypoint)
    ahead = torch.where(behaviour.directed[:, None], target - position, behaviour.last_move)
    return ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Wander:
    """A heading that drifts by von Mises noise, and steps of truncated normal length.

    Source of the form: PLDM, arXiv 2502.14819. Lengths in pixels.
    """

    kappa: float = 5.0
    mean: float = 1.0
    std: float = 0.4
    low: float = 0.2
    high: float = 1.8
    ignoring_fraction: float = 0.0
    """Of the directed policies, how many take no notice of the wall."""

    def __call__(
        self,
        arena: Arena,
        position: Tensor,
        layout: Tensor,
        behaviour: BehaviourState,
        directed_fraction: float,
    ) -> BehaviourState:
        steps = 4 * arena.side / self.mean
        behaviour = resample(
            arena, position, layout, behaviour, directed_fraction, steps, self.ignoring_fraction
        )
        u, keys = uniform(behaviour.keys, 2)
        ahead = noiseless_direction(arena, position, layout, behaviour)
        heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(u[:, 0], self.kappa)
        move = direction(heading) * self.length(u[:, 1:])
        return behaviour._replace(last_move=move, keys=keys)

    def length(self, u: Tensor) -> Tensor:
        """Uniform [...] in [0, 1) -> lengths of steps [...]."""
        return truncated_normal(u, mean=self.mean, std=self.std, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class NoisyExpert:
    """An expert with noise on its moves, which sometimes repeats its last move.

    Source of the form and the noise: stable-worldmodel, arXiv 2605.21800. Noise is per coordinate,
    in units of the full step; moves are clipped to the box of `full_step` pixels.
    """

    full_step: float
    noise: float = 2.0
    repeat: float = 0.05

    def __call__(
        self,
        arena: Arena,
        position: Tensor,
        layout: Tensor,
        behaviour: BehaviourState,
        directed_fraction: float,
    ) -> BehaviourState:
        steps = 40 * arena.side / self.full_step
        behaviour = resample(arena, position, layout, behaviour, directed_fraction, steps, 0.0)
        u, keys = uniform(behaviour.keys, 3)
        noisy = noiseless_direction(arena, position, layout, behaviour) + self.noise * normal(
            u[:, :2]
        )
        move = noisy.clamp(-1, 1) * self.full_step
        move = torch.where(u[:, 2:] < self.repeat, behaviour.last_move, move)
        return behaviour._replace(last_move=move, keys=keys)
