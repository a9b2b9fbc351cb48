"""The unroll of `MLPDynamics` with constant weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.by_hand.caches import transposed, version
from modules.by_hand.protocol import Pullback

KEPT_NUMBERS = 2**21
"""Largest number of activations in an unroll whose buffers are kept for the next."""


class MLPUnroll:
    """The unroll of an `MLPDynamics`: its weights, prepared, and the buffers that no call uses."""

    def __init__(
        self, in_weight: Tensor, in_bias: Tensor, mid_weight: Tensor, mid_bias: Tensor,
        out_weight: Tensor, out_bias: Tensor, *films: Tensor,
    ) -> None:  # fmt: skip
        """`films`: weight and bias of the modulation of both hidden layers."""
        self.in_weight, self.in_weight_t = in_weight, transposed(in_weight)
        self.mid_weight, self.mid_weight_t = mid_weight, transposed(mid_weight)
        self.out_weight, self.out_weight_t = out_weight, transposed(out_weight)
        self.out_bias = out_bias
        # rows: factor and shift of the first layer, then of the second
        self.film_weight, self.film_bias = torch.cat(films[::2]), torch.cat(films[1::2])
        self.film_bias.view(2, 2, -1)[:, 0] += 1
        # shift + factor * (u + bias) = (shift + factor * bias) + factor * u
        biases = torch.stack([in_bias, mid_bias])[..., None]
        for rows in (self.film_weight, self.film_bias[:, None]):
            factors, shifts = rows.view(2, 2, len(in_bias), -1).unbind(1)
            shifts.addcmul_(factors, biases)
        self.film_weight_t = transposed(self.film_weight)
        self.free: dict[torch.Size, list[MLPUnrollBuffers]] = {}

    def take(self, shape: torch.Size) -> MLPUnrollBuffers:
        """Buffers for actions `[B, P, H, A]` that no other call uses."""
        try:
            return self.free[shape].pop()
        except LookupError:  # none is free
            with torch.inference_mode(False):  # its buffers may be used again outside
                return MLPUnrollBuffers(self, shape)

    def give_back(self, buffers: MLPUnrollBuffers) -> None:
        """Buffers of `take` that a later call may use."""
        if buffers.inputs.numel() <= KEPT_NUMBERS:
            if len(self.free) > 8:
                self.free.clear()
            self.free.setdefault(buffers.shape, []).append(buffers)

    def states(self, state: Tensor, actions: Tensor) -> Tensor:
        """As `UnrollByHand.states`."""
        buffers = self.take(actions.shape)
        states = buffers.forward(state, actions)
        self.give_back(buffers)
        return states

    def follow(
        self, state: Tensor, act: Callable[[Tensor, int], Tensor], shape: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """States `[B, D]` -> states `[B, P, H + 1, D]` and actions `[B, P, H, A]` (`shape`), if
        every step takes the actions `act(states, step)`, `[B * P, D]` -> `[B * P, A]`. Without
        gradients."""
        buffers = self.take(shape)
        states, actions = buffers.follow(state, act)
        self.give_back(buffers)
        return states, actions

    def states_and_pullback(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """As `UnrollByHand.states_and_pullback`."""
        taken = [self.take(actions.shape)]
        states = taken[0].forward(state, actions)

        def pullback(grad: Tensor) -> tuple[Tensor | None, Tensor]:
            if taken:
                buffers = taken.pop()
            else:  # a second gradient of the same futures
                buffers = self.take(actions.shape)
                buffers.forward(state, actions)
            grads = buffers.gradient(grad, state.requires_grad)
            self.give_back(buffers)
            return grads

        return states, pullback


class StepBuffers(NamedTuple):
    """Views of the buffers of an unroll that belong to one step, `[N, ...]`."""

    factor_1: Tensor
    factor_2: Tensor
    shift_1: Tensor
    shift_2: Tensor
    u: Tensor  # product of the state and the weights of the input layer
    v: Tensor  # the same of the layer between the hidden ones
    x: Tensor  # what both activations act on
    y: Tensor
    delta: Tensor
    modulation: Tensor  # `[N, 4 F]`: factor and shift of both layers


class MLPUnrollBuffers:
    """H steps of `MLPDynamics` with constant weights, and their gradient with respect to actions
    and start alone, both written by hand: a planner's time goes into the number of operations.

    The input layer is linear, so its product u_t = W_in s_t has its own recurrence,

        d_t = W_out silu(FiLM(W_mid silu(FiLM(u_t)))) + b_out,   u_{t+1} = u_t + W_in d_t,

    and all states follow from all d_t at once. The other biases are in the shifts of FiLM. Buffers
    are `[layer, H, N, F]`, N = B * P."""

    def __init__(self, constants: MLPUnroll, shape: torch.Size) -> None:
        self.constants, self.shape = constants, shape
        batch, count, horizon, _ = shape
        rows, (hidden, size) = batch * count, constants.in_weight.shape
        new = constants.in_weight.new_empty
        modulations = new(rows, horizon, 2, 2, hidden)
        self.factors, self.shifts = modulations.permute(3, 2, 1, 0, 4).unbind(0)
        self.modulation_rows = modulations.view(rows * horizon, -1)
        self.features, self.inputs, self.slopes = (new(2, horizon, rows, hidden) for _ in range(3))
        self.path = new(horizon + 1, batch, count, size)
        self.later_states = new(horizon, horizon).fill_(1).triu_()
        self.start_state: tuple[Tensor | None, Any] = None, 0  # and its version
        # views that the steps read and write
        self.start, self.first_features = self.path[0], self.features[0, 0]
        self.start_rows = self.start.view(rows, size)
        modulation = modulations.view(rows, horizon, -1).unbind(1)
        by_layer = (*self.factors, *self.shifts, *self.features, *self.inputs)
        by_step = [part.unbind(0) for part in (*by_layer, self.path[1:].view(horizon, rows, size))]
        self.forward_steps = [
            StepBuffers(*parts) for parts in zip(*by_step, modulation, strict=True)
        ]
        self.backward_steps = list(
            zip(*(part.unbind(0) for part in (*self.shifts, *self.slopes)), strict=True)
        )[::-1]

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[B, D]`, `[B, P, H, A]` -> states `[H + 1, B, P, D]`"""
        c = self.constants
        action_rows = actions.reshape(-1, actions.shape[-1])
        torch.addmm(c.film_bias, action_rows, c.film_weight_t, out=self.modulation_rows)
        if self.start_state[0] is not state or self.start_state[1] != version(state):
            self.start.copy_(state[:, None])
            torch.mm(self.start_rows, c.in_weight_t, out=self.first_features)
            self.start_state = state, version(state)
        last: StepBuffers | None = None
        for step in self.forward_steps:
            if last is not None:
                torch.addmm(last.u, last.delta, c.in_weight_t, out=step.u)
            torch.addmm(c.out_bias, self._outputs(step), c.out_weight_t, out=step.delta)
            last = step
        return self.path.cumsum(0)

    def _outputs(self, step: StepBuffers) -> Tensor:
        """The product of the input layer -> the outputs of the last hidden layer, `[N, F]`."""
        factor_1, factor_2, shift_1, shift_2, u, v, x, y, _, _ = step
        torch.addcmul(shift_1, u, factor_1, out=x)
        torch.mm(nn.functional.silu(x), self.constants.mid_weight_t, out=v)
        torch.addcmul(shift_2, v, factor_2, out=y)
        return nn.functional.silu(y)

    def follow(self, state: Tensor, act: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
        """States `[B, D]` -> states `[B, P, H + 1, D]` and actions `[B, P, H, A]`, where every step
        takes the actions `act(states, step)` of all states `[N, D]`."""
        c, actions, self.start_state = self.constants, [], (None, 0)
        current = state if self.shape[1] == 1 else state.repeat_interleave(self.shape[1], 0)
        states = [current]
        for number, step in enumerate(self.forward_steps):
            actions.append(act(current, number))
            torch.addmm(c.film_bias, actions[-1], c.film_weight_t, out=step.modulation)
            torch.mm(current, c.in_weight_t, out=step.u)
            current = torch.addmm(current + c.out_bias, self._outputs(step), c.out_weight_t)
            states.append(current)
        batch = self.shape[:2]
        return torch.stack(states, 1).unflatten(0, batch), torch.stack(actions, 1).view(self.shape)

    def gradient(self, grad: Tensor, to_start: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of the states `[H + 1, B, P, D]`, or of those after the first -> those of the
        start `[B, D]`, or None, and of the actions `[B, P, H, A]`. The gradients of the modulations
        take the place of the modulations, so `forward` must come before each call: memory that the
        processor has at hand is scarce."""
        c, silu_backward = self.constants, torch.ops.aten.silu_backward.grad_input
        by_time = grad.reshape(len(grad), -1)
        if len(grad) == len(self.path):
            by_time = by_time[1:]
        # each state adds to all later ones
        direct = (self.later_states @ by_time).view(-1, len(self.start_rows), grad.shape[-1])
        silu_backward(self.factors, self.inputs, grad_input=self.slopes)
        grad_u = None  # [N, F], the sum over all later steps
        last = self.backward_steps[-1]
        for grad_delta, step in zip(reversed(direct.unbind(0)), self.backward_steps, strict=True):
            grad_h, grad_k, slope_1, slope_2 = step
            if grad_u is not None:
                grad_delta = torch.addmm(grad_delta, grad_u, c.in_weight)
            torch.mm(grad_delta, c.out_weight, out=grad_k)
            torch.mm(grad_k * slope_2, c.mid_weight, out=grad_h)
            if step is not last or to_start:
                grad_u = grad_h * slope_1 if grad_u is None else grad_u.addcmul_(grad_h, slope_1)
        silu_backward(self.shifts, self.inputs, grad_input=self.shifts)
        torch.mul(self.shifts, self.features, out=self.factors)
        grad_actions = (self.modulation_rows @ c.film_weight).view(self.shape)
        grad_start = None
        if to_start:
            assert grad_u is not None
            grad_start = grad.sum((0, 2)) + (grad_u @ c.in_weight).view_as(self.start).sum(1)
        return grad_start, grad_actions
