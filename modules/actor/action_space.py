"""Action spaces: maps from unbounded numbers to valid actions, so that planners and policies never
clip.

Within the agent every dimension of an action lies in [-1, 1]; the environment adapter converts it
to the units of the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import validate_ranges

_NEARLY_ONE = 0.999
_EPS = 1e-6
MAX_ALTERNATIVES = 64
"""Largest number of discrete options whose alternatives are evaluated to improve a policy."""


class _ContinuousActions:
    def squash(self, raw: Tensor) -> Tensor:
        """Unbounded numbers `[..., A]` -> valid actions."""
        raise NotImplementedError

    def imitation_loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Squared distance of the squashed numbers to the target actions, both `[..., A]`;
        `[...]`."""
        return (self.squash(raw) - targets).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class BoxActions(_ContinuousActions):
    """Every dimension in [-1, 1] independently."""

    def squash(self, raw: Tensor) -> Tensor:
        """Unbounded numbers `[..., A]` -> valid actions."""
        return raw.tanh()

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bounds are moved inside by 0.1 %."""
        return actions.clamp(-_NEARLY_ONE, _NEARLY_ONE).atanh()

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        return actions.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class BallActions(_ContinuousActions):
    """Action vectors of Euclidean length up to `radius`."""

    radius: float = 1.0
    """Greatest length; below 1 it keeps actions within the range of the training data."""

    def __post_init__(self) -> None:
        validate_ranges(self, radius=(_EPS, 1e3))

    def squash(self, raw: Tensor) -> Tensor:
        """r u tanh|u| / |u|, `[..., A]`."""
        # clamped, because the gradient at length 0 is undefined
        length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(_EPS)
        return raw * (length.tanh() / length * self.radius)

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bound are moved inside by 0.1 %."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(_EPS)
        return actions * ((length / self.radius).clamp(max=_NEARLY_ONE).atanh() / length)

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True)
        return actions / (length / self.radius).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class OneHotActions:
    """One or several discrete choices, one-hot each. The most likely option is chosen, with the
    gradient of its probability (straight-through, Bengio et al. 2013; Jang et al. 2017)."""

    sizes: tuple[int, ...]
    """Number of options of each choice."""

    def __post_init__(self) -> None:
        validate_ranges(self, sizes=(1, 1_000_000))

    def squash(self, raw: Tensor) -> Tensor:
        """Logits `[..., A]` -> actions."""
        probs = torch.cat([part.softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return self.project(probs) + (probs - probs.detach())

    def imitation_loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the logits and the target actions, both `[..., A]`, sum over the
        choices; `[...]`. A squared distance would be 0 as soon as the target is the most likely
        option."""
        log_probs = torch.cat([part.log_softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return -(targets * log_probs).sum(-1)

    def alternatives(self, actions: Tensor) -> Tensor:
        """Actions `[B, A]` -> the actions with one choice replaced by each of its options,
        `[B, A, A]`; `[B, 0, A]` if there are more than MAX_ALTERNATIVES options."""
        width = actions.shape[-1]
        if width > MAX_ALTERNATIVES:
            return actions[:, None][:, :0]
        index = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        same_choice = (index[:, None] == index).to(actions.device)
        replaced = torch.eye(width).to(actions)
        return torch.where(same_choice, replaced, actions[:, None])

    def unsquash(self, actions: Tensor) -> Tensor:
        """Logits that `squash` maps to these actions, small enough that a planner can change
        them."""
        return actions.clone()

    def project(self, actions: Tensor) -> Tensor:
        """The option with the largest number, for each choice."""
        parts = actions.split(self.sizes, -1)
        one_hot = [torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0) for p in parts]
        return torch.cat(one_hot, -1)


ActionSpace = BoxActions | BallActions | OneHotActions
