"""Functions with a gradient written by hand, as functions that autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Pullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, ...]]
"""The gradient with respect to a function's output -> those with respect to its inputs."""


class ByHand(torch.autograd.Function):
    """`function(*inputs)` -> its output and its pullback, which is written by hand and takes fewer
    operations than autograd's: as a function that autograd differentiates, once."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, Pullback]], *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs)  # so that autograd notices if one is changed in place
        output, ctx.pullback = function(*inputs)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return None, *ctx.pullback(grad)


PathEnergy: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[float], Tensor]]]
"""Imagined states `[H, B, P, D]`, time first as they lie in memory; goals `[B, D]` or `[1, D]` ->
an energy `[B, P]`, and its gradient with respect to the states as a function of its weight."""


def differentiable(energy: PathEnergy, states: Tensor, goal: Tensor) -> Tensor:
    """The energy of states `[B, P, H + 1, D]` after the first, for autograd."""
    if not (states.requires_grad and torch.is_grad_enabled()):
        return energy(after_first(states), goal)[0]

    def function(states: Tensor) -> tuple[Tensor, Pullback]:
        value, slope = energy(states, goal)
        return value, lambda grad: (slope(1) * grad[..., None],)

    return ByHand.apply(function, after_first(states))


def after_first(states: Tensor) -> Tensor:
    """`[B, P, H + 1, D]` -> the states after the first, time first, `[H, B, P, D]`."""
    return states.permute(2, 0, 1, 3)[1:]
