"""What is on the table: a hand and a block, both round. The table is the unit square, seen from
above; y grows downwards.

The rim stops the block and not the hand, so that there is always a way behind the block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HAND = 0.04  # the radius of the hand
BLOCK = 0.07  # and of the block
TOUCH = HAND + BLOCK  # from middle to middle where they touch
RIM = BLOCK + 2 * HAND + 0.02  # as near to the table's edge comes a block's middle


class Things(NamedTuple):
    """Hands and blocks of B worlds, as they move: four numbers, `(x, y)` of the hand, then of the
    block."""

    place: Tensor  # [B, 4]
    pace: Tensor  # [B, 4] a step
    before: Tensor  # [B, 4] the places one step earlier

    @property
    def hand(self) -> Tensor:
        """[B, 2] its place."""
        return self.place[:, :2]

    @property
    def block(self) -> Tensor:
        """[B, 2] its place."""
        return self.place[:, 2:]


def resting(hand: Tensor, block: Tensor) -> Things:
    """Hands and blocks at rest in places [B, 2]."""
    place = torch.cat([hand, block], -1)
    return Things(place, torch.zeros_like(place), place)
