"""Vectors in the plane: directions, rotations, and how an action is cut back to its bounds."""

from __future__ import annotations

import torch
from torch import Tensor


def direction(angle: Tensor) -> Tensor:
    """Angles [...] in radians -> unit vectors [..., 2]."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles [...] -> the same angles between -pi and pi."""
    return torch.atan2(angle.sin(), angle.cos())


def rotate(vector: Tensor, angle: Tensor) -> Tensor:
    """Unit vectors [..., 2], angles [...] -> the vectors turned by them, of length 1 again."""
    cos, sin = direction(angle).unbind(-1)
    x, y = vector.unbind(-1)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], -1)
    return turned / turned.square().sum(-1, keepdim=True).sqrt()


def clip_to_box(action: Tensor, bound: float) -> Tensor:
    """Each coordinate is clipped by itself, so the direction may change."""
    return action.clamp(-bound, bound)


def shrink_to_box(action: Tensor, bound: float) -> Tensor:
    """The action is shortened to fit into the box; its direction stays."""
    peak = action.abs().amax(-1, keepdim=True).clamp(min=bound)
    return action / peak * bound


def shrink_to_disk(action: Tensor, bound: float) -> Tensor:
    """The action is shortened to fit into the disk; its direction stays."""
    action = shrink_to_box(action, bound)  # first, so that no norm overflows
    norm = action.norm(dim=-1, keepdim=True).clamp(min=bound)
    return action / norm * bound


def fraction_before(low: Tensor, high: Tensor, start: Tensor, move: Tensor) -> Tensor:
    """The fraction [...] of a move before it enters a box, corners [..., 2]; 1 where it doesn't."""
    slope = torch.where(move.abs() < 1e-9, 1e-9, move)
    one, other = (low - start) / slope, (high - start) / slope
    enter = torch.minimum(one, other).amax(-1)
    leave = torch.maximum(one, other).amin(-1)
    hit = (enter < leave) & (leave > 0) & (enter < 1)
    return torch.where(hit, enter.clamp(min=0), 1.0)
