"""How the world is perceived: as an image, or as the two numbers that change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..dot import draw_dot
from .physics import Box

SIZE = 32  # pixels of an image's side
FRAME = 1  # pixels of it beside the world
DOT = 1.0  # pixels, the standard deviation of a body


@dataclass(frozen=True)
class Sight:
    """The body and the pit, each a channel of an image."""

    pit: Box

    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)

    def sense(self, place: Tensor) -> Tensor:
        """Places [B, 2] of bodies -> observations [B, 2, S, S]."""
        zoom = SIZE - 1 - 2 * FRAME
        dot = draw_dot(FRAME + zoom * place, SIZE, DOT)
        pixel = (torch.arange(SIZE, device=place.device) - FRAME) / zoom
        pit = self.pit.holds(torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1))
        return torch.stack([dot, (255 * pit).to(torch.uint8).expand_as(dot)], 1)


@dataclass(frozen=True)
class Numbers:
    """x and y from -1 to 1."""

    pit: Box

    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (2,), np.float32)

    def sense(self, place: Tensor) -> Tensor:
        """Places [B, 2] of bodies -> observations [B, 2]."""
        return 2 * place - 1


Senses: TypeAlias = Sight | Numbers
SENSES: dict[str, type[Sight] | type[Numbers]] = {"state": Numbers, "image": Sight}
