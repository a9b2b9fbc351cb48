"""What the corridor looks like: to the one who lives there, and to a person who watches."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..dot import draw_dot
from ..picture import PICTURE, distance, ink
from .corridor import SIZE, at_left_end, at_right_end, is_free

DOT_STD = 1.0  # pixels
CUE_ROWS = 3  # at the bottom of the image
FADED = 0.3  # how much of the cue a person is shown while the one who lives there sees nothing
ZOOM = PICTURE / SIZE
INK = {
    "wall": (196, 200, 208),
    "right end": (30, 150, 70),
    "wrong end": (205, 85, 75),
    "cue": (245, 165, 20),
    "dot": (30, 90, 220),
}


class Layers(NamedTuple):
    """The parts of the image that never change."""

    walls: Tensor  # [S, S] bool
    cues: Tensor  # [2, S, S] bool: left, right
    ends: Tensor  # [2, S, S] bool: left, right


@lru_cache
def layers(device: torch.device) -> Layers:
    pixel = torch.arange(SIZE, device=device)
    row, column = torch.meshgrid(pixel, pixel, indexing="ij")
    place = torch.stack([column, row], -1)  # [S, S, 2]
    free, bottom, right = is_free(place), row >= SIZE - CUE_ROWS, 2 * column >= SIZE
    ends = torch.stack([free & at_left_end(place), free & at_right_end(place)])
    return Layers(~free, torch.stack([bottom & ~right, bottom & right]), ends)


def observe(position: Tensor, cue: Tensor, seen: Tensor) -> Tensor:
    """Position [B, 2], cue and whether it is seen [B] bool -> observation [B, 3, S, S] uint8: the
    dot, the walls and the cue, a bar at the bottom of the cued side."""
    fixed = layers(position.device)
    walls = fixed.walls.expand(len(position), SIZE, SIZE)
    bar = fixed.cues[cue.long()] & seen[:, None, None]
    plain = torch.stack([walls, bar], 1).to(torch.uint8) * 255
    return torch.cat([draw_dot(position, SIZE, DOT_STD)[:, None], plain], 1)


def to_picture(factors: Tensor) -> Tensor:
    """Factors [..., F] that begin with x and y -> `(x, y)` [..., 2] in the picture's pixels."""
    return factors[..., :2] * PICTURE - 0.5


def draw_picture(position: Tensor, cue: Tensor, seen: Tensor) -> Tensor:
    """Position [B, 2], cue and whether it is seen [B] bool -> [B, 320, 320, 3] uint8."""
    fixed, which = layers(position.device), cue.long()
    walls = fixed.walls.expand(len(position), SIZE, SIZE)
    strength = torch.where(seen, 1.0, FADED)[:, None, None]
    picture = torch.full((len(position), SIZE, SIZE, 3), 255.0, device=position.device)
    for share, name in (
        (walls, "wall"),
        (fixed.ends[which], "right end"),
        (fixed.ends[1 - which], "wrong end"),
        (fixed.cues[which] * strength, "cue"),
    ):
        picture = ink(picture, share.float() - 0.5, INK[name])
    picture = picture.repeat_interleave(int(ZOOM), 1).repeat_interleave(int(ZOOM), 2)
    side = torch.arange(PICTURE, device=position.device)
    centre = to_picture((position + 0.5) / SIZE)
    disc = 1.2 * ZOOM * DOT_STD - distance(side, centre)
    return ink(picture, disc, INK["dot"]).round().to(torch.uint8)
