"""Energies of imagined paths and their gradients; each is a `PathEnergy`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modules.by_hand.caches import version
from modules.by_hand.mlp import MLPConstants


def mean_square(
    states: Tensor, goal: Tensor, goal_dims: int = 0
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
    embed: MLPConstants, groups: int, states: Tensor, goal: Tensor
) -> tuple[Tensor, Callable[[float], Tensor]]:
    """The distance of a `Quasimetric` from state to goal, mean over the path. `embed`: its
    embedding, whose numbers are `[groups, units]`."""
    *inner, embedded = embed.forward(states.reshape(-1, states.shape[-1]))
    grouped = embedded.view(*states.shape[:3], groups, -1)
    difference = _goal_embedding(embed, groups, goal) - grouped
    # never 0, so that only a positive maximum is equal to it
    largest = difference.amax(-1, keepdim=True).clamp_min_(torch.finfo(goal.dtype).tiny)

    def slope(weight: float) -> Tensor:
        is_largest = torch.eq(difference, largest, out=torch.empty_like(difference))
        scale = -weight / (len(states) * groups)
        grad = is_largest.view_as(embedded)
        return embed.gradient(grad, *inner, scale=scale).view_as(states)

    return largest.mean((0, 3, 4)), slope


def _goal_embedding(embed: MLPConstants, groups: int, goal: Tensor) -> Tensor:
    """Goals `[B, D]` -> `[B, 1, groups, units]`; kept, because a planner passes the same goal many
    times."""
    kept_goal, kept_version, embedding = embed.last_input
    if kept_goal is not goal or kept_version != version(goal):
        with torch.no_grad():
            embedding = embed.forward(goal)[-1].view(len(goal), 1, groups, -1)
        embed.last_input = goal, version(goal), embedding
    return embedding
