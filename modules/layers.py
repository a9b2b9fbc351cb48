"""Small stacks of layers that several boxes are made of."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

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


def mean_and_spread(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, N]` -> mean and standard deviation of each number, `[N]` float64. The spread is 0 where
    a number does not vary by more than its own rounding, whatever its size."""
    if not numbers.is_floating_point():
        numbers = numbers.double()
    exact, mean, spread = numbers.double(), numbers.mean(0).double(), numbers.std(0).double()
    sound = (spread > 1e-15) & (spread < 1e15)  # beyond, squares leave the range of float32
    mean = torch.where(sound, mean, exact.mean(0))
    spread = torch.where(sound, spread, exact.std(0))
    rounding = 4 * torch.finfo(numbers.dtype).eps * exact.abs().amax(0)
    return mean, torch.where(spread > rounding, spread, 0.0)


FAR = 100.0
"""In units of a number: one that is further from its mean than this has left its unit, and so has
one that never is further from it than one such part of the unit."""
LARGE = 10.0
"""How many times its spread a mean must be to be taken away from a number: it would drown it."""


def renewed(away: Tensor, spread: Tensor, scale: Tensor, unseen: Tensor) -> Tensor:
    """The units of numbers, `[N]`, that are at most `away` from their means and have this spread:
    `scale`, unless they have left it. `unseen`: those that had not varied when `scale` was found;
    these take all that they have varied by, so that a rare reward is about 1."""
    left = (spread > 0) & ((away > FAR * scale) | (away < scale / FAR))
    unit = torch.where(unseen, away, torch.maximum(spread, away / LARGE))
    return torch.where(left, unit, scale)


class InUnits(nn.Module):
    """Layers that answer `[..., N]` numbers, each in its own unit."""

    mean: Tensor
    scale: Tensor
    offset: Tensor  # [N] float64: taken away from the targets before they are cut to float32

    STILL = 1.0
    """The unit of a number that never varied, in units of its size."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size, dtype=torch.float64))

    def adapt(self, answers: Tensor, centred: Tensor | None = None) -> None:
        """Takes the units of the targets `[M, N]` as its own. What never varied so far may yet, and
        its unit is its own size, or 1 where it is 0. Of the numbers in `centred`, `[N]` bool, a
        mean that is large beside the spread becomes the offset."""
        self.offset.zero_()
        if centred is not None:
            mean, spread = mean_and_spread(answers.double())
            self.offset.copy_(torch.where(centred & _large(mean, spread), mean, 0.0))
        mean, spread = mean_and_spread(self.relative(answers))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 0, spread, self._still()))

    def relative(self, answers: Tensor) -> Tensor:
        """Targets `[..., N]` of any precision as they are learnt: less the offset."""
        return (answers.double() - self.offset).to(self.mean.dtype)

    def renew(self, answers: Tensor, centred: Tensor) -> Tensor:
        """Takes new units for those numbers that the targets `[M, N]` have left. Where a unit
        grows, what is answered stays the same (PopArt, van Hasselt et al. 2016). Returns how many
        times larger each unit is, `[N]`."""
        answers = answers.double()
        mean, spread = mean_and_spread(answers)
        unseen = (self.scale == self._still()) | (self.scale == 0)
        drowned = centred & (self.offset == 0) & _large(mean, spread)
        constant = torch.where(unseen, self.mean.double(), mean)
        offset = torch.where(drowned, constant, self.offset)
        middle = torch.where(drowned, 0.0, self.mean)
        away = (answers - offset - middle.double()).abs().amax(0)
        was = torch.where(drowned, 0.0, self.scale.double())  # too coarse: a unit of 0 is left
        unit = renewed(away, spread, was, unseen).to(self.scale.dtype)
        self.offset.copy_(offset)
        self.mean.copy_(middle)
        unit = torch.where((spread == 0) & ~centred & self.offset.any(), 0.0, unit)
        grown = torch.where((unit > 0) & (self.scale > 0), unit / self.scale, 1.0)
        self.scale.copy_(unit)
        self.rescale(grown)
        return grown

    def strays(self, answers: Tensor) -> Tensor:
        """Whether any of the targets `[M, N]` is far outside its unit."""
        return ((self.relative(answers) - self.mean).abs() > FAR * self.scale).any()

    def rescale(self, grown: Tensor) -> None:
        """Makes the outputs of the layers as much smaller as units have grown, `[N]`. What was as
        good as nothing in units that were too large stays so in smaller ones."""
        heads = self.layers if isinstance(self.layers, Judges) else [self.layers]
        with torch.no_grad():
            for head in heads:
                last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
                last.weight.div_(grown.clamp_min(1)[:, None])
                last.bias.div_(grown.clamp_min(1))

    def unit(self) -> Tensor:
        """What errors are divided by, `[N]`: an answer that can't be wrong has none."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def _still(self) -> Tensor:
        """The units of numbers that never varied, `[N]`. Beside an offset they are 0: the end of an
        episode costs all that the offset is worth from then on, so the least doubt about what was
        always 1 would drown the rest."""
        size = torch.where(self.mean == 0, 1.0, self.STILL * self.mean.abs())
        return torch.where(self.offset.any(), 0.0, size)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`"""
        return self.mean + self.scale * self.layers(state)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights of before 0.2 know no offset."""
        state_dict.setdefault(f"{prefix}offset", torch.zeros_like(self.offset))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _large(mean: Tensor, spread: Tensor) -> Tensor:
    return (spread > 0) & (mean.abs() > LARGE * spread)


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
