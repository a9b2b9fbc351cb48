"""Encoders of one image: to a vector, to a feature map, or to a vector by keypoints."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.nets import silu_mlp
from modules.perception.base import (
    BYTES,
    Encoder,
    ModalityShapes,
    PatchEmbed,
    image_shape,
    scale_modality,
    to_byte_range,
)
from modules.types import (
    WIDTH,
    ConfigError,
    MapShape,
    ModalityWeights,
    Observation,
    as_dict,
    validate_ranges,
)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    patch: int = 5
    """Side of the patches of the first layer, in pixels."""
    channels: int = 16
    hidden: int = 128
    state_dim: int = 32
    """D"""

    def __post_init__(self) -> None:
        validate_ranges(self, patch=WIDTH, channels=WIDTH, hidden=WIDTH, state_dim=WIDTH)

    def build(self, shapes: ModalityShapes) -> ImageEncoder:
        return ImageEncoder(self, image_shape(shapes, self.patch))


class ImageEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> vector state `[B, D]`, by patches, a convolution and an MLP."""

    def __init__(self, config: ImageEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        self.shape: MapShape = (config.state_dim, 1, 1)
        width = config.channels
        side = [-(-(pixels // config.patch) // 2) for pixels in obs_shape[1:]]
        self.layers = nn.Sequential(
            PatchEmbed(obs_shape[0], config.patch, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * prod(side), config.hidden),
            nn.LayerNorm(config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.state_dim),
        )

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        ((name, image),) = as_dict(obs).items()
        return self.layers(scale_modality(to_byte_range(image), modality_weights.get(name, 1)))


@dataclass(frozen=True, kw_only=True)
class SpatialEncoderConfig:
    patch: int = 4
    channels: int = 16
    hidden: int = 32

    def __post_init__(self) -> None:
        validate_ranges(self, patch=WIDTH, channels=WIDTH, hidden=WIDTH)

    def build(self, shapes: ModalityShapes) -> SpatialEncoder:
        return SpatialEncoder(self, image_shape(shapes, self.patch))


class SpatialEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> map state `[B, D]`, D = C' h w, which keeps spatial positions."""

    def __init__(self, config: SpatialEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        height, width = (pixels // config.patch for pixels in obs_shape[1:])
        self.shape: MapShape = (config.channels, height, width)
        self.layers = nn.Sequential(
            PatchEmbed(obs_shape[0], config.patch, config.hidden),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, padding=1),
            nn.Flatten(),
        )

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        ((name, image),) = as_dict(obs).items()
        return self.layers(scale_modality(to_byte_range(image), modality_weights.get(name, 1)))


class SpatialSoftmax(nn.Module):
    """Images `[B, C, S, S]` from 0 to 1 -> x and y, from -1 to 1, of several keypoints: the mean
    position of each feature map under a softmax over positions (deep spatial autoencoders, Finn et
    al. 2016)."""

    def __init__(
        self, in_channels: int, channels: int, points: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.feature_maps = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2),
            nn.SiLU(),
            nn.Conv2d(channels, points, 1),
        )
        self.sharpness = nn.Parameter(torch.full((points, 1), 3.0))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 2 * points]`, all x first"""
        maps = self.feature_maps(image)
        size = maps.shape[-2:]
        normalized = nn.functional.layer_norm(maps.flatten(2), (size.numel(),))
        attention = (self.sharpness * normalized).softmax(-1).unflatten(-1, size)
        x, y = (
            mass @ torch.linspace(-1, 1, mass.shape[-1], dtype=mass.dtype, device=mass.device)
            for mass in (attention.sum(-2), attention.sum(-1))  # [B, points, width or height]
        )
        return torch.cat([x, y], -1)


@dataclass(frozen=True, kw_only=True)
class KeypointEncoderConfig:
    kernel: int = 5
    stride: int = 2
    channels: int = 8
    points: int = 8
    """Number of keypoints."""
    current_channels: tuple[int, ...] = ()
    """Channels of the image that show the latest frame; empty: all."""
    previous_channels: tuple[int, ...] = ()
    """Channels that show the frame before, as many; empty: the image shows one frame."""
    motion_scale: float = 8.0
    """Factor on the motion of the keypoints, relative to their positions."""
    hidden: int = 64
    state_dim: int = 4
    """D"""

    def __post_init__(self) -> None:
        validate_ranges(
            self, kernel=WIDTH, stride=WIDTH, channels=WIDTH, points=WIDTH, hidden=WIDTH
        )
        validate_ranges(
            self,
            motion_scale=(0.0, 1e6),
            state_dim=WIDTH,
            current_channels=(0, 65_535),
            previous_channels=(0, 65_535),
        )
        current, previous = len(self.current_channels), len(self.previous_channels)
        if previous and previous != current:
            raise ConfigError(
                f"current_channels has {current} channels and previous_channels {previous}; "
                "they must have as many"
            )

    def build(self, shapes: ModalityShapes) -> KeypointEncoder:
        shape = image_shape(shapes, self.kernel)
        for channel in (*self.current_channels, *self.previous_channels):
            if not 0 <= channel < shape[0]:
                raise ConfigError(
                    f"channel {channel} of an image that has {shape[0]}; current_channels and "
                    f"previous_channels must be from 0 to {shape[0] - 1}"
                )
        return KeypointEncoder(self, shape)


class KeypointEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> vector state `[B, D]`, by keypoints (`SpatialSoftmax`). If an
    observation shows two frames, the motion of the keypoints is an input of the MLP too (latent
    flow, Shang et al. 2021): a small difference of large numbers, which layers on both frames are
    slow to learn."""

    def __init__(self, config: KeypointEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        self.shape: MapShape = (config.state_dim, 1, 1)
        self.current_channels = list(config.current_channels or range(obs_shape[0]))
        self.previous_channels = list(config.previous_channels)
        self.motion_scale = config.motion_scale
        self.points = SpatialSoftmax(
            len(self.current_channels), config.channels, config.points, config.kernel, config.stride
        )
        num_frames = 2 if self.previous_channels else 1
        self.layers = silu_mlp(2 * config.points * num_frames, config.hidden, config.state_dim)

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        ((name, image),) = as_dict(obs).items()
        image = scale_modality(to_byte_range(image), modality_weights.get(name, 1))
        pixels = image.to(self.points.sharpness.dtype) / BYTES
        points = self.points(pixels[:, self.current_channels])
        if not self.previous_channels:
            return self.layers(points)
        motion = self.motion_scale * (points - self.points(pixels[:, self.previous_channels]))
        return self.layers(torch.cat([points, motion], -1))
