"""Small stacks of layers that several boxes are made of."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from modules.types import Shape, UnusableInput


def mlp(size: int, hidden: int, out: int) -> nn.Sequential:
    """`[..., size]` -> two hidden layers -> `[..., out]`"""
    return nn.Sequential(
        nn.Linear(size, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    )


def first_of(aims: int, shape: Shape) -> int:
    """So many numbers of a state, where it has them; UnusableInput where it has fewer."""
    if aims > prod(shape):
        raise UnusableInput(f"aims is {aims}, but a state has {prod(shape)} numbers")
    return aims


class First(nn.Module):
    """`[..., D]` -> the first so many numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, state: Tensor) -> Tensor:
        return state[..., : self.count]


class InUnits(nn.Module):
    """Layers that answer `[..., N]` numbers, each in its own unit."""

    mean: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def adapt(self, answers: Tensor) -> None:
        """Takes the units of what is to be answered, `[M, N]`, as its own. What never varied so far
        may yet, and has the unit 1."""
        spread = answers.std(0)
        self.mean.copy_(answers.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`"""
        return self.mean + self.scale * self.layers(state)


def sharp(size: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """`[..., size]` -> three hidden layers with kinks -> `[..., out]`: for functions that change
    within a small part of the state space, which smooth layers are slow to learn. `norm`: with
    LayerNorm."""
    layers: list[nn.Module] = []
    for wide in (size, hidden, hidden):
        normed = [nn.LayerNorm(hidden)] if norm else []
        layers += [nn.Linear(wide, hidden), *normed, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out))


class Judges(nn.ModuleList):
    """Several that answer the same question, each in its own way, `[..., D]` -> `[K, ..., N]`."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.stack([judge(state) for judge in self])


class Waves(nn.Module):
    """Numbers `[..., N]` -> the numbers and waves of them at random wavelengths, `[..., N + 2 W]`:
    a small difference becomes a large one, which a few layers alone are slow to learn (Fourier
    features, Tancik et al. 2020)."""

    directions: Tensor

    def __init__(self, size: int, waves: int, detail: float) -> None:
        super().__init__()
        self.out = size + 2 * waves
        self.register_buffer("directions", detail * torch.randn(size, waves))

    def forward(self, numbers: Tensor) -> Tensor:
        numbers = numbers.to(self.directions.dtype)
        phase = numbers @ self.directions
        return torch.cat([numbers, phase.sin(), phase.cos()], -1)


def in_waves(size: int, waves: int, detail: float, out: int) -> nn.Sequential:
    """`[..., size]` -> what is linear in numbers and waves of them, `[..., out]`"""
    seen = Waves(size, waves, detail)
    return nn.Sequential(seen, nn.Linear(seen.out, out))


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
