"""Perception: what the senses deliver becomes a latent state.

Three encoders, interchangeable: a vector state from one image, a map state that keeps *where*
things are, and a vector state from any number of senses, vectors, things and images. All hand out
flat states `[B, D]` and say in `shape` how D folds into `[C, h, w]` (a vector is 1 by 1).

Perception is primed by gains: how much of what a sense delivers comes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.layers import Waves, mlp
from modules.types import Gains, Observation, Shape, UnusableInput, by_sense, require

Shapes = Mapping[str, tuple[int, ...]]
"""What each sense delivers, by name."""


def _image(shapes: Shapes, patch: int) -> Shape:
    """The shape of the one image there is; raises UnusableInput for anything else."""
    found = [shape for shape in shapes.values() if _is_image(shape, patch)]
    if len(shapes) != 1 or not found:
        raise UnusableInput(
            f"observations of shape {_told(shapes)} are no images [channels, height, width] "
            f"of at least {patch} by {patch} pixels, which this perception needs"
        )
    return found[0]  # type: ignore[return-value]


def _is_image(shape: tuple[int, ...], patch: int) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= patch


def _told(shapes: Shapes) -> str:
    return " ".join(str(s) if n == "obs" else f"{n} {s}" for n, s in shapes.items())


def amplify(part: Tensor, gain: float | Tensor) -> Tensor:
    """`[B, ...]` times its gain, one number or `[B]`."""
    if isinstance(gain, Tensor):
        return part * gain.reshape(-1, *[1] * (part.ndim - 1))
    return part if gain == 1 else part * gain


class Patches(nn.Module):
    """The first layer of both: every patch of `[N, C, S, S]` uint8 pixels by itself -> `[N, C', h,
    w]`. A matrix product over bytes rearranged is several times faster than a strided convolution,
    and pixels beyond the last whole patch are not seen, as in a vision transformer."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)

    def forward(self, obs: Tensor) -> Tensor:
        size = self.patch
        pieces = obs.unfold(2, size, size).unfold(3, size, size)  # [N, C, h, w, p, p]
        pieces = pieces.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [N, h, w, C p p], still bytes
        weight = self.project.weight
        return nn.functional.linear(
            pieces.to(weight.dtype), weight / 255, self.project.bias
        ).permute(0, 3, 1, 2)


class VectorEncoder(nn.Module):
    """Pixels `[B, C, S, S]` uint8 -> vector state `[B, D]`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 5
        """Pixels to a side of what the first layer sees at once."""
        channels: int = 16
        hidden: int = 128
        state: int = 32
        """D"""

        def __post_init__(self) -> None:
            require(self, patch=1, channels=1, hidden=1, state=1)

        def build(self, shapes: Shapes) -> VectorEncoder:
            return VectorEncoder(self, _image(shapes, self.patch))

    def __init__(self, config: Config, obs_shape: Shape) -> None:
        super().__init__()
        self.shape: Shape = (config.state, 1, 1)
        width = config.channels
        side = [-(-(pixels // config.patch) // 2) for pixels in obs_shape[1:]]
        self.layers = nn.Sequential(
            Patches(obs_shape[0], config.patch, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * prod(side), config.hidden),
            nn.LayerNorm(config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.state),
        )

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        (image,) = by_sense(obs).values()
        return self.layers(amplify(image, gains.get("obs", 1)))


class MapEncoder(nn.Module):
    """Pixels `[B, C, S, S]` uint8 -> map state `[B, D]`, D = C' h w; places keep their places."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 4
        channels: int = 16
        hidden: int = 32

        def __post_init__(self) -> None:
            require(self, patch=1, channels=1, hidden=1)

        def build(self, shapes: Shapes) -> MapEncoder:
            return MapEncoder(self, _image(shapes, self.patch))

    def __init__(self, config: Config, obs_shape: Shape) -> None:
        super().__init__()
        height, width = (pixels // config.patch for pixels in obs_shape[1:])
        self.shape: Shape = (config.channels, height, width)
        self.layers = nn.Sequential(
            Patches(obs_shape[0], config.patch, config.hidden),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, padding=1),
            nn.Flatten(),
        )

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        (image,) = by_sense(obs).values()
        return self.layers(amplify(image, gains.get("obs", 1)))


class ImageSense(nn.Sequential):
    """Pixels `[B, C, S, S]` -> features `[B, F]`."""

    def __init__(self, shape: tuple[int, ...], config: Senses.Config) -> None:
        side = [-(-(pixels // config.patch) // 2) for pixels in shape[1:]]
        super().__init__(
            Patches(shape[0], config.patch, 16),
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


SENSES = {1: "a vector [N]", 2: "a set of things [K, N]", 3: "an image [channels, height, width]"}


class Senses(nn.Module):
    """Any number of senses by name, vectors, sets of things, images -> one vector state `[B, D]`.

    Each has a part of the state to itself, so that none crowds out another; its gain scales that
    part, and a sense of gain 0 is not there."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 8
        """Pixels to a side of what the first layer sees of an image at once."""
        hidden: int = 64
        vector: int = 16
        """Numbers of the state for a vector, and for each thing of a set."""
        image: int = 32
        """Numbers of the state for an image."""
        waves: int = 16
        """Waves in which vectors are seen."""
        detail: float = 4.0
        """Radians per unit of a vector: how fine they are."""

        def __post_init__(self) -> None:
            require(self, patch=1, hidden=1, vector=1, image=1, waves=0, detail=0)

        def build(self, shapes: Shapes) -> Senses:
            for name, shape in shapes.items():
                if len(shape) not in SENSES or (len(shape) == 3 and min(shape[1:]) < self.patch):
                    raise UnusableInput(
                        f"{name!r} delivers {shape}; needed is {', '.join(SENSES.values())} of at "
                        f"least {self.patch} by {self.patch} pixels"
                    )
            return Senses(self, shapes)

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__()
        self.senses = nn.ModuleDict(
            {
                name: (ImageSense if len(shape) == 3 else VectorSense)(shape, config)
                for name, shape in shapes.items()
            }
        )
        self.shape: Shape = (sum(sense.out for sense in self.senses.values()), 1, 1)  # type: ignore[misc]

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        parts = by_sense(obs)
        heard = (amplify(s(parts[name]), gains.get(name, 1)) for name, s in self.senses.items())
        return torch.cat(list(heard), 1)


Perception = VectorEncoder | MapEncoder | Senses
