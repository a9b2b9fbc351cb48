"""A scene: what moves, by points, before what stays, by a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.layers import SPREAD
from modules.perception.common import Encoder, Shapes, amplify, image_of, in_bytes
from modules.perception.images import Points
from modules.types import WIDTH, Gains, Observation, Shape, UnusableInput, by_sense, require

KERNEL = 5
"""Pixels to a side of what a point is found by."""


class SceneEncoder(Encoder):
    """Pixels `[B, C, S, S]` uint8 -> state `[B, D]` of two parts: x and y of some points and how
    they have moved, 4 numbers each, and a map of what else the image shows. A body and the walls
    around it don't crowd each other out, and dynamics that glance at the map around the body learn
    what walls do once for all layouts."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        now: tuple[int, ...] = (1,)
        """Channels of the image that show what moves, at the latest moment."""
        before: tuple[int, ...] = (2,)
        """Channels that show it at the moment before, as many."""
        still: tuple[int, ...] = (0,)
        """Channels that show what stays as it is."""
        points: int = 1
        """Things that move."""
        motion: float = 8.0
        """How much larger than places, from -1 to 1, movements are taken."""
        hidden: int = 16
        channels: int = 4
        """Of the map."""
        stride: int = 2
        """Pixels between the places of the map."""

        def __post_init__(self) -> None:
            require(self, points=WIDTH, motion=(0.0, 1e6), hidden=WIDTH, channels=WIDTH)
            require(self, stride=WIDTH, now=(0, 65_535), before=(0, 65_535), still=(0, 65_535))
            if not len(self.now) == len(self.before) >= 1 or not self.still:
                raise UnusableInput(
                    f"now has {len(self.now)} channels, before {len(self.before)} and still "
                    f"{len(self.still)}; each must have one, and before as many as now"
                )

        def build(self, shapes: Shapes) -> SceneEncoder:
            channels, *sides = image_of(shapes, KERNEL)
            if sides[0] != sides[1]:
                raise UnusableInput(f"an image of {sides[0]} by {sides[1]}; it must be a square")
            for channel in (*self.now, *self.before, *self.still):
                if not 0 <= channel < channels:
                    raise UnusableInput(
                        f"channel {channel} of an image that has {channels}; now, before and still "
                        f"must name some of 0 to {channels - 1}"
                    )
            return SceneEncoder(self, sides[0])

    def __init__(self, config: Config, side: int) -> None:
        super().__init__()
        self.config = config
        self.points = Points(len(config.now), config.hidden // 2, config.points, KERNEL, 1)
        self.map = nn.Sequential(
            nn.Conv2d(len(config.still), config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, config.stride, padding=1),
            nn.Flatten(),
        )
        places = -(-side // config.stride)
        self.shape: Shape = (4 * config.points + config.channels * places**2, 1, 1)

    def forward(self, obs: Observation, gains: Gains) -> Tensor:
        ((name, image),) = by_sense(obs).items()
        config, dtype = self.config, self.points.sharpness.dtype
        seen = amplify(in_bytes(image), gains.get(name, 1)).to(dtype) / 255
        now, before = (self.points(seen[:, list(c)]) for c in (config.now, config.before))
        still = self.map(seen[:, list(config.still)])
        return torch.cat([SPREAD * now, config.motion * (now - before), still], 1)
