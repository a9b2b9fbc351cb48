"""How the world is perceived: as an image, or as the few numbers that change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .physics import TERMINAL, Body
from .rendering import image_size, observe


class Senses(Protocol):
    """What a body perceives of a maze of a known size."""

    def space(self) -> spaces.Box:
        """Of observations."""

    def sense(self, walls: Tensor, body: Any) -> Tensor:
        """Walls [B, S, S] as images show them -> observations [B, *O]."""


@dataclass(frozen=True)
class Sight:
    """Walls, the body, and the body one step earlier, each a channel of an image."""

    size: int

    def space(self) -> spaces.Box:
        pixels = image_size(self.size)
        return spaces.Box(0, 255, (3, pixels, pixels), np.uint8)

    def sense(self, walls: Tensor, body: Body) -> Tensor:
        return observe(walls, self.size, body)


@dataclass(frozen=True)
class Numbers:
    """Position from -1 to 1 across the maze and velocity as a share of the terminal speed."""

    size: int

    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (4,), np.float32)

    def sense(self, walls: Tensor, body: Body) -> Tensor:
        place = 2 * body.place / self.size - 1
        return torch.cat([place, body.pace / TERMINAL], -1).clamp(-1, 1)


SENSES: dict[str, type[Sight] | type[Numbers]] = {"image": Sight, "state": Numbers}
