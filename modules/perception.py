"""Perception: what the senses deliver becomes a latent state.

Two encoders, interchangeable: a vector state, and a map state that keeps *where* things are. Both
hand out flat states `[B, D]` and say in `shape` how D folds into `[C, h, w]` (a vector is 1 by 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from modules.types import Shape, UnusableInput, require


def _check_image(shape: tuple[int, ...], patch: int) -> None:
    if len(shape) != 3 or min(shape[1:]) < patch:
        raise UnusableInput(
            f"observations of shape {shape} are no images [channels, height, width] "
            f"of at least {patch} by {patch} pixels, which this perception needs"
        )


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

        def build(self, obs_shape: tuple[int, ...]) -> VectorEncoder:
            _check_image(obs_shape, self.patch)
            return VectorEncoder(self, (obs_shape[0], obs_shape[1], obs_shape[2]))

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

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


class MapEncoder(nn.Module):
    """Pixels `[B, C, S, S]` uint8 -> map state `[B, D]`, D = C' h w; places keep their places."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 4
        channels: int = 16
        hidden: int = 32

        def __post_init__(self) -> None:
            require(self, patch=1, channels=1, hidden=1)

        def build(self, obs_shape: tuple[int, ...]) -> MapEncoder:
            _check_image(obs_shape, self.patch)
            return MapEncoder(self, (obs_shape[0], obs_shape[1], obs_shape[2]))

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

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


Perception = VectorEncoder | MapEncoder
