"""How the point mass moves, the expert, which takes the shortest path, and the behaviour policies
of the published data. Two rectangles of wall with a door between them stop the point mass.
Positions are `(x, y)` in pixels of the variant's own image, y down. A layout is `(wall x, door y)`.
What is about movement is batched over any leading dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..base import SegmentState
from ..batch import pick
from ..geometry import direction, fraction_before
from ..rng import normal, truncated_normal, uniform, von_mises

STANDOFF = 0.01  # pixels left between a stopped point mass and the wall
REBOUND = 0.4  # pixels, the mean of |N(0, 0.5)|
TINY = 1e-9

BLOCKED = 1e6  # the length of a path that isn't open
AT_WAYPOINT = 0.05  # pixels


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


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What an action does: `limit` it, times `scale` pixels, until `contact`."""

    bound: float  # of the action space, each coordinate
    scale: float  # pixels per unit of action
    limit: Callable[[Tensor, float], Tensor]  # actions [..., 2] and bound -> those that count
    shrink: Callable[[Tensor, float], Tensor]  # the same, by shortening and never by turning
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


def rebound(arena: Arena, start: Tensor, move: Tensor, layout: Tensor) -> Tensor:
    """The point mass goes straight until it meets a wall or a border, and bounces back: by the mean
    of the published half-normal noise of std 0.5 pixels, so that an action always has the same
    effect."""
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


def door_posts(arena: Arena, layout: Tensor) -> Tensor:
    """Layout [B, 2] -> [B, 4, 2]: the points at which a path through the door may bend."""
    margin = min(1.0, arena.half_door / 3)
    across, along = arena.half_wall + margin, arena.half_door - margin
    left, right = layout[:, 0] - across, layout[:, 0] + across
    top, bottom = layout[:, 1] - along, layout[:, 1] + along
    posts = [left, top, left, bottom, right, top, right, bottom]
    return torch.stack(posts, -1).unflatten(-1, (4, 2))


def next_waypoint(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[B, 2] each -> [B, 2]: where the shortest path first bends, or the goal if it is straight."""
    posts, layouts = door_posts(arena, layout), layout[:, None]
    here, there = start[:, None], goal[:, None]
    to_goal = (posts - there).norm(dim=-1)  # [B, 4]
    to_goal = torch.where(is_visible(arena, posts, there, layouts), to_goal, BLOCKED)
    onward = (torch.cdist(posts, posts) + to_goal[:, None]).amin(-1)
    to_post = (posts - here).norm(dim=-1)
    usable = is_visible(arena, here, posts, layouts) & (to_post > AT_WAYPOINT)
    best = (torch.where(usable, to_post, BLOCKED) + onward).argmin(-1)
    straight = is_visible(arena, start, goal, layout)
    return torch.where(straight[:, None], goal, pick(posts, best))


class BehaviourState(NamedTuple):
    last_move: Tensor  # [B, 2] pixels, before any contact
    target: Tensor  # [B, 2] where a directed policy goes
    directed: Tensor  # [B] bool: to the target, or wandering
    ignores_walls: Tensor  # [B] bool: straight to the target, into the wall
    steps_left: Tensor  # [B] until the policy is resampled
    keys: Tensor  # [B] int64


def init_behaviour(position: Tensor, keys: Tensor) -> BehaviourState:
    """A behaviour policy as an episode begins, with a heading."""
    return BehaviourState(*SegmentState.begin(position, keys))


@dataclass(frozen=True, kw_only=True)
class Wander:
    """A heading that drifts by von Mises noise, and steps of truncated normal length, in pixels.
    Source of the form: PLDM, arXiv 2502.14819."""

    kappa: float = 5.0
    mean: float = 1.0
    std: float = 0.4
    low: float = 0.2
    high: float = 1.8
    ignoring_fraction: float = 0.0
    """Of the directed policies, how many take no notice of the wall."""
    num_draws: ClassVar[int] = 2

    def directed_steps(self, side: float) -> float:
        """In an arena of that side."""
        return 4 * side / self.mean

    def move(self, ahead: Tensor, last_move: Tensor, u: Tensor) -> Tensor:
        """Directions and last moves [B, 2], uniform [B, 2] -> moves [B, 2]."""
        heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(u[:, 0], self.kappa)
        return direction(heading) * self.length(u[:, 1:])

    def length(self, u: Tensor) -> Tensor:
        """Uniform [...] in [0, 1) -> lengths of steps [...]."""
        return truncated_normal(u, mean=self.mean, std=self.std, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class NoisyExpert:
    """An expert with noise on its moves, which sometimes repeats its last move. Source of the form
    and the noise: stable-worldmodel, arXiv 2605.21800. Noise is per coordinate, in units of the
    full step; moves are clipped to the box of `full_step` pixels."""

    full_step: float
    noise: float = 2.0
    repeat: float = 0.05
    ignoring_fraction: ClassVar[float] = 0.0
    num_draws: ClassVar[int] = 3

    def directed_steps(self, side: float) -> float:
        """In an arena of that side."""
        return 40 * side / self.full_step

    def move(self, ahead: Tensor, last_move: Tensor, u: Tensor) -> Tensor:
        """Directions and last moves [B, 2], uniform [B, 3] -> moves [B, 2]."""
        noisy = ahead + self.noise * normal(u[:, :2])
        return torch.where(u[:, 2:] < self.repeat, last_move, noisy.clamp(-1, 1) * self.full_step)


def behaviour_step(
    policy: Wander | NoisyExpert,
    arena: Arena,
    position: Tensor,
    layout: Tensor,
    behaviour: BehaviourState,
    directed_fraction: float,
) -> BehaviourState:
    """Positions and layouts [B, 2] -> the policy one step later, whose `last_move` is the move to
    make. Every 20 to 40 steps, or on arrival, it is resampled: with probability `directed_fraction`
    it goes to a position in the other room, until it arrives or for `directed_steps`; else it
    wanders. `ignoring_fraction` of the directed ones go straight on, meet the wall, and last as
    long as wandering."""
    u, keys = uniform(behaviour.keys, 5)
    arrived = (behaviour.target - position).norm(dim=-1) < 0.05 * arena.side
    renew = (behaviour.steps_left <= 0) | (behaviour.directed & arrived)
    directed = torch.where(renew, u[:, 0] < directed_fraction, behaviour.directed)
    wander_steps = 20 + (21 * u[:, 1]).floor()
    ignoring = u[:, 2] < policy.ignoring_fraction
    ignoring = torch.where(renew, ignoring, behaviour.ignores_walls) & directed
    steps = torch.where(directed & ~ignoring, policy.directed_steps(arena.side), wander_steps)
    target = sample_in_room(arena, layout, position[:, 0] < layout[:, 0], u[:, 3:])
    target = torch.where(renew[:, None], target, behaviour.target)

    waypoint = next_waypoint(arena, position, target, layout)
    to_target = torch.where(ignoring[:, None], target, waypoint) - position
    ahead = torch.where(directed[:, None], to_target, behaviour.last_move)
    ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    u, keys = uniform(keys, policy.num_draws)
    return BehaviourState(
        last_move=policy.move(ahead, behaviour.last_move, u),
        target=target,
        directed=directed,
        ignores_walls=ignoring,
        steps_left=torch.where(renew, steps, behaviour.steps_left) - 1,
        keys=keys,
    )
