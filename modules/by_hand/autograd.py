"""Functions whose gradient is written by hand, as functions that autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modules.by_hand.protocol import PathEnergy, Pullback, unroll_of


class ByHand(torch.autograd.Function):
    """`ByHand.apply(function, *inputs)`: the output of a function that returns its output and its
    pullback. Autograd calls the pullback, which takes fewer operations than autograd's own; it
    can't be differentiated again."""

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


def differentiable_energy(energy: PathEnergy, states: Tensor, goal: Tensor) -> Tensor:
    """The energy `[B, P]` of the states `[B, P, H + 1, D]` after the first."""
    start = states[:, 0, 0]
    if not (states.requires_grad and torch.is_grad_enabled()):
        return energy(after_first(states), goal, start)[0]

    def function(states: Tensor) -> tuple[Tensor, Pullback]:
        value, slope = energy(states, goal, start)
        return value, lambda grad: (slope(1) * grad[..., None],)

    return ByHand.apply(function, after_first(states))


def differentiable_unroll(dynamics: nn.Module, state: Tensor, actions: Tensor) -> Tensor | None:
    """States `[B, D]`, actions `[B, P, H, A]` -> states `[B, P, H + 1, D]`. None as for
    `unroll_of`, and if there are no actions."""
    unroll = unroll_of(dynamics)
    if unroll is None or not actions.numel():
        return None
    if torch.is_grad_enabled() and (state.requires_grad or actions.requires_grad):
        states = ByHand.apply(unroll.states_and_pullback, state, actions)
    else:
        states = unroll.states(state, actions)
    return states.permute(1, 2, 0, 3)


def after_first(states: Tensor) -> Tensor:
    """`[B, P, H + 1, D]` -> the states after the first, time first, `[H, B, P, D]`."""
    return states.permute(2, 0, 1, 3)[1:]
