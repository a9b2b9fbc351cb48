"""One image becomes a state: as a vector, as a map that keeps *where* things are, or by points."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.layers import mlp
from modules.perception.common import Encoder, Patches, Shapes, amplify, image_of, in_bytes
from modules.types import WIDTH, Gains, Observation, Shape, UnusableInput, by_sense, require


class VectorEncoder(Encoder):
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
            require(self, patch=WIDTH, channels=WIDTH, hidden=WIDTH, state=WIDTH)

        def build(self, shapes: Shapes) -> VectorEncoder:
            return VectorEncoder(self, image_of(shapes, self.patch))

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
        ((name, image),) = by_sense(obs).items()
        return self.layers(amplify(in_bytes(image), gains.get(name, 1)))


class MapEncoder(Encoder):
    """Pixels `[B, C, S, S]` uint8 -> map state `[B, D]`, D = C' h w; places keep their places."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        patch: int = 4
        channels: int = 16
        hidden: int = 32

        def __post_init__(self) -> None:
            require(self, patch=WIDTH, channels=WIDTH, hidden=WIDTH)

        def build(self, shapes: Shapes) -> MapEncoder:
            return MapEncoder(self, image_of(shapes, self.patch))

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
        ((name, image),) = by_sense(obs).items()
        return self.layers(amplify(in_bytes(image), gains.get(name, 1)))


class Points(nn.Module):
    """Images `[B, C, S, S]` from 0 to 1 -> x and y, from -1 to 1, of several features: the mean
    place of each under a softmax over places (deep spatial autoencoders, Finn et al. 2016)."""

    def __init__(self, seen: int, channels: int, points: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(seen, channels, kernel, stride, kernel // 2),
            nn.SiLU(),
            nn.Conv2d(channels, points, 1),
        )
        self.sharpness = nn.Parameter(torch.full((points, 1), 3.0))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 2 * points]`, x of all of them first"""
        maps = self.look(image)
        size = maps.shape[-2:]
        loud = nn.functional.layer_norm(maps.flatten(2), (size.numel(),))
        there = (self.sharpness * loud).softmax(-1).unflatten(-1, size)
        across, down = there.sum(-2), there.sum(-1)  # [B, points, width], [B, points, height]
        x, y = (
            share @ torch.linspace(-1, 1, share.shape[-1], dtype=share.dtype, device=share.device)
            for share in (across, down)
        )
        return torch.cat([x, y], -1)


class KeypointEncoder(Encoder):
    """Pixels `[B, C, S, S]` uint8 -> vector state `[B, D]`, by way of points: every feature map
    says where its feature is, as the mean place under a softmax over places (deep spatial
    autoencoders, Finn et al. 2016). Where an observation shows two moments, how the points have
    moved is seen too (latent flow, Shang et al. 2021): a small difference of large numbers, which
    layers upon both moments are slow to find."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        kernel: int = 5
        stride: int = 2
        channels: int = 8
        points: int = 8
        """Features whose place is seen."""
        now: tuple[int, ...] = ()
        """Channels of the image that show the latest moment; all where none is named."""
        before: tuple[int, ...] = ()
        """Channels that show the moment before, as many; none where the image shows but one."""
        motion: float = 8.0
        """How much larger than places movements are taken."""
        hidden: int = 64
        state: int = 4
        """D"""

        def __post_init__(self) -> None:
            require(self, kernel=WIDTH, stride=WIDTH, channels=WIDTH, points=WIDTH, hidden=WIDTH)
            require(self, motion=(0.0, 1e6), state=WIDTH, now=(0, 65_535), before=(0, 65_535))
            if self.before and len(self.before) != len(self.now):
                raise UnusableInput(
                    f"now has {len(self.now)} channels and before {len(self.before)}; one moment "
                    "must have as many as the other"
                )

        def build(self, shapes: Shapes) -> KeypointEncoder:
            shape = image_of(shapes, self.kernel)
            for channel in (*self.now, *self.before):
                if not 0 <= channel < shape[0]:
                    raise UnusableInput(
                        f"channel {channel} of an image that has {shape[0]}; now and before must "
                        f"name some of 0 to {shape[0] - 1}"
                    )
            return KeypointEncoder(self, shape)

    def __init__(self, config: Config, obs_shape: Shape) -> None:
        super().__init__()
        self.shape: Shape = (config.state, 1, 1)
        self.now = list(config.now or range(obs_shape[0]))
        self.before, self.motion = list(config.before), config.motion
        self.points = Points(
            len(self.now), config.channels, config.points, config.kernel, config.stride
        )
        moments = 2 if self.before else 1
        self.layers = mlp(2 * config.points * moments, config.hidden, config.state)

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        ((name, image),) = by_sense(obs).items()
        seen = amplify(in_bytes(image), gains.get(name, 1)).to(self.points.sharpness.dtype) / 255
        points = self.points(seen[:, self.now])
        if not self.before:
            return self.layers(points)
        moved = self.motion * (points - self.points(seen[:, self.before]))
        return self.layers(torch.cat([points, moved], -1))
