"""Where the corridor is and how a body moves in it: a T of two rectangles, the stem and the bar.

Positions are `(x, y)` in pixels, pixel centres at whole numbers, y down. Everything is batched
over any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 32  # pixels on a side of the image
LEFT, RIGHT = 12.5, 18.5  # the sides of the stem
ARM_LEFT, ARM_RIGHT = 0.5, 30.5  # the ends of the bar, whose halves are the arms
TOP, FORK, BOTTOM = 0.5, 6.5, 30.5  # the bar reaches from TOP to FORK, the stem to BOTTOM
END = 2.0  # how much of each arm is its end
LIT = BOTTOM - (BOTTOM - FORK) / 5  # below it, in the first fifth of the stem, the cue is seen
STEP = 2.0  # pixels, of a full action


def in_bar(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    x, y = position.unbind(-1)
    return (x >= ARM_LEFT) & (x <= ARM_RIGHT) & (y >= TOP) & (y <= FORK)


def in_stem(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool; the stem goes on through the bar, up to its top."""
    x, y = position.unbind(-1)
    return (x >= LEFT) & (x <= RIGHT) & (y >= TOP) & (y <= BOTTOM)


def is_free(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool: not in the wall."""
    return in_bar(position) | in_stem(position)


def is_lit(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool: where the cue is seen from."""
    return position[..., 1] > LIT


def at_left_end(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    return position[..., 0] <= ARM_LEFT + END


def at_right_end(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    return position[..., 0] >= ARM_RIGHT - END


def _along_x(start: Tensor, move: Tensor) -> Tensor:
    """Free places and moves [..., 2] -> where the body is after the move's x, [..., 2]."""
    x, y = start.unbind(-1)
    ahead, wide = x + move[..., 0], y <= FORK
    ahead = torch.where(wide, ahead.clamp(ARM_LEFT, ARM_RIGHT), ahead.clamp(LEFT, RIGHT))
    return torch.stack([ahead, y], -1)


def _along_y(start: Tensor, move: Tensor) -> Tensor:
    """Free places and moves [..., 2] -> where the body is after the move's y, [..., 2]."""
    x, y = start.unbind(-1)
    ahead, deep = y + move[..., 1], (x >= LEFT) & (x <= RIGHT)
    ahead = torch.where(deep, ahead.clamp(TOP, BOTTOM), ahead.clamp(TOP, FORK))
    return torch.stack([x, ahead], -1)


def _share_before(line: float, start: Tensor, move: Tensor) -> Tensor:
    """The share of a move [...] along one axis that comes before a line; infinite where the line
    is not ahead."""
    share = (line - start) / move
    return torch.where(share >= 0, share, torch.inf)  # not a number, where nothing moves, is not


def slide(start: Tensor, move: Tensor) -> Tensor:
    """Free places and moves [..., 2] -> where the body ends, [..., 2].

    It goes along one axis after the other, and first along the one whose line through a corner of
    the fork the straight way meets first. So no corner is cut, and up to the width of the stem
    the body goes straight wherever the straight way is free.
    """
    x, y = start.unbind(-1)
    along_x, along_y = move.unbind(-1)
    side = torch.minimum(_share_before(LEFT, x, along_x), _share_before(RIGHT, x, along_x))
    x_first = side <= _share_before(FORK, y, along_y)
    return torch.where(
        x_first.unsqueeze(-1),
        _along_y(_along_x(start, move), move),
        _along_x(_along_y(start, move), move),
    )
