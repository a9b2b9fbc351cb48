"""The state of B corridors, its beginning, and what an observer is told about it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .corridor import BOTTOM, LEFT, RIGHT, SIZE, at_left_end, at_right_end, is_free
from .walks import Walk, set_out

MARGIN = 1.0  # pixels that a start keeps from the sides of the stem
START_LOW, START_HIGH = BOTTOM - 3.5, BOTTOM - 0.5  # y of a start


class State(NamedTuple):
    """Everything that B corridors are; on the worlds' device."""

    position: Tensor  # [B, 2] pixels
    cue: Tensor  # [B] bool: the right-hand arm is the one
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of

    @property
    def over(self) -> Tensor:
        """[B] bool: at the end of either arm."""
        return at_left_end(self.position) | at_right_end(self.position)

    @property
    def success(self) -> Tensor:
        """[B] bool: at the end of the cued arm. An episode ends with the first arm's end, so this
        is the same now as ever."""
        left, right = at_left_end(self.position), at_right_end(self.position)
        return torch.where(self.cue, right, left)

    @property
    def factors(self) -> Tensor:
        """[B, 3]: x and y as fractions of the image, and the cue, 0 for left and 1 for right."""
        return torch.cat([(self.position + 0.5) / SIZE, self.cue[:, None].float()], -1)


def conceive(life: Tensor, errands: float) -> State:
    """Keys [B] -> start and cue, each from its world's own luck."""
    uniform, _ = draw(life, 3)
    x = LEFT + MARGIN + uniform[:, 0] * (RIGHT - LEFT - 2 * MARGIN)
    y = START_LOW + uniform[:, 1] * (START_HIGH - START_LOW)
    cue = uniform[:, 2] < 0.5
    return State(torch.stack([x, y], -1), cue, set_out(mix(life ^ 1), errands), mix(life ^ 2))


def _require(fits: Tensor, position: Tensor, trouble: str) -> None:
    """ValueError naming the first world [B] that doesn't fit."""
    misfits = (~fits).nonzero().flatten().tolist()
    if misfits:
        place = [round(p, 2) for p in position[misfits[0]].tolist()]
        raise ValueError(f"factors: in world {misfits[0]} the body at {place} px {trouble}")


def place(state: State, factors: object) -> State:
    """The state with its bodies and cues where a user's factors [B, 3] say; ValueError where these
    are no factors, or no place to begin at."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=state.life.device)
    if read.shape != (len(state.life), 3):
        raise ValueError(f"factors is {list(read.shape)}; needed is {[len(state.life), 3]}")
    if not bool(((read >= 0) & (read <= 1)).all()):
        raise ValueError("factors must be fractions of the image, each in [0, 1]")
    if not bool(((read[:, 2] == 0) | (read[:, 2] == 1)).all()):
        raise ValueError("factors: the cue must be 0 (left) or 1 (right)")
    placed = state._replace(position=read[:, :2] * SIZE - 0.5, cue=read[:, 2] == 1)
    _require(is_free(placed.position), placed.position, "is inside the wall")
    _require(~placed.over, placed.position, "is at an arm's end, where episodes end")
    return placed
