"""Moves in the plane: directions, and how an action is cut back to what a body can do."""

from __future__ import annotations

import torch
from torch import Tensor


def direction(angle: Tensor) -> Tensor:
    """Angles [...] -> unit vectors [..., 2]."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def clip_to_box(action: Tensor, bound: float) -> Tensor:
    """Each coordinate by itself, so the direction may turn."""
    return action.clamp(-bound, bound)


def shrink_to_box(action: Tensor, bound: float) -> Tensor:
    """Onto the box along its own direction."""
    peak = action.abs().amax(-1, keepdim=True).clamp(min=bound)
    return action / peak * bound


def shrink_to_disk(action: Tensor, bound: float) -> Tensor:
    """Onto the disk along its own direction."""
    action = shrink_to_box(action, bound)  # first, so that no norm overflows
    norm = action.norm(dim=-1, keepdim=True).clamp(min=bound)
    return action / norm * bound
