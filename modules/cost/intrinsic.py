"""Intrinsic costs of states and actions, hard-wired: functions without parameters, so nothing can
train them (LeCun 2022, 4.3). Those of what the body feels are in `drives.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import CostFn, Rollout, TaskContext


@dataclass(frozen=True, kw_only=True)
class IntrinsicCostConfig:
    """Settings of an intrinsic cost of the user's own, which is a subclass with a `build`. The cost
    has no parameters: nothing can train it."""

    weight: float = 1.0
    """Its weight u_i in every task that names none."""

    def build(self) -> CostFn:
        """The cost, differentiable: an imagined rollout and the task -> energy `[B, P]`."""
        raise NotImplementedError


def goal_distance(rollout: Rollout, context: TaskContext) -> Tensor:
    """Not being at the goal: mean squared difference of state and goal, mean over the path;
    `[B, P]`."""
    difference = rollout.states[:, :, 1:] - context.goal[:, None, None]  # [B, P, H, D]
    return difference.square().mean((-2, -1))


def control_cost(rollout: Rollout, context: TaskContext) -> Tensor:
    """Squared length of the actions, mean over the path; `[B, P]`."""
    return rollout.actions.square().sum(-1).mean(-1)


def soft_nearest(states: Tensor, references: Tensor, width: Tensor) -> Tensor:
    """States `[..., D]` as mixtures of those that are known, `[K, D]`, weighted by a Gaussian of
    that width: a planner that looks for what is new would otherwise find what can't be."""
    if not len(references):
        return states
    distance = (
        torch.cdist(states.flatten(0, -2), references).unflatten(0, states.shape[:-1]) / width
    )
    return torch.softmax(-distance.square(), -1) @ references  # of [..., K]


def boredom(rollout: Rollout, context: TaskContext) -> Tensor:
    """Being where one has been in this episode, or will have been by then: likeness 1 / (1 + d^2)
    to the nearest such state, d in strides, mean over the path; `[B, P]` (episodic novelty, Savinov
    et al. 2019)."""
    if not context.episode_states.shape[1]:
        return control_cost(rollout, context) * 0
    step_scale = context.step_scale[:, None, None].clamp_min(
        1e-3
    )  # some expect to stay where they are
    imagined = soft_nearest(
        rollout.states[:, :, 1:], context.reference_states, step_scale[..., None] / 2
    )  # [B, P, H, D]
    shape = imagined.shape[1:3]
    visited = torch.cdist(imagined.flatten(1, 2), context.episode_states).unflatten(
        1, shape
    )  # [B, P, H, L]
    is_past = imagined.new_ones(2 * imagined.shape[2:3]).tril(-MIN_LAG).bool()
    own_past = torch.cdist(imagined, imagined).masked_fill(~is_past, torch.inf)  # [B, P, H, H]
    distance = torch.cat([visited, own_past], -1).amin(-1) / (NOVELTY_SCALE * step_scale)
    return (1 / (1 + distance.square())).mean(-1)


NOVELTY_SCALE = 2.0
"""Steps apart at which a state is half new."""

MIN_LAG = 4
"""Steps ahead of a state in its own path that count as past."""

INTRINSIC: Mapping[str, CostFn] = {
    "goal_distance": goal_distance,
    "control_cost": control_cost,
    "boredom": boredom,
}
