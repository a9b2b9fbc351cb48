"""How the point mass moves, and where it may be. Two rectangles of wall with a door between them
stop the point mass. Positions are `(x, y)` in pixels of the variant's own image, y down. A layout
is `(wall x, door y)`. What is about movement is batched over any leading dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..geometry import fraction_before

STANDOFF = 0.01  # pixels left between a stopped point mass and the wall
REBOUND_STD = 0.5  # pixels
MEAN_REBOUND = (0.0, math.sqrt(2 / math.pi))  # of standard normal noise: along the wall, and away
BORDER_GAP = 0.3  # pixels that a rebound leaves to the borders of the room
TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Arena:
    """The square that positions are in, and what of the wall across it is solid to the point mass's
    position; what is drawn may be wider or narrower. All lengths in pixels."""

    low: float
    high: float
    half_wall: float
    half_door: float  # half of the door's opening
    clearance: float = 1.5  # how far starts and goals keep from walls and borders

    @property
    def side(self) -> float:
        return self.high - self.low


Contact: TypeAlias = Callable[[Arena, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Arena, start `[..., 2]`, move `[..., 2]`, layout `[..., 2]`, noise `[..., 2]` -> end `[..., 2]`.
The noise is standard normal; without it, a contact that is random does what it does on average."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What an action does: `limit` it, times `scale` pixels, until `contact`."""

    bound: float  # of the action space, each coordinate
    scale: float  # pixels per unit of action
    limit: Callable[[Tensor, float], Tensor]  # actions [..., 2] and bound -> those that count
    shrink: Callable[[Tensor, float], Tensor]  # the expert's limit, which never turns an action
    contact: Contact
    random_contact: bool = False

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


def is_visible(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [...] bool: no wall is between them."""
    return fraction_to_wall(arena, start, goal - start, layout) >= 1


def stop(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, and stops there."""
    fraction = fraction_to_wall(arena, start, move, layout)
    short = fraction - STANDOFF / move.norm(dim=-1).clamp(min=TINY)
    fraction = torch.where(fraction < 1, short.clamp(min=0), 1.0)
    space = torch.where(move > 0, arena.high - start, start - arena.low)
    to_border = (space / move.abs().clamp(min=TINY)).amin(-1).clamp(0, 1)
    fraction = torch.minimum(fraction, to_border)
    end = (start + move * fraction.unsqueeze(-1)).clamp(arena.low, arena.high)
    # Rounding could leave a grazing point mass in the wall; where it came from was free.
    return torch.where(is_free(arena, end, layout).unsqueeze(-1), end, start)


def slide(
    arena: Arena, start: Tensor, move: Tensor, layout: Tensor, noise: Tensor | None = None
) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, then along it."""
    end = stop(arena, start, move, layout)
    rest = move - (end - start)
    for axis in torch.eye(2, dtype=move.dtype, device=move.device):
        end = stop(arena, end, rest * axis, layout)
    return end


class Hit(NamedTuple):
    """What moves meet first: a side of the wall or a border, or a post of the door."""

    fraction: Tensor  # [...] of the move; infinite where it meets nothing
    vertical: Tensor  # [...] bool: it is met along y
    post: Tensor  # [...] bool


def first_hit(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Hit:
    """What the moves meet, which are shorter than the rooms. The door's ends are open, and its
    posts are met from within."""
    wall_x, door_y = layout.unbind(-1)
    forward = torch.where(move < 0, -1.0, 1.0)
    speed = torch.where(move.abs() < TINY, TINY, move.abs())

    def fraction_to(lines: Tensor, axis: int) -> Tensor:
        """Of the move to lines across an axis, [...]; infinite where they are not met."""
        fraction = (lines - start[..., axis]) * forward[..., axis] / speed[..., axis]
        return torch.where((fraction >= 0) & (fraction <= 1), fraction, torch.inf)

    border = torch.where(move < 0, arena.low, arena.high)
    near, far = (wall_x + side * arena.half_wall * forward[..., 0] for side in (-1, 1))
    sides = []
    for line in (near, far):
        fraction = fraction_to(line, 0)
        height = start[..., 1] + fraction * move[..., 1] - door_y
        sides.append(torch.where(height.abs() > arena.half_door, fraction, torch.inf))
    across = torch.minimum(fraction_to(border[..., 0], 0), torch.minimum(*sides))
    along = fraction_to(border[..., 1], 1)

    post_y = door_y + forward[..., 1] * arena.half_door
    to_post = fraction_to(post_y, 1)
    offset = start[..., 0] + to_post * move[..., 0] - wall_x
    post = to_post.isfinite() & (offset.abs() <= arena.half_wall)
    fraction = torch.where(post, to_post, torch.minimum(across, along))
    return Hit(fraction, post | (along <= across), post)


def rebound(
    arena: Arena, start: Tensor, move: Tensor, layout: Tensor, noise: Tensor | None = None
) -> Tensor:
    """From what it meets, the point mass rebounds by normal noise, of which the part away from it
    is made positive; then it keeps `BORDER_GAP` to the borders of its room, unless it met a post.
    The noise is [along what was met, away from it]."""
    if noise is None:
        noise = start.new_tensor(MEAN_REBOUND).expand_as(start)
    hit = first_hit(arena, start, move, layout)
    met = hit.fraction.isfinite().unsqueeze(-1)
    point = start + move * torch.where(met, hit.fraction.unsqueeze(-1), 1.0)
    along, away = (REBOUND_STD * noise).unbind(-1)
    back = torch.where(move < 0, 1.0, -1.0) * away.abs().unsqueeze(-1)
    vertical = torch.stack([~hit.vertical, hit.vertical], -1)
    end = point + torch.where(vertical, back, along.unsqueeze(-1))

    left = start[..., 0] < layout[..., 0]
    low, high = torch.full_like(end, arena.low), torch.full_like(end, arena.high)
    low[..., 0] = torch.where(left, arena.low, layout[..., 0] + arena.half_wall)
    high[..., 0] = torch.where(left, layout[..., 0] - arena.half_wall, arena.high)
    inside = torch.where(end <= low, low + BORDER_GAP, end)
    inside = torch.where(end >= high, high - BORDER_GAP, inside)
    end = torch.where(hit.post.unsqueeze(-1), end, inside)
    return torch.where(met, end, start + move)


def refuse(
    arena: Arena, start: Tensor, move: Tensor, layout: Tensor, noise: Tensor | None = None
) -> Tensor:
    """A move that would meet a wall or a border does not happen."""
    free = first_hit(arena, start, move, layout).fraction.isinf()
    return torch.where(free.unsqueeze(-1), start + move, start)


@dataclass(frozen=True, kw_only=True)
class EndOutside:
    """Only where a move ends matters: beyond the borders, it ends on them; where it ends in the
    wall or behind it, at a height that is not the door's, it ends before the wall instead."""

    borders: tuple[float, float]  # pixels, the same for x and y
    gap: float  # pixels kept to the wall

    def __call__(
        self,
        arena: Arena,
        start: Tensor,
        move: Tensor,
        layout: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        x, y = (start + move).clamp(*self.borders).unbind(-1)
        wall_x, door_y = layout.unbind(-1)
        side = torch.where(start[..., 0] < wall_x, -1.0, 1.0)
        entered = (x - wall_x) * side < arena.half_wall
        closed = (y - door_y).abs() > arena.half_door
        before = wall_x + side * (arena.half_wall + self.gap)
        return torch.stack([torch.where(entered & closed, before, x), y], -1)


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
