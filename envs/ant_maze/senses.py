"""How an ant perceives itself: where it is, its pose, and how all that changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .ants import Ant
from .physics import CELL, STEP

SWIFT = 10.0  # radians a second, of joints; what is about 1 is seen well


@dataclass(frozen=True)
class Numbers:
    """Position from -1 to 1 across the maze, pose, and velocities: of the torso in metres a second,
    of turning and of joints in tens of radians a second."""

    size: int

    def space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (29,), np.float32)

    def sense(self, walls: Tensor, body: Ant) -> Tensor:
        place, speed = 2 * body.place / self.size - 1, CELL / STEP * body.pace
        rise, turn = body.spin.split([1, 11], -1)
        return torch.cat([place, body.pose, speed, rise, turn / SWIFT], -1)


SENSES = {"state": Numbers}
