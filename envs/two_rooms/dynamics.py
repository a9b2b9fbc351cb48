"""How the point mass moves: two rectangles of wall with a door between them stop it.

Positions are `(x, y)` in pixels of the variant's own image, pixel centres at whole numbers, y down.
A layout is `(wall x, door y)`. Everything is batched over any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..geometry import fraction_before

STANDOFF = 0.01  # pixels left between a stopped point mass and the wall
REBOUND = 0.4  # pixels, the mean of |N(0, 0.5)|
TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Arena:
    """The square that positions are in, and the wall across it. All lengths in pixels."""

    low: float
    high: float
    wall_width: float
    half_door: float  # half of the door's opening
    body: float = 0.0  # radius that the wall keeps from the point mass's position
    clearance: float = 1.5  # how far starts and goals keep from walls and borders

    @property
    def side(self) -> float:
        return self.high - self.low

    @property
    def half_wall(self) -> float:
        """Half the width of what a position can't be in."""
        return self.wall_width / 2 + self.body


Contact: TypeAlias = Callable[[Arena, Tensor, Tensor, Tensor], Tensor]
"""Arena, start `[..., 2]`, move `[..., 2]`, layout `[..., 2]` -> end `[..., 2]`."""

Limit: TypeAlias = Callable[[Tensor, float], Tensor]
"""Action `[..., 2]` and bound -> the action that counts `[..., 2]`."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What an action does: `limit` it, times `scale` pixels, until `contact`."""

    bound: float  # of the action space, each coordinate
    scale: float  # pixels per unit of action
    limit: Limit
    shrink: Limit  # the same set of actions, reached by shortening and never by turning
    contact: Contact

    @property
    def full_step(self) -> float:
        """The longest move along an axis, in pixels."""
        return self.bound * self.scale

    def move(self, actions: Tensor) -> Tensor:
        """Actions [..., 2] -> moves [..., 2] in pixels, before any contact."""
        return self.limit(actions, self.bound) * self.scale

    def to_action(self, move: Tensor) -> Tensor:
        """Moves [..., 2] in pixels -> the longest actions [..., 2] along them."""
        return self.shrink(move / self.scale, self.bound)


def wall_boxes(arena: Arena, layout: Tensor) -> tuple[Tensor, Tensor]:
    """Layout [..., 2] -> low and high corners [..., 2 rectangles, 2] of the wall."""
    wall_x, door_y = layout.unbind(-1)
    infinite = torch.full_like(door_y, torch.inf)
    left, right = wall_x - arena.half_wall, wall_x + arena.half_wall
    low = torch.stack([left, -infinite, left, door_y + arena.half_door], -1)
    high = torch.stack([right, door_y - arena.half_door, right, infinite], -1)
    return low.unflatten(-1, (2, 2)), high.unflatten(-1, (2, 2))


def is_free(arena: Arena, position: Tensor, layout: Tensor) -> Tensor:
    """Position [..., 2] -> [...] bool: inside the arena and not inside the wall."""
    low, high = wall_boxes(arena, layout)
    point = position.unsqueeze(-2)
    in_wall = ((point >= low) & (point <= high)).all(-1).any(-1)
    inside = ((position >= arena.low) & (position <= arena.high)).all(-1)
    return inside & ~in_wall


def fraction_to_wall(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The fraction of the move before it enters the wall; 1 where it never does, [...]."""
    low, high = wall_boxes(arena, layout)
    return fraction_before(low, high, start.unsqueeze(-2), move.unsqueeze(-2)).amin(-1)


def fraction_to_border(arena: Arena, start: Tensor, move: Tensor) -> Tensor:
    """The fraction of the move that stays in the arena, [...]."""
    space = torch.where(move > 0, arena.high - start, start - arena.low)
    return (space / move.abs().clamp(min=TINY)).amin(-1).clamp(0, 1)


def is_visible(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [...] bool: no wall is between them."""
    return fraction_to_wall(arena, start, goal - start, layout) >= 1


def stop(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, and stops there."""
    fraction = fraction_to_wall(arena, start, move, layout)
    short = fraction - STANDOFF / move.norm(dim=-1).clamp(min=TINY)
    fraction = torch.where(fraction < 1, short.clamp(min=0), 1.0)
    fraction = torch.minimum(fraction, fraction_to_border(arena, start, move))
    end = (start + move * fraction.unsqueeze(-1)).clamp(arena.low, arena.high)
    # Rounding could leave a grazing point mass in the wall; where it came from was free.
    return torch.where(is_free(arena, end, layout).unsqueeze(-1), end, start)


def rebound(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, and bounces back a little.

    The published source bounces by half-normal noise of std 0.5 pixels; here it is the mean of
    that, so that the same action always has the same effect.
    """
    end = stop(arena, start, move, layout)
    stopped = (start + move - end).norm(dim=-1, keepdim=True) > 2 * STANDOFF
    for axis in torch.eye(2, dtype=move.dtype, device=move.device):
        ahead = move.sign() * axis
        blocked = ~is_free(arena, end + 2 * STANDOFF * ahead, layout).unsqueeze(-1)
        end = stop(arena, end, -REBOUND * ahead * (blocked & stopped), layout)
    return end


def slide(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, then along it."""
    end = stop(arena, start, move, layout)
    rest = move - (end - start)
    for axis in torch.eye(2, dtype=move.dtype, device=move.device):
        end = stop(arena, end, rest * axis, layout)
    return end


def sample_in_room(arena: Arena, layout: Tensor, right: Tensor, u: Tensor) -> Tensor:
    """Layout [B, 2], which room [B] bool, uniform [B, 2] -> free positions [B, 2] in that room."""
    wall_x, gap = layout[:, 0], arena.half_wall + arena.clearance
    low = torch.full_like(u, arena.low + arena.clearance)
    high = torch.full_like(u, arena.high - arena.clearance)
    low[:, 0] = torch.where(right, wall_x + gap, low[:, 0])
    high[:, 0] = torch.where(right, high[:, 0], wall_x - gap)
    return low + u * (high - low)


def right_room_fraction(arena: Arena, layout: Tensor) -> Tensor:
    """The right room's fraction of the free space, [B]."""
    taken = arena.half_wall + 2 * arena.clearance
    left = layout[:, 0] - arena.low - taken
    right = arena.high - layout[:, 0] - taken
    return right / (left + right)


def sample_layouts(layouts: Tensor, u: Tensor) -> Tensor:
    """Layouts [N, 2] to choose from, uniform [B] -> layouts [B, 2]."""
    return layouts[(u * len(layouts)).long().clamp(max=len(layouts) - 1)]


def beside_door(arena: Arena, layout: Tensor, u: Tensor) -> Tensor:
    """Layout [N, 2], uniform [N] -> y [N] away from the door, above or below it."""
    gap = arena.half_door + arena.clearance
    start, end = arena.low + arena.clearance, arena.high - arena.clearance
    above = (layout[:, 1] - gap - start).clamp(min=0)
    below = (end - layout[:, 1] - gap).clamp(min=0)
    offset = u * (above + below)
    return torch.where(offset < above, start + offset, layout[:, 1] + gap + offset - above)


def in_door(arena: Arena, layout: Tensor, u: Tensor) -> Tensor:
    """Layout [N, 2], uniform [N] -> y [N] in the middle four fifths of the opening."""
    return layout[:, 1] + 0.8 * arena.half_door * (2 * u - 1)
