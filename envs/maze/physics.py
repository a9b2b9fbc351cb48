"""How a body moves: a small square with momentum that walls stop, or let slide along them.

Positions are `(x, y)` in cells, y down. Walls are lines between cells and have no width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..plane import shrink_to_disk
from .layouts import Maze

RADIUS = 0.15  # half the side of a body
KEPT = 0.8  # of a velocity, from step to step
PUSH = 0.06  # what a full action adds to it
TERMINAL = PUSH / (1 - KEPT)  # the speed, in cells a step, that full actions come to
GRAZE = 1e-4  # as little as this into a wall is rounding
REACHED = 0.4  # cells


class Body(NamedTuple):
    """Bodies of B worlds, as they move."""

    place: Tensor  # [B, 2]
    pace: Tensor  # [B, 2] cells a step
    before: Tensor  # [B, 2] the place one step earlier


def put(place: Tensor, pace: Tensor) -> Body:
    """Bodies at places [B, 2] that move on at a pace [B, 2]."""
    return Body(place, pace, place - pace)


def resting(place: Tensor) -> Body:
    """Bodies at rest at places [B, 2]."""
    return put(place, torch.zeros_like(place))


class Moving(Protocol):
    """What is true of a body whatever else it has; a NamedTuple of tensors."""

    @property
    def place(self) -> Tensor: ...
    @property
    def pace(self) -> Tensor: ...
    @property
    def before(self) -> Tensor: ...


class Physics(NamedTuple):
    """How bodies move in mazes, and where there is room for one."""

    moved: Callable[[Maze, Any, Tensor], Any]  # actions [B, A] -> bodies one step later
    is_free: Callable[[Maze, Tensor], Tensor]  # places [B, 2] -> [B] bool
    still: float  # cells a step; what a wall leaves of a pace towards it, at most
    put: Callable[[Tensor, Tensor], Any] = put  # places and paces [B, 2] -> bodies
    slow: int = 1  # steps in which a body gets as far as a square of these mazes in one
    reached: float = REACHED  # cells; nearer to the goal than this is there
    wide: float = RADIUS  # cells; half of the room that a body takes


def cell(place: Tensor, size: int) -> Tensor:
    """Places [B, 2] -> the cells they are in, [B]."""
    column, row = place.long().clamp(0, size - 1).unbind(-1)
    return row * size + column


def centre(cells: Tensor, size: int) -> Tensor:
    """Cells [...] -> their centres [..., 2]."""
    return torch.stack([cells % size, cells // size], -1) + 0.5


def inside(cells: Tensor, size: int, uniform: Tensor, wide: float = RADIUS) -> Tensor:
    """Cells [B], uniform [B, 2] -> places [B, 2] in them that are free whatever the walls, for
    bodies of half that width."""
    return centre(cells, size) + (1 - 2 * wide) * (uniform - 0.5)


def moved(maze: Maze, body: Body, actions: Tensor) -> Body:
    """Actions [B, 2] -> bodies one step later; they move along x first, then along y."""
    pace = KEPT * body.pace + PUSH * shrink_to_disk(actions, 1.0)
    (x, y), (right, down) = body.place.unbind(-1), pace.unbind(-1)
    x, right = slid(maze.upright, maze.level, x, y, right)
    y, down = slid(maze.level.mT, maze.upright.mT, y, x, down)
    return Body(torch.stack([x, y], -1), torch.stack([right, down], -1), body.place)


def slid(
    across: Tensor, beside: Tensor, place: Tensor, aside: Tensor, pace: Tensor
) -> tuple[Tensor, Tensor]:
    """Places and paces [B] one step on along one axis, and where they are [B] on the other.

    Walls across the way [B, n, n + 1] are by lane and by line; those along it [B, n + 1, n] by the
    line beside a lane: a body that straddles two lanes runs into the ends of those. A body is less
    than a cell wide and a pace less than a cell long, so the next line is all there is to meet.
    """
    sign = torch.where(pace > 0, 1.0, -1.0)
    line = sign * (sign * place + RADIUS - GRAZE).ceil()
    stop = line - sign * RADIUS
    low, high = lanes(aside)
    last = across.shape[1] - 1
    beyond = torch.where(pace > 0, line, line - 1).clamp(0, last)
    blocked = look(across, low, line) | look(across, high, line)
    blocked = blocked | (low != high) & look(beside, high, beyond)
    end = place + pace
    hit = blocked & (sign * end > sign * stop)
    return torch.where(hit, stop, end), torch.where(hit, 0.0, pace)


def lanes(place: Tensor) -> tuple[Tensor, Tensor]:
    """Places [B] along one axis -> the first and the last lane that a body there is in, [B]."""
    return (place - RADIUS + GRAZE).floor(), (place + RADIUS - GRAZE).floor()


def look(walls: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Walls [B, R, C], row and column [B], whole numbers -> whether there is one, [B]."""
    return walls[torch.arange(len(walls), device=walls.device), row.long(), column.long()]


def is_free(maze: Maze, place: Tensor) -> Tensor:
    """Places [B, 2] -> [B] bool: inside the maze, and neither in a wall nor in a solid cell."""
    size, margin = maze.size, RADIUS - GRAZE
    within = ((place >= margin) & (place <= size - margin)).all(-1)
    x, y = place.clamp(RADIUS, size - RADIUS).unbind(-1)
    (left, right), (top, bottom) = lanes(x), lanes(y)
    upright = look(maze.upright, top, right) | look(maze.upright, bottom, right)
    level = look(maze.level, bottom, left) | look(maze.level, bottom, right)
    walled = (left != right) & upright | (top != bottom) & level
    return within & ~walled & ~look(maze.solid, y.floor(), x.floor())


SQUARES = Physics(moved, is_free, still=0.0)
