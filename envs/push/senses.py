"""How the world is perceived: as an image, or as the few numbers that change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..dot import draw_dot
from .things import Things

SIZE = 32  # pixels of an image's side
DOTS = (1.0, 2.0)  # pixels, the standard deviations of hand and block
SWIFT = 0.08  # a step; hardly anything is ever faster than that


@dataclass(frozen=True)
class Sight:
    """Hand, block, and both one step earlier, each a channel of an image."""

    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (4, SIZE, SIZE), np.uint8)

    def sense(self, things: Things) -> Tensor:
        """[B, 4, S, S] uint8"""
        pixels = [(SIZE - 1) * place for place in (things.place, things.before)]
        return torch.stack(
            [
                draw_dot(spot, SIZE, std)
                for both in pixels
                for spot, std in zip(both.split(2, dim=-1), DOTS, strict=True)
            ],
            1,
        )


@dataclass(frozen=True)
class Numbers:
    """The places of hand and block, from -1 to 1, and how fast they move."""

    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (8,), np.float32)

    def sense(self, things: Things) -> Tensor:
        """[B, 8]"""
        return torch.cat([2 * things.place - 1, things.pace / SWIFT], -1).clamp(-1, 1)


SENSES: dict[str, type[Sight] | type[Numbers]] = {"state": Numbers, "image": Sight}
