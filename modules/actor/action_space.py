"""Action spaces: they map unbounded numbers to valid actions, so that neither policies nor planners
ever clip.

Within the agent every dimension of an action lies in [-1, 1]; the environment adapter converts it
to the units of the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from modules.nets import ByHand, Pullback
from modules.types import Settings

_NEARLY_ONE = 0.999
_EPS = 1e-6
MAX_ALTERNATIVES = 64
"""Largest number of discrete options whose alternatives are evaluated to improve a policy."""


class _ContinuousActions(Settings):
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

    def squash_by_hand(self, raw: Tensor) -> tuple[Tensor, Pullback]:
        """`squash` and its pullback."""
        actions = raw.tanh()
        return actions, lambda grad: (grad * (1 - actions.square()),)

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bounds are moved inside by 0.1 %."""
        return actions.clamp(-_NEARLY_ONE, _NEARLY_ONE).atanh()

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        return actions.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class BallActions(_ContinuousActions):
    """Action vectors of Euclidean length up to `radius`."""

    radius: Annotated[float, (_EPS, 1e3)] = 1.0
    """Greatest length; below 1 it keeps actions within the range of the training data."""

    def squash(self, raw: Tensor) -> Tensor:
        """r u tanh|u| / |u|, `[..., A]`."""
        if not (raw.requires_grad and torch.is_grad_enabled()):
            return self.squash_by_hand(raw)[0]
        return ByHand.apply(self.squash_by_hand, raw)

    def squash_by_hand(self, raw: Tensor) -> tuple[Tensor, Pullback]:
        """`squash` and its pullback, in half the operations."""
        # clamped, because the gradient at length 0 is undefined
        length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min_(_EPS)
        fraction = length.tanh()
        gain = fraction / length
        if self.radius != 1:
            gain *= self.radius

        def pullback(grad: Tensor) -> tuple[Tensor]:
            unit = raw / length
            along = (unit * grad).sum(-1, keepdim=True)
            # along the action the derivative is that of r tanh, across it the gain
            change = torch.ops.aten.tanh_backward(along, fraction)
            if self.radius != 1:
                change *= self.radius
            return (torch.addcmul(gain * grad, unit, change.addcmul_(along, gain, value=-1)),)

        return raw * gain, pullback

    def unsquash(self, actions: Tensor) -> Tensor:
        """The inverse of `squash`; actions at the bound are moved inside by 0.1 %."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(_EPS)
        fraction = length if self.radius == 1 else length / self.radius
        return actions * (fraction.clamp(max=_NEARLY_ONE).atanh() / length)

    def project(self, actions: Tensor) -> Tensor:
        """The nearest valid actions."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True)
        return actions / (length / self.radius).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class OneHotActions(Settings):
    """One or several discrete choices, one-hot each. The most likely option is chosen, with the
    gradient of its probability (straight-through, Bengio et al. 2013; Jang et al. 2017)."""

    sizes: Annotated[tuple[int, ...], (1, 1_000_000)]
    """Number of options of each choice."""

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
