"""The unroll of `ConvDynamics` with constant weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modules.by_hand.caches import transposed, version
from modules.by_hand.convolution import MapConvolution, to_cells
from modules.by_hand.protocol import Pullback
from modules.types import MapShape


class ConvUnroll:
    """The unroll of a `ConvDynamics`, with its weights, prepared. Inside, maps are cells
    `[N, h w, C]`, N = B * P."""

    def __init__(
        self, shape: MapShape, in_weight: Tensor, in_bias: Tensor, film_weight: Tensor,
        film_bias: Tensor, mid_weight: Tensor, mid_bias: Tensor, out_weight: Tensor,
        out_bias: Tensor,
    ) -> None:  # fmt: skip
        self.channels, self.hidden = shape[0], len(mid_bias)
        self.input, self.input_pullback = MapConvolution.with_pullback(in_weight, shape[1:])
        self.delta, self.delta_pullback = MapConvolution.with_pullback(out_weight, shape[1:])
        self.out_bias = out_bias
        self.film_weight, self.film_bias = film_weight.clone(), film_bias.clone()
        self.film_bias[: self.hidden] += 1
        # shift + factor * (u + bias) = (shift + factor * bias) + factor * u
        for rows in (self.film_weight, self.film_bias[:, None]):
            rows[self.hidden :].addcmul_(rows[: self.hidden], in_bias[:, None])
        self.film_weight_t = transposed(self.film_weight)
        self.mid_weight, self.mid_bias = mid_weight.flatten(1), mid_bias
        self.mid_weight_t = transposed(self.mid_weight)
        self.last_start: tuple[Any, ...] = None, 0, 0, None  # state, version, P; what it gives

    def start(self, state: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`[B, D]` -> cells `[B * P * h * w, ...]` of the states and of the input layer without
        bias; kept, because a planner imagines from the same state many times."""
        kept, kept_version, kept_count, result = self.last_start
        if kept is not state or kept_version != version(state) or kept_count != count:
            cells = to_cells(state, self.channels).reshape(-1, self.channels)
            result = tuple(
                part.unflatten(0, (len(state), 1, -1)).expand(-1, count, -1, -1).flatten(0, 2)
                for part in (cells, self.input(cells))
            )
            self.last_start = state, version(state), count, result
        return result

    def states(self, state: Tensor, actions: Tensor) -> Tensor:
        """As `UnrollByHand.states`."""
        return self.states_and_pullback(state, actions)[0]

    def states_and_pullback(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """As `UnrollByHand.states_and_pullback`."""
        silu, (batch, count, horizon, _) = nn.functional.silu, actions.shape
        to_start, shape = state.requires_grad, actions.shape
        modulations = torch.addmm(self.film_bias, actions.flatten(0, 2), self.film_weight_t)
        # [H, N, 1, F]
        factors, shifts = (
            modulations.view(batch * count, horizon, 1, -1).transpose(0, 1).chunk(2, -1)
        )
        steps: list[tuple[Tensor, ...]] = []
        start, first = self.start(state, count)
        padded = start.new_zeros(horizon + 1, len(start) + 1, self.channels)
        path = padded[:, :-1]
        path[0].copy_(start)
        by_step = zip(factors, shifts, path, padded, path[1:], strict=False)
        for factor, shift, cells, padded_cells, next_cells in by_step:
            if steps:
                first = self.input(cells, padded_cells)
            u = first.view(batch * count, -1, self.hidden)
            x = torch.addcmul(shift, u, factor)
            y = torch.addmm(self.mid_bias, silu(x).view(-1, self.hidden), self.mid_weight_t)
            steps.append((factor, u, x, y))
            torch.add(self.delta(silu(y)).add_(self.out_bias), cells, out=next_cells)
        # two copies of long rows are faster than one of single numbers
        maps = path.permute(2, 0, 1).contiguous()
        maps = maps.view(self.channels, horizon + 1, batch, count, -1).permute(1, 2, 3, 0, 4)

        def pullback(grad: Tensor) -> tuple[Tensor | None, Tensor]:
            return self._gradient(grad, steps, to_start, shape)

        return maps.flatten(-2), pullback

    def _gradient(
        self, grad: Tensor, steps: Sequence[tuple[Tensor, ...]], to_start: bool, shape: torch.Size
    ) -> tuple[Tensor | None, Tensor]:
        """The gradient of the states `[H + 1, B, P, D]`, or of those after the first -> those of
        the start `[B, D]`, or None, and of the actions (`shape`). `steps`: factor, u, x and y of
        each."""
        silu_backward = torch.ops.aten.silu_backward.grad_input
        by_time = to_cells(grad, self.channels).reshape(len(grad), -1, self.channels).unbind(0)
        padded = grad.new_zeros(len(by_time[-1]) + 1, self.channels)
        grad_state, grad_factors, grad_shifts = padded[:-1].copy_(by_time[-1]), [], []
        for step, (factor, u, x, y) in enumerate(reversed(steps), 1):
            grad_k = self.delta_pullback(grad_state, padded)
            grad_h = (silu_backward(grad_k, y, grad_input=grad_k) @ self.mid_weight).view_as(x)
            grad_x = silu_backward(grad_h, x, grad_input=grad_h)
            grad_shifts.append(grad_x.sum(1))
            grad_factors.append((grad_x * u).sum(1))
            if step < len(steps) or to_start:
                grad_u = grad_x.mul_(factor).view(-1, self.hidden)
                grad_state.add_(self.input_pullback(grad_u))
                if step < len(by_time):
                    grad_state.add_(by_time[-1 - step])
        parts = torch.stack([*grad_factors[::-1], *grad_shifts[::-1]], 1)  # [N, 2 H, F]
        by_step = parts.unflatten(1, (2, -1)).transpose(1, 2).flatten(2)
        grad_actions = (by_step @ self.film_weight).view(shape)
        if not to_start:
            return None, grad_actions
        in_cells = grad_state.view(*shape[:2], -1, self.channels).sum(1)
        return in_cells.mT.flatten(1), grad_actions
