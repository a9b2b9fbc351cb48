"""Networks of `modules/nets.py` with constant weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modules.by_hand.caches import DerivedFromWeights, own_weights, transposed
from modules.by_hand.convolution import MapConvolution, to_cells
from modules.nets import ConvHead
from modules.types import MapShape


class MLPConstants:
    """A `silu_mlp` with constant weights, `[N, size]` -> `[N, out]`, and the gradient with respect
    to its input alone."""

    def __init__(self, *weights: Tensor) -> None:
        """Weight and bias of each of the three layers."""
        self.weights, self.biases = weights[::2], weights[1::2]
        self.transposed = [transposed(weight) for weight in self.weights]
        # of a caller that passes the same tensor many times: the tensor, its version, the output
        self.last_input: tuple[Any, int, Any] = (None, 0, None)

    @staticmethod
    def weights_of(layers: nn.Module) -> list[Tensor] | None:
        """None for layers that are no `silu_mlp`."""
        if not isinstance(layers, nn.Sequential):
            return None
        if [type(layer) for layer in layers] != [nn.Linear, nn.SiLU] * 2 + [nn.Linear]:
            return None
        return own_weights(*layers)

    def forward(self, inputs: Tensor, first_bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The numbers before both activations, and the output. `first_bias` `[N, hidden]`: another
        bias of the first layer."""
        silu, bias = nn.functional.silu, self.biases[0] if first_bias is None else first_bias
        first = torch.addmm(bias, inputs, self.transposed[0])
        second = torch.addmm(self.biases[1], silu(first), self.transposed[1])
        return first, second, torch.addmm(self.biases[2], silu(second), self.transposed[2])

    def gradient(self, grad: Tensor, *inner: Tensor, scale: float = 1) -> Tensor:
        """The gradient of the output -> that of the input, times `scale`. `inner`: the numbers
        before the activations."""
        silu_backward, (first, second) = torch.ops.aten.silu_backward, inner
        grad_second = torch.addmm(second, grad, self.weights[2], beta=0, alpha=scale)
        grad = silu_backward(grad_second, second)
        return silu_backward(grad @ self.weights[1], first) @ self.weights[0]


class ConvHeadConstants(MLPConstants):
    """A `ConvHead` with constant weights, `[N, D]` -> `[N, out]`, as `MLPConstants`."""

    def __init__(self, shape: MapShape, *weights: Tensor) -> None:
        """Weight and bias of both convolutions, then of the MLP."""
        self.channels, self.conv_biases = shape[0], weights[1:4:2]
        both = (MapConvolution.with_pullback(weight, shape[1:]) for weight in weights[0:4:2])
        self.convolutions, self.pullbacks = zip(*both, strict=True)
        by_cell = to_cells(weights[4], len(weights[2])).flatten(1)
        super().__init__(by_cell, *weights[5:])

    @staticmethod
    def weights_of(layers: nn.Module) -> list[Tensor] | None:
        """None for layers that are no `ConvHead`."""
        if type(layers) is ConvHead:
            _, first, _, second, _, _, mlp = layers.layers
            return own_weights(first, second, *mlp.children())
        return None

    def forward(self, inputs: Tensor, first_bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The numbers before all four activations, and the output."""
        silu, cells = nn.functional.silu, to_cells(inputs, self.channels)
        cells = cells.reshape(-1, self.channels)
        one = self.convolutions[0](cells).add_(self.conv_biases[0])
        two = self.convolutions[1](silu(one)).add_(self.conv_biases[1])
        return one, two, *super().forward(silu(two).view(len(inputs), -1), first_bias)

    def gradient(self, grad: Tensor, *inner: Tensor, scale: float = 1) -> Tensor:
        silu_backward, (one, two, *rest) = torch.ops.aten.silu_backward.grad_input, inner
        grad_two = super().gradient(grad, *rest, scale=scale).view_as(two)
        grad_one = self.pullbacks[1](silu_backward(grad_two, two, grad_input=grad_two))
        grad_cells = self.pullbacks[0](silu_backward(grad_one, one, grad_input=grad_one))
        return grad_cells.view(len(grad), -1, self.channels).mT.flatten(1)


def embedding_constants(
    layers: nn.Module, kept: DerivedFromWeights[MLPConstants]
) -> MLPConstants | None:
    """A `silu_mlp` or a `ConvHead` with constant weights, kept in `kept`. None for other layers,
    and as for `DerivedFromWeights.get`."""
    weights = MLPConstants.weights_of(layers)
    if weights is not None:
        return kept.get(weights, lambda: MLPConstants(*weights))
    conv_weights = ConvHeadConstants.weights_of(layers)
    if conv_weights is None:
        return None
    return kept.get(conv_weights, lambda: ConvHeadConstants(layers.shape, *conv_weights))  # type: ignore[arg-type]
