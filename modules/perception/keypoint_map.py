"""Encoder of one image to keypoints of moving objects and a map of the static scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.nets import POSITION_SCALE
from modules.perception.base import (
    BYTES,
    Encoder,
    ModalityShapes,
    image_shape,
    scale_modality,
    to_byte_range,
)
from modules.perception.image import SpatialSoftmax
from modules.types import (
    WIDTH,
    ConfigError,
    MapShape,
    ModalityWeights,
    Observation,
    as_dict,
    validate_ranges,
)

KERNEL = 5
"""Side of the convolution that finds keypoints, in pixels."""


@dataclass(frozen=True, kw_only=True)
class KeypointMapEncoderConfig:
    current_channels: tuple[int, ...] = (1,)
    """Channels of the image that show the moving objects in the latest frame."""
    previous_channels: tuple[int, ...] = (2,)
    """Channels that show them in the frame before, as many."""
    static_channels: tuple[int, ...] = (0,)
    """Channels that show the static scene."""
    points: int = 1
    """Number of keypoints."""
    motion_scale: float = 8.0
    """Factor on the motion of the keypoints, relative to their positions from -1 to 1."""
    hidden: int = 16
    channels: int = 4
    """Channels of the map."""
    stride: int = 2
    """Pixels between the cells of the map."""

    def __post_init__(self) -> None:
        validate_ranges(self, points=WIDTH, motion_scale=(0.0, 1e6), hidden=WIDTH, channels=WIDTH)
        validate_ranges(
            self,
            stride=WIDTH,
            current_channels=(0, 65_535),
            previous_channels=(0, 65_535),
            static_channels=(0, 65_535),
        )
        current, previous = len(self.current_channels), len(self.previous_channels)
        static = len(self.static_channels)
        if not current == previous >= 1 or not static:
            raise ConfigError(
                f"current_channels has {current} channels, previous_channels {previous} and "
                f"static_channels {static}; each must have at least one, and previous_channels as "
                "many as current_channels"
            )

    def build(self, shapes: ModalityShapes) -> KeypointMapEncoder:
        channels, *sides = image_shape(shapes, KERNEL)
        if sides[0] != sides[1]:
            raise ConfigError(f"an image of {sides[0]} by {sides[1]}; it must be a square")
        for channel in (*self.current_channels, *self.previous_channels, *self.static_channels):
            if not 0 <= channel < channels:
                raise ConfigError(
                    f"channel {channel} of an image that has {channels}; current_channels, "
                    f"previous_channels and static_channels must be from 0 to {channels - 1}"
                )
        return KeypointMapEncoder(self, sides[0])


class KeypointMapEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> state `[B, D]` of two parts: position and motion of some keypoints,
    4 numbers each, and a map `[C', S', S']` of the static scene. Each part keeps its own share of
    the state, and a dynamics model that reads the map around the keypoints (`GlimpseDynamics`)
    learns the effect of walls once for all layouts."""

    def __init__(self, config: KeypointMapEncoderConfig, side: int) -> None:
        super().__init__()
        self.config = config
        self.points = SpatialSoftmax(
            len(config.current_channels), config.hidden // 2, config.points, KERNEL, 1
        )
        self.map = nn.Sequential(
            nn.Conv2d(len(config.static_channels), config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, config.stride, padding=1),
            nn.Flatten(),
        )
        map_side = -(-side // config.stride)
        self.shape: MapShape = (4 * config.points + config.channels * map_side**2, 1, 1)

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        ((name, image),) = as_dict(obs).items()
        config, dtype = self.config, self.points.sharpness.dtype
        image = scale_modality(to_byte_range(image), modality_weights.get(name, 1))
        pixels = image.to(dtype) / BYTES
        current, previous = (
            self.points(pixels[:, list(c)])
            for c in (config.current_channels, config.previous_channels)
        )
        static = self.map(pixels[:, list(config.static_channels)])
        return torch.cat(
            [POSITION_SCALE * current, config.motion_scale * (current - previous), static], 1
        )
