"""What a body can do: actions stay inside by construction, so a planner never has to clip.

Inside the mind every action lies in [-1, 1] per dimension; the body's units belong to the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import validate_ranges

_NEARLY_ONE = 0.999
_EPS = 1e-6
MAX_ALTERNATIVES = 64
"""Options of all choices together, up to which each is tried when a policy is improved."""


class _ContinuousActions:
    """Actions that may be any within the bounds."""

    def squash(self, raw: Tensor) -> Tensor:
        """Any numbers `[..., A]` -> actions inside."""
        raise NotImplementedError

    def imitation_loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """How far what becomes of these numbers is from the wanted actions, both `[..., A]`:
        squared distance, `[...]`."""
        return (self.squash(raw) - targets).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class BoxActions(_ContinuousActions):
    """Every dimension in [-1, 1] by itself."""

    def squash(self, raw: Tensor) -> Tensor:
        """Any numbers `[..., A]` -> actions inside."""
        return raw.tanh()

    def unsquash(self, actions: Tensor) -> Tensor:
        """The numbers that `squash` turns into these actions (the rim is drawn in a little)."""
        return actions.clamp(-_NEARLY_ONE, _NEARLY_ONE).atanh()

    def project(self, actions: Tensor) -> Tensor:
        """The nearest actions inside."""
        return actions.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class BallActions(_ContinuousActions):
    """The whole action vector is no longer than `radius`: one length in any direction."""

    radius: float = 1.0
    """Below 1 it keeps the mind to actions as long as those that memory knows."""

    def __post_init__(self) -> None:
        validate_ranges(self, radius=(_EPS, 1e3))

    def squash(self, raw: Tensor) -> Tensor:
        """r u tanh|u| / |u|, `[..., A]`."""
        # held above zero, so that rest has a gradient as well
        length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(_EPS)
        return raw * (length.tanh() / length * self.radius)

    def unsquash(self, actions: Tensor) -> Tensor:
        """The numbers that `squash` turns into these actions (the rim is drawn in a little)."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True).clamp_min(_EPS)
        return actions * ((length / self.radius).clamp(max=_NEARLY_ONE).atanh() / length)

    def project(self, actions: Tensor) -> Tensor:
        """The nearest actions inside."""
        length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True)
        return actions / (length / self.radius).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class OneHotActions:
    """One of several, for each of some choices: an action is 1 for what is chosen and 0 for the
    rest. Chosen is the likeliest, and the gradient is that of its probability (straight-through,
    Bengio et al. 2013; Jang et al. 2017)."""

    sizes: tuple[int, ...]
    """How many there are to choose from, for each choice."""

    def __post_init__(self) -> None:
        validate_ranges(self, sizes=(1, 1_000_000))

    def squash(self, raw: Tensor) -> Tensor:
        """Any numbers `[..., A]`, taken for logits -> actions."""
        probs = torch.cat([part.softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return self.project(probs) + (probs - probs.detach())

    def imitation_loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """How unlikely these logits make the wanted actions, both `[..., A]`: cross-entropy, sum
        over the choices, `[...]`. A distance would be 0 as soon as the right one is likeliest."""
        log_probs = torch.cat([part.log_softmax(-1) for part in raw.split(self.sizes, -1)], -1)
        return -(targets * log_probs).sum(-1)

    def alternatives(self, actions: Tensor) -> Tensor:
        """Actions `[B, A]` -> the same with one choice replaced by each of its options,
        `[B, A, A]`; none, `[B, 0, A]`, where there are more than MAX_ALTERNATIVES."""
        width = actions.shape[-1]
        if width > MAX_ALTERNATIVES:
            return actions[:, None][:, :0]
        index = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        same_choice = (index[:, None] == index).to(actions.device)
        replaced = torch.eye(width).to(actions)
        return torch.where(same_choice, replaced, actions[:, None])

    def unsquash(self, actions: Tensor) -> Tensor:
        """The numbers that `squash` turns into these actions, near enough to change one's mind."""
        return actions.clone()

    def project(self, actions: Tensor) -> Tensor:
        """What these are likest, for each choice."""
        parts = actions.split(self.sizes, -1)
        one_hot = [torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0) for p in parts]
        return torch.cat(one_hot, -1)


ActionSpace = BoxActions | BallActions | OneHotActions
