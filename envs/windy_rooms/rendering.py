"""What the worlds look like to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..picture import PICTURE, distance, ink
from .physics import Box

FRAME = 10  # pixels beside the world
SIDE = PICTURE - 2 * FRAME
WALL = 3  # pixels
INK = {
    "wall": (45, 50, 60),
    "floor": (255, 255, 255),
    "pit": (24, 26, 34),
    "goal": (30, 150, 70),
    "rim": (255, 255, 255),
    "body": (30, 90, 220),
}


def to_picture(place: Tensor) -> Tensor:
    """Places [..., 2] -> `(x, y)` [..., 2] in the picture's pixels."""
    return FRAME - 0.5 + SIDE * place


def depth(side: Tensor, box: Box) -> Tensor:
    """How many pixels inside a box of the world every pixel is, [1, N, N]."""
    low, high = to_picture(box.low)[:, None], to_picture(box.high)[:, None]
    across, down = torch.minimum(side - low, high - side)
    return torch.minimum(across, down[:, None])[None]


def draw_picture(pit: Box, body: Tensor, goal: Tensor, radius: float) -> Tensor:
    """Bodies and goals [B, 2], the radius of success -> [B, 320, 320, 3] uint8."""
    side = torch.arange(PICTURE, device=body.device)
    picture = 255.0 - torch.zeros(len(body), PICTURE, PICTURE, 3, device=body.device)
    world = depth(side, Box(torch.zeros_like(pit.low), torch.ones_like(pit.low)))
    picture = ink(ink(picture, world + WALL, INK["wall"]), world, INK["floor"])
    picture = ink(picture, depth(side, pit), INK["pit"])
    ring = SIDE * radius - distance(side, to_picture(goal))
    picture = ink(picture, 1.5 - ring.abs(), INK["goal"])
    off = distance(side, to_picture(body))
    picture = ink(ink(picture, 9.5 - off, INK["rim"]), 7.5 - off, INK["body"])
    return picture.round().to(torch.uint8)
