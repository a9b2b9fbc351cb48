"""Small stacks of layers that several boxes are made of."""

from __future__ import annotations

from torch import Tensor, nn

from modules.types import Shape


def mlp(size: int, hidden: int, out: int) -> nn.Sequential:
    """`[..., size]` -> two hidden layers -> `[..., out]`"""
    return nn.Sequential(
        nn.Linear(size, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    )


class Neighbourhoods(nn.Module):
    """Flat states `[..., D]`, folded into maps -> two convolutions, an MLP -> `[..., out]`."""

    def __init__(self, shape: Shape, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(-1, shape),
            nn.Conv2d(shape[0], channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            mlp(channels * shape[1] * shape[2], hidden, out),
        )

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state.flatten(0, -2)).unflatten(0, state.shape[:-1])
