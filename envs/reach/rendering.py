"""What the worlds look like: to the one who lives there, and to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..picture import PICTURE, beside, distance, ink
from .arms import joints

SIZE = 32  # pixels of an image's side
EDGE = 1.05  # lengths of the arm, from the shoulder to the edge of what is seen
THIN = 0.8  # pixels, how a link fades to its sides: the standard deviation
LINE = 5.0  # pixels of a picture, half the width of a link
JOINT = 8.0  # pixels of a picture
INK = {"goal": (30, 150, 70), "link": (45, 50, 60), "joint": (120, 130, 145), "tip": (30, 90, 220)}


def to_pixels(place: Tensor, size: int) -> Tensor:
    """Places [..., 2] -> `(x, y)` [..., 2] in the pixels of a square that shows all an arm can
    reach."""
    return (place / EDGE + 1) / 2 * (size - 1)


def beside_links(angle: Tensor, size: int) -> Tensor:
    """Arms [B, 2] -> how far every pixel is from the nearest point of its links, [B, S, S]."""
    points = to_pixels(pad(joints(angle), (0, 0, 1, 0)), size)  # shoulder, elbow, fingertip
    ends = torch.stack([points[:, :-1], points[:, 1:]], 2)
    return beside(torch.arange(size, device=angle.device), ends)


def observe(angle: Tensor) -> Tensor:
    """Angles [B, 2] -> [B, S, S] uint8: an arm with soft edges."""
    bright = torch.exp(-0.5 * (beside_links(angle, SIZE) / THIN).square())
    return (255 * bright).round().to(torch.uint8)


def draw_picture(angle: Tensor, goal: Tensor, radius: float) -> Tensor:
    """Arms and goals [B, 2], the radius of success -> [B, 320, 320, 3] uint8."""
    side = torch.arange(PICTURE, device=angle.device)
    picture = 255.0 - torch.zeros(len(angle), PICTURE, PICTURE, 3, device=angle.device)
    picture = ink(picture, LINE - beside_links(angle, PICTURE), INK["link"])
    elbow, tip = joints(angle).unbind(1)
    for place, colour in ((torch.zeros_like(tip), "joint"), (elbow, "joint"), (tip, "tip")):
        picture = ink(picture, JOINT - distance(side, to_pixels(place, PICTURE)), INK[colour])
    ring = radius / EDGE * (PICTURE - 1) / 2 - distance(side, to_pixels(goal, PICTURE))
    return ink(picture, 1.5 - ring.abs(), INK["goal"]).round().to(torch.uint8)
