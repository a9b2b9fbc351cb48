"""How the world is perceived: as an image, or as the few numbers that change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .arms import Arm
from .physics import TERMINAL
from .rendering import SIZE, observe

SWIFT = 3 * TERMINAL  # radians a step; hardly a joint ever turns faster than that


@dataclass(frozen=True)
class Sight:
    """The arm, and the arm one step earlier, each a channel of an image."""

    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)

    def sense(self, arm: Arm) -> Tensor:
        """[B, 2, S, S] uint8"""
        return torch.stack([observe(arm.angle), observe(arm.before)], 1)


@dataclass(frozen=True)
class Numbers:
    """Cosine of both angles, sine of both, and how fast they change."""

    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (6,), np.float32)

    def sense(self, arm: Arm) -> Tensor:
        """[B, 6]"""
        pace = (arm.pace / SWIFT).clamp(-1, 1)
        return torch.cat([arm.angle.cos(), arm.angle.sin(), pace], -1)


SENSES: dict[str, type[Sight] | type[Numbers]] = {"state": Numbers, "image": Sight}
