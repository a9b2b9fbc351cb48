"""Any number of senses become one vector state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.layers import FAR, LARGE, Waves, mean_and_spread, mlp, renewed
from modules.perception.common import ADAPTED, Encoder, ScaledPatches, Shapes, amplify
from modules.types import WIDTH, Gains, Observation, Shape, UnusableInput, by_sense, require

LONG = 64
"""Patches to the longer side of a picture."""


class ImageSense(nn.Sequential):
    """Pixels `[B, C, S, S]` -> features `[B, F]`."""

    def __init__(self, shape: tuple[int, ...], config: Senses.Config) -> None:
        patch = config.patch or patch_of(shape[1:])
        side = [-(-(pixels // patch) // 2) for pixels in shape[1:]]
        super().__init__(
            ScaledPatches(shape[0], patch, 16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * prod(side), 2 * config.hidden),
            nn.LayerNorm(2 * config.hidden),
            nn.SiLU(),
            nn.Linear(2 * config.hidden, config.image),
        )
        self.out = config.image

    def adapt(self, part: Tensor) -> None:
        """Takes pictures `[N, C, S, S]` as the range of every channel."""
        self[0].adapt(part)  # type: ignore[operator]


def patch_of(sides: tuple[int, ...]) -> int:
    """About 8 patches to the shorter side, and so few to the longer one that the layers above stay
    small."""
    shorter, longer = min(sides), max(sides)
    return max(1, shorter // 8, min(shorter, longer // LONG))


class VectorSense(nn.Module):
    """Numbers `[B, N]`, or a set of things alike `[B, K, N]` -> features `[B, F]` or `[B, K F]`:
    the same layers for every thing."""

    def __init__(self, shape: tuple[int, ...], config: Senses.Config) -> None:
        super().__init__()
        self.waves = Waves(shape[-1], config.waves, config.detail)
        self.layers = mlp(self.waves.out, config.hidden, config.vector)
        self.out = prod(shape[:-1]) * config.vector

    def forward(self, part: Tensor) -> Tensor:
        return self.layers(self.waves(part)).flatten(1)


class PlainSense(nn.Module):
    """Numbers `[B, ...]` as they are, each in its own unit, `[B, F]`. They are centred in the
    precision in which they come: a clock of seconds since 1970 has none left in float32."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out = prod(shape)
        self.register_buffer("mean", torch.zeros(self.out, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.out, dtype=torch.float64))

    def adapt(self, part: Tensor) -> None:
        """Takes observations `[N, ...]` as the unit; what never varied keeps its own."""
        mean, spread = mean_and_spread(part.flatten(1))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def renew(self, part: Tensor) -> None:
        """Takes new units for those numbers that observations `[N, ...]` have left."""
        numbers = part.flatten(1).double()
        mean, spread = mean_and_spread(numbers)
        away, centre_away = (numbers - self.mean).abs().amax(0), (numbers - mean).abs().amax(0)
        left = renewed(away, spread, self.scale, self.scale == 1) != self.scale
        unit = torch.where(self.scale == 1, centre_away, torch.maximum(spread, centre_away / LARGE))
        self.mean.copy_(torch.where(left, mean, self.mean))
        self.scale.copy_(torch.where(left, unit, self.scale))

    def strays(self, part: Tensor) -> Tensor:
        """Whether any number of observations `[N, ...]` is far outside its unit."""
        return (self(part).abs() > FAR).any()

    def forward(self, part: Tensor) -> Tensor:
        numbers = part.flatten(1)
        numbers = numbers if numbers.is_floating_point() else numbers.double()
        centred = (numbers - self.mean.to(numbers)) / self.scale.to(numbers)
        return centred.to(torch.get_default_dtype())


NUMBERS = 4096
"""Observations that numbers take their unit from."""

SENSES = {1: "a vector [N]", 2: "a set of things [K, N]", 3: "an image [channels, height, width]"}


class Senses(Encoder):
    """Any number of senses by name, vectors, sets of things, images -> one vector state `[B, D]`.

    Each has a part of the state to itself, so that none crowds out another; its gain scales that
    part, and a sense of gain 0 is not there."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 8
        """Pixels to a side of what the first layer sees of an image at once; 0: about an eighth of
        the shorter side of each image."""
        hidden: int = 64
        vector: int = 16
        """Numbers of the state for a vector, and for each thing of a set; 0: the numbers of the
        sense themselves, in units of what was seen first."""
        image: int = 32
        """Numbers of the state for an image."""
        waves: int = 16
        """Waves in which vectors are seen."""
        detail: float = 4.0
        """Radians per unit of a vector: how fine they are."""

        def __post_init__(self) -> None:
            require(self, patch=(0, 65_536), hidden=WIDTH, vector=(0, 65_536), image=WIDTH)
            require(self, waves=(0, 65_536), detail=(0.0, 1e6))

        def build(self, shapes: Shapes) -> Senses:
            for name, shape in shapes.items():
                if len(shape) not in SENSES or (len(shape) == 3 and min(shape[1:]) < self.patch):
                    raise UnusableInput(
                        f"{name!r} delivers {shape}; needed is {', '.join(SENSES.values())} of at "
                        f"least {self.patch} by {self.patch} pixels (perception.patch)"
                    )
            return Senses(self, shapes)

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__()
        self.names = {_key(name): name for name in shapes}
        self.senses = nn.ModuleDict({_key(n): _sense(part, config) for n, part in shapes.items()})
        self.shape: Shape = (sum(sense.out for sense in self.senses.values()), 1, 1)  # type: ignore[misc]

    @property
    def adapts(self) -> Mapping[str, int]:
        counts = {PlainSense: NUMBERS, ImageSense: ADAPTED}
        found = {name: counts.get(type(self.senses[key]), 0) for key, name in self.names.items()}
        return {name: count for name, count in found.items() if count}

    def adapt(self, obs: Observation) -> None:
        """Takes observations `[N, *O]` as the unit of those senses that have one."""
        for key, sense in self.senses.items():
            if isinstance(sense, PlainSense | ImageSense):
                sense.adapt(by_sense(obs)[self.names[key]])

    def standardised(self) -> dict[str, PlainSense]:
        """The branches that have a unit for each number, by the name of what they read."""
        found = {self.names[key]: branch for key, branch in self.senses.items()}
        return {name: b for name, b in found.items() if isinstance(b, PlainSense)}

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        parts, names = by_sense(obs), self.names
        heard = (
            amplify(s(parts[names[k]]), gains.get(names[k], 1)) for k, s in self.senses.items()
        )
        return torch.cat(list(heard), 1)


def _key(name: str) -> str:
    """What a module may be called: not as what every dictionary of modules can do or has."""
    return f"sense {name}" if not name or hasattr(nn.ModuleDict(), name) else name


def _sense(shape: tuple[int, ...], config: Senses.Config) -> nn.Module:
    if len(shape) == 3:
        return ImageSense(shape, config)
    return VectorSense(shape, config) if config.vector else PlainSense(shape)
