"""Intrinsic costs of states and actions, hard-wired: functions without parameters, so nothing can
train them (LeCun 2022, 4.3). Those of what the body feels are in `drives.py`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modules.types import Energy, Focus, Rollout


def reach(rollout: Rollout, focus: Focus) -> Tensor:
    """Not being at the goal: mean squared difference of state and goal, mean over the path;
    `[B, P]`."""
    difference = rollout.states[:, :, 1:] - focus.goal[:, None, None]  # [B, P, H, D]
    return difference.square().mean((-2, -1))


def effort(rollout: Rollout, focus: Focus) -> Tensor:
    """Squared length of the actions, mean over the path; `[B, P]`."""
    return rollout.actions.square().sum(-1).mean(-1)


def recognised(states: Tensor, known: Tensor, width: Tensor) -> Tensor:
    """States `[..., D]` as mixtures of those that are known, `[K, D]`, weighted by a Gaussian of
    that width: a planner that looks for what is new would otherwise find what can't be."""
    if not len(known):
        return states
    far = torch.cdist(states.flatten(0, -2), known).unflatten(0, states.shape[:-1]) / width
    return torch.softmax(-far.square(), -1) @ known  # of [..., K]


def boredom(rollout: Rollout, focus: Focus) -> Tensor:
    """Being where one has been in this episode, or will have been by then: likeness 1 / (1 + d^2)
    to the nearest such state, d in strides, mean over the path; `[B, P]` (episodic novelty, Savinov
    et al. 2019)."""
    if not focus.lived.shape[1]:
        return effort(rollout, focus) * 0
    pace = focus.pace[:, None, None].clamp_min(1e-3)  # some expect to stay where they are
    ahead = recognised(rollout.states[:, :, 1:], focus.known, pace[..., None] / 2)  # [B, P, H, D]
    shape = ahead.shape[1:3]
    lived = torch.cdist(ahead.flatten(1, 2), focus.lived).unflatten(1, shape)  # [B, P, H, L]
    late = ahead.new_ones(2 * ahead.shape[2:3]).tril(-AGO).bool()
    own = torch.cdist(ahead, ahead).masked_fill(~late, torch.inf)  # [B, P, H, H]
    far = torch.cat([lived, own], -1).amin(-1) / (STRIDE * pace)
    return (1 / (1 + far.square())).mean(-1)


STRIDE = 2.0
"""Steps apart at which a state is half new."""

AGO = 4
"""Steps ahead of a state in its own path that count as past."""

INTRINSIC: Mapping[str, Energy] = {"reach": reach, "effort": effort, "boredom": boredom}
