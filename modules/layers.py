"""Small stacks of layers that several boxes are made of."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor, nn

from modules.types import WIDTH, Shape, UnusableInput, require


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


SPREAD = 2.0
"""How much larger than from -1 to 1 the places of a scene are told: they vary by about 1, as all
that is learnt is meant to."""


class Glance(nn.Module):
    """What moves in a scene, and what its map shows around it. A scene is a flat state `[..., D]`:
    x and y of each point, how they move, then the map `[C, S, S]` of what stays (`SceneEncoder`).
    Seen from where one is, a wall is the same wherever it stands (a glimpse, Mnih et al. 2014;
    sampled between the places of the map, as spatial transformers do, Jaderberg et al. 2015)."""

    around: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        points: int = 1
        """Of the scene."""
        channels: int = 4
        """Of its map, C."""
        reach: int = 2
        """Places of the map that are seen to every side of a point."""

        def __post_init__(self) -> None:
            require(self, points=WIDTH, channels=WIDTH, reach=(0, 1000))

        def build(self, shape: Shape) -> Glance:
            side = isqrt(max(0, prod(shape) - 4 * self.points) // self.channels)
            if side < 2 or 4 * self.points + self.channels * side**2 != prod(shape):
                raise UnusableInput(
                    f"a state of {prod(shape)} numbers is no scene of {self.points} points and a "
                    f"map of {self.channels} channels; perception must be a SceneEncoder of both"
                )
            return Glance(self, side)

    def __init__(self, config: Config, side: int) -> None:
        super().__init__()
        self.map, self.moving = (config.channels, side, side), 4 * config.points
        steps = torch.arange(-config.reach, config.reach + 1) * (2 / (side - 1))
        across = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        self.register_buffer("around", across.flatten(0, 1))  # [R, 2], in halves of the map
        self.out = self.moving + config.points * config.channels * len(self.around)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., out]`, what moves first"""
        flat = state.flatten(0, -2)
        moving, still = flat.split([self.moving, flat.shape[-1] - self.moving], -1)
        place = moving[:, : self.moving // 2].unflatten(-1, (2, -1)).mT / SPREAD  # [N, K, 2]
        seen = nn.functional.grid_sample(
            still.unflatten(-1, self.map), place[:, :, None] + self.around,
            align_corners=True, padding_mode="border",
        )  # fmt: skip
        return torch.cat([moving, seen.flatten(1)], -1).unflatten(0, state.shape[:-1])
