"""A scene: what moves, by points, before what stays, by a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.nets import POSITION_SCALE
from modules.perception.base import (
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
"""Pixels to a side of what a point is found by."""


@dataclass(frozen=True, kw_only=True)
class KeypointMapEncoderConfig:
    current_channels: tuple[int, ...] = (1,)
    """Channels of the image that show what moves, at the latest moment."""
    previous_channels: tuple[int, ...] = (2,)
    """Channels that show it at the moment before, as many."""
    static_channels: tuple[int, ...] = (0,)
    """Channels that show what stays as it is."""
    points: int = 1
    """Things that move."""
    motion_scale: float = 8.0
    """How much larger than places, from -1 to 1, movements are taken."""
    hidden: int = 16
    channels: int = 4
    """Of the map."""
    stride: int = 2
    """Pixels between the places of the map."""

    def __post_init__(self) -> None:
        validate_ranges(self, points=WIDTH, motion_scale=(0.0, 1e6), hidden=WIDTH, channels=WIDTH)
        validate_ranges(
            self,
            stride=WIDTH,
            current_channels=(0, 65_535),
            previous_channels=(0, 65_535),
            static_channels=(0, 65_535),
        )
        if (
            not len(self.current_channels) == len(self.previous_channels) >= 1
            or not self.static_channels
        ):
            raise ConfigError(
                f"current_channels has {len(self.current_channels)} channels, previous_channels {len(self.previous_channels)} and static_channels "
                f"{len(self.static_channels)}; each must have one, and previous_channels as many as current_channels"
            )

    def build(self, shapes: ModalityShapes) -> KeypointMapEncoder:
        channels, *sides = image_shape(shapes, KERNEL)
        if sides[0] != sides[1]:
            raise ConfigError(f"an image of {sides[0]} by {sides[1]}; it must be a square")
        for channel in (*self.current_channels, *self.previous_channels, *self.static_channels):
            if not 0 <= channel < channels:
                raise ConfigError(
                    f"channel {channel} of an image that has {channels}; current_channels, previous_channels and static_channels "
                    f"must name some of 0 to {channels - 1}"
                )
        return KeypointMapEncoder(self, sides[0])


class KeypointMapEncoder(Encoder):
    """Pixels `[B, C, S, S]` uint8 -> state `[B, D]` of two parts: x and y of some points and how
    they have moved, 4 numbers each, and a map of what else the image shows. A body and the walls
    around it don't crowd each other out, and dynamics that glance at the map around the body learn
    what walls do once for all layouts."""

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
        pixels = scale_modality(to_byte_range(image), modality_weights.get(name, 1)).to(dtype) / 255
        current, previous = (
            self.points(pixels[:, list(c)])
            for c in (config.current_channels, config.previous_channels)
        )
        static = self.map(pixels[:, list(config.static_channels)])
        return torch.cat(
            [POSITION_SCALE * current, config.motion_scale * (current - previous), static], 1
        )
