"""Energies of imagined paths and their gradients; each is a `PathEnergy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.by_hand.caches import version
from modules.by_hand.mlp import MLPConstants


class CriticConstants(NamedTuple):
    """A `GoalCritic` with constant weights: the embedding of its quasimetric, whose numbers are
    `[groups, units]`, and the weight of what is out of reach."""

    embed: MLPConstants
    groups: int
    reachability: float


def mean_square(
    states: Tensor, goal: Tensor, start: Tensor, goal_dims: int = 0
) -> tuple[Tensor, Callable[[float], Tensor]]:
    """The squared difference of state and goal in the first `goal_dims` numbers, or in all if that
    is 0, mean over these numbers and over the path."""
    size = goal_dims or states.shape[-1]
    rest = states.shape[-1] - size
    if rest:
        states, goal = states[..., :size], goal[..., :size]
    difference = states - (goal if len(goal) == 1 else goal[:, None])
    scale = 2 / (len(states) * size)

    def slope(weight: float) -> Tensor:
        part = difference * (scale * weight)
        return nn.functional.pad(part, (0, rest)) if rest else part

    return difference.square().mean((0, -1)), slope


def mean_steps_to_goal(
    critic: CriticConstants, states: Tensor, goal: Tensor, start: Tensor
) -> tuple[Tensor, Callable[[float], Tensor]]:
    """The energy of a `GoalCritic`: the distance of its quasimetric from state to goal, and what
    exceeds the steps so far in the distance from the start, mean over the path."""
    embed, groups, reachability = critic
    *inner, embedded = embed.forward(states.reshape(-1, states.shape[-1]))
    grouped = embedded.view(*states.shape[:3], groups, -1)
    to_goal = _goal_embedding(embed, groups, goal) - grouped
    largest = _largest(to_goal)
    energy = largest.mean((0, 3, 4))
    if reachability:
        from_start = grouped - embed.forward(start)[-1].view(len(start), 1, groups, -1)
        largest_from_start = _largest(from_start)
        way = largest_from_start.mean((-2, -1))
        steps = torch.arange(1, len(states) + 1, dtype=way.dtype, device=way.device)
        excess = (way - steps[:, None, None]).relu_()
        energy = energy + reachability * excess.mean(0)

    def slope(weight: float) -> Tensor:
        scale = -weight / (len(states) * groups)
        grad = _is_largest(to_goal, largest)
        if reachability:
            counts = (reachability * excess.sign())[..., None, None]
            grad = grad - counts * _is_largest(from_start, largest_from_start)
        return embed.gradient(grad.view_as(embedded), *inner, scale=scale).view_as(states)

    return energy, slope


def _largest(difference: Tensor) -> Tensor:
    """Differences of embeddings `[..., groups, units]` -> the positive maxima `[..., groups, 1]`,
    never 0, so that only a positive number is equal to one."""
    return difference.amax(-1, keepdim=True).clamp_min_(torch.finfo(difference.dtype).tiny)


def _is_largest(difference: Tensor, largest: Tensor) -> Tensor:
    """1 where a number is the positive maximum of its group, else 0, as the type of both."""
    return torch.eq(difference, largest, out=torch.empty_like(difference))


def _goal_embedding(embed: MLPConstants, groups: int, goal: Tensor) -> Tensor:
    """Goals `[B, D]` -> `[B, 1, groups, units]`; kept, because a planner passes the same goal many
    times."""
    kept_goal, kept_version, embedding = embed.last_input
    if kept_goal is not goal or kept_version != version(goal):
        with torch.no_grad():
            embedding = embed.forward(goal)[-1].view(len(goal), 1, groups, -1)
        embed.last_input = goal, version(goal), embedding
    return embedding
