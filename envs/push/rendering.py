"""What the worlds look like to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..picture import PICTURE, distance, ink
from .things import BLOCK, HAND, RIM, Things

FRAME = 10  # pixels beside the table
SIDE = PICTURE - 2 * FRAME
EDGE = 3.0  # pixels
INK = {
    "edge": (45, 50, 60),
    "table": (255, 255, 255),
    "rim": (238, 240, 244),
    "goal": (30, 150, 70),
    "block": (222, 160, 60),
    "hand": (30, 90, 220),
}


def to_picture(place: Tensor) -> Tensor:
    """Places [..., 2] -> `(x, y)` [..., 2] in the picture's pixels."""
    return FRAME - 0.5 + SIDE * place


def depth(side: Tensor, margin: float) -> Tensor:
    """How many pixels inside a square, so much smaller than the table on every side, every pixel
    is, [1, N, N]."""
    inside = SIDE * (0.5 - margin) - (side - (PICTURE - 1) / 2).abs()
    return torch.minimum(inside, inside[:, None])[None]


def draw_picture(things: Things, goal: Tensor, radius: float) -> Tensor:
    """Goals [B, 2], the radius of success -> [B, 320, 320, 3] uint8."""
    side = torch.arange(PICTURE, device=goal.device)
    picture = 255.0 - torch.zeros(len(goal), PICTURE, PICTURE, 3, device=goal.device)
    picture = ink(picture, depth(side, 0) + EDGE, INK["edge"])
    picture = ink(picture, depth(side, 0), INK["rim"])
    picture = ink(picture, depth(side, RIM - BLOCK), INK["table"])
    block = SIDE * BLOCK - distance(side, to_picture(things.block))
    picture = ink(picture, block, INK["block"])
    picture = ink(picture, SIDE * HAND - distance(side, to_picture(things.hand)), INK["hand"])
    off = distance(side, to_picture(goal))
    picture = ink(picture, 1.5 - (SIDE * radius - off).abs(), INK["goal"])
    return ink(picture, 2.5 - off, INK["goal"]).round().to(torch.uint8)
