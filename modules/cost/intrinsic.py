"""Intrinsic costs of states and actions: functions without parameters, so nothing can train them
(LeCun 2022, 4.3). Those of interoceptive signals are in `drives.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import WEIGHT, CostFn, Rollout, TaskContext, validate_ranges


@dataclass(frozen=True, kw_only=True)
class IntrinsicCostConfig:
    """Settings of an intrinsic cost of the user's own, which is a subclass with a `build`. The cost
    has no parameters: nothing can train it."""

    weight: float = 1.0
    """Its weight u_i in every task that names none."""

    def __post_init__(self) -> None:
        validate_ranges(self, weight=WEIGHT)

    def build(self) -> CostFn:
        """The cost, differentiable: an imagined rollout and the task -> energy `[B, P]`."""
        raise NotImplementedError


def goal_distance(rollout: Rollout, context: TaskContext) -> Tensor:
    """Mean squared difference of state and goal, mean over the path; `[B, P]`."""
    difference = rollout.states[:, :, 1:] - context.goal[:, None, None]  # [B, P, H, D]
    return difference.square().mean((-2, -1))


def control_cost(rollout: Rollout, context: TaskContext) -> Tensor:
    """Squared length of the actions, mean over the path; `[B, P]`."""
    return rollout.actions.square().sum(-1).mean(-1)


def soft_nearest(states: Tensor, references: Tensor, width: Tensor) -> Tensor:
    """States `[..., D]` -> mixtures of reference states `[K, D]`, weighted by a Gaussian of that
    width. A planner that seeks novelty would otherwise find predictions that can't occur."""
    if not len(references):
        return states
    distance = torch.cdist(states.flatten(0, -2), references).unflatten(0, states.shape[:-1])
    return torch.softmax(-(distance / width).square(), -1) @ references  # of [..., K]


def boredom(rollout: Rollout, context: TaskContext) -> Tensor:
    """Similarity 1 / (1 + d^2) to the nearest state that was visited in this episode or is earlier
    on the imagined path, d in NOVELTY_SCALE steps, mean over the path; `[B, P]` (episodic novelty,
    Savinov et al. 2019)."""
    if not context.episode_states.shape[1]:
        return control_cost(rollout, context) * 0
    # a world model may predict that no action moves the state
    step_scale = context.step_scale[:, None, None].clamp_min(1e-3)
    imagined = soft_nearest(
        rollout.states[:, :, 1:], context.reference_states, step_scale[..., None] / 2
    )  # [B, P, H, D]
    visited = torch.cdist(imagined.flatten(1, 2), context.episode_states)
    visited = visited.unflatten(1, imagined.shape[1:3])  # [B, P, H, M]
    is_past = imagined.new_ones(2 * imagined.shape[2:3]).tril(-MIN_LAG).bool()
    own_past = torch.cdist(imagined, imagined).masked_fill(~is_past, torch.inf)  # [B, P, H, H]
    distance = torch.cat([visited, own_past], -1).amin(-1) / (NOVELTY_SCALE * step_scale)
    return (1 / (1 + distance.square())).mean(-1)


NOVELTY_SCALE = 2.0
"""Distance in steps at which the similarity is 1/2."""

MIN_LAG = 4
"""Earlier states of an imagined path count as visited from this many steps back."""

INTRINSIC: Mapping[str, CostFn] = {
    "goal_distance": goal_distance,
    "control_cost": control_cost,
    "boredom": boredom,
}
