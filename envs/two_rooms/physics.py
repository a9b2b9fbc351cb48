"""How a dot moves: a point, and two rectangles of wall with a door between them.

Positions are `(x, y)` in pixels of the world's own image, pixel centres at whole numbers, y down.
A layout is `(wall x, door y)`. Everything is batched over any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

STANDOFF = 0.01  # pixels left between a stopped dot and the wall
REBOUND = 0.4  # pixels, the mean of |N(0, 0.5)|
TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Arena:
    """The square that positions live in, and the wall across it. All lengths in pixels."""

    low: float
    high: float
    wall_width: float
    half_door: float  # half of the door's opening
    body: float = 0.0  # how far the dot's centre keeps from the sides of the wall
    clearance: float = 1.5  # how far starts and goals keep from walls and borders

    @property
    def side(self) -> float:
        return self.high - self.low

    @property
    def half_wall(self) -> float:
        """Half the width that a dot's centre can't enter."""
        return self.wall_width / 2 + self.body


Contact: TypeAlias = Callable[[Arena, Tensor, Tensor, Tensor], Tensor]
"""Arena, start `[..., 2]`, move `[..., 2]`, layout `[..., 2]` -> where the dot ends `[..., 2]`."""

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
    def reach(self) -> float:
        """A full step, in pixels."""
        return self.bound * self.scale

    def move(self, actions: Tensor) -> Tensor:
        """Actions [..., 2] -> the moves they ask for [..., 2], in pixels."""
        return self.limit(actions, self.bound) * self.scale

    def towards(self, move: Tensor) -> Tensor:
        """Wanted moves [..., 2] in pixels -> the longest actions [..., 2] on the way there."""
        return self.shrink(move / self.scale, self.bound)


def wall_boxes(arena: Arena, layout: Tensor) -> tuple[Tensor, Tensor]:
    """Layout [..., 2] -> low and high corners [..., 2 rectangles, 2] of what is solid."""
    wall_x, door_y = layout.unbind(-1)
    far = torch.full_like(door_y, torch.inf)
    left, right = wall_x - arena.half_wall, wall_x + arena.half_wall
    low = torch.stack([left, -far, left, door_y + arena.half_door], -1)
    high = torch.stack([right, door_y - arena.half_door, right, far], -1)
    return low.unflatten(-1, (2, 2)), high.unflatten(-1, (2, 2))


def is_free(arena: Arena, position: Tensor, layout: Tensor) -> Tensor:
    """Position [..., 2] -> [...] bool: inside the arena and not inside the wall."""
    low, high = wall_boxes(arena, layout)
    place = position.unsqueeze(-2)
    solid = ((place >= low) & (place <= high)).all(-1).any(-1)
    inside = ((position >= arena.low) & (position <= arena.high)).all(-1)
    return inside & ~solid


def share_to_wall(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The share of the move that passes before it enters the wall; 1 where it never does, [...]."""
    low, high = wall_boxes(arena, layout)
    pace = torch.where(move.abs() < TINY, TINY, move).unsqueeze(-2)
    one = (low - start.unsqueeze(-2)) / pace  # [..., 2 rectangles, 2]
    other = (high - start.unsqueeze(-2)) / pace
    enter = torch.minimum(one, other).amax(-1)
    leave = torch.maximum(one, other).amin(-1)
    hit = (enter < leave) & (leave > 0) & (enter < 1)
    return torch.where(hit, enter.clamp(min=0), 1.0).amin(-1)


def share_to_border(arena: Arena, start: Tensor, move: Tensor) -> Tensor:
    """The share of the move that stays in the arena, [...]."""
    space = torch.where(move > 0, arena.high - start, start - arena.low)
    return (space / move.abs().clamp(min=TINY)).amin(-1).clamp(0, 1)


def can_see(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [...] bool: no wall between them."""
    return share_to_wall(arena, start, goal - start, layout) >= 1


def stop(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The dot goes straight until it meets something, and stays there."""
    share = share_to_wall(arena, start, move, layout)
    short = share - STANDOFF / move.norm(dim=-1).clamp(min=TINY)
    share = torch.where(share < 1, short.clamp(min=0), 1.0)
    share = torch.minimum(share, share_to_border(arena, start, move))
    end = (start + move * share.unsqueeze(-1)).clamp(arena.low, arena.high)
    # Rounding could leave a grazing dot in the wall; where it came from was free.
    return torch.where(is_free(arena, end, layout).unsqueeze(-1), end, start)


def rebound(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The dot goes straight until it meets something, and is thrown back a little from there.

    The published source throws it back by half-normal noise of std 0.5 pixels; here by the mean of
    that, so that the same action always has the same effect.
    """
    end = stop(arena, start, move, layout)
    cut = (start + move - end).norm(dim=-1, keepdim=True) > 2 * STANDOFF
    for axis in torch.eye(2, dtype=move.dtype, device=move.device):
        ahead = move.sign() * axis
        blocked = ~is_free(arena, end + 2 * STANDOFF * ahead, layout).unsqueeze(-1)
        end = stop(arena, end, -REBOUND * ahead * (blocked & cut), layout)
    return end


def slide(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The dot goes straight until it meets something, then along it."""
    end = stop(arena, start, move, layout)
    rest = move - (end - start)
    for axis in torch.eye(2, dtype=move.dtype, device=move.device):
        end = stop(arena, end, rest * axis, layout)
    return end


def place_in_room(arena: Arena, layout: Tensor, right: Tensor, uniform: Tensor) -> Tensor:
    """Layout [B, 2], which room [B] bool, uniform [B, 2] -> free places [B, 2] in that room."""
    wall_x, gap = layout[:, 0], arena.half_wall + arena.clearance
    low = torch.full_like(uniform, arena.low + arena.clearance)
    high = torch.full_like(uniform, arena.high - arena.clearance)
    low[:, 0] = torch.where(right, wall_x + gap, low[:, 0])
    high[:, 0] = torch.where(right, high[:, 0], wall_x - gap)
    return low + uniform * (high - low)


def right_room_share(arena: Arena, layout: Tensor) -> Tensor:
    """The right room's share of the free space, [B]."""
    taken = arena.half_wall + 2 * arena.clearance
    left = layout[:, 0] - arena.low - taken
    right = arena.high - layout[:, 0] - taken
    return right / (left + right)
