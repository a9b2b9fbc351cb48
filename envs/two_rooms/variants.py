"""The variants: published tasks, by their names, and our own. Lengths are pixels of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import draw
from ..geometry import clip_to_box, shrink_to_box, shrink_to_disk
from ..rng import splitmix64, uniform
from . import dynamics
from .dynamics import Arena, Contact, Motion, NoisyExpert, Wander

ROLLOUT_STEPS = 25  # to a goal that a rollout reaches


def two_channels(walls: Tensor, dot: Tensor) -> Tensor:
    """The point mass in one channel, the walls in the other."""
    return torch.stack([dot, walls], 1)


def red_on_white(walls: Tensor, dot: Tensor) -> Tensor:
    """A red point mass and black walls on white."""
    ground = ~walls  # 0 or 255, so the bits of a byte do as masks
    rest = ground & ~dot
    return torch.stack([ground | dot, rest, rest], 1)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The image that is observed."""

    size: int  # S, pixels on a side
    border: tuple[int, int]  # first and last pixel of the outer walls, counted from each edge
    dot_std: float  # pixels
    channels: int
    paint: Callable[[Tensor, Tensor], Tensor]
    """Walls and point mass, each `[B, S, S]` uint8 -> observation `[B, C, S, S]` uint8."""

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (self.channels, self.size, self.size), np.uint8)

    def draw_walls(self, arena: Arena, layout: Tensor) -> Tensor:
        """Layout [B, 2] -> [B, S, S] uint8, 255 where a pixel's centre is on a wall."""
        pixel = torch.arange(self.size, device=layout.device)
        to_edge = torch.minimum(pixel, self.size - 1 - pixel)
        inside = to_edge >= self.border[0]
        line = inside & (to_edge <= self.border[1])
        outer = (line[:, None] & inside) | (line & inside[:, None])  # [S, S]
        wall_x, door_y = layout[:, :1], layout[:, 1:]
        column = ((pixel - wall_x).abs() <= arena.wall_width / 2) & inside  # [B, S]
        closed = ((pixel - door_y).abs() > arena.half_door) & inside
        walls = closed[:, :, None] & column[:, None, :]
        return (walls | outer).to(torch.uint8) * 255

    def observe(self, walls: Tensor, position: Tensor) -> Tensor:
        """Walls [B, S, S], position [B, 2] -> observation [B, C, S, S] uint8."""
        return self.paint(walls, draw.draw_dot(position, self.size, self.dot_std))

    def draw_dots(self, positions: Tensor) -> Tensor:
        """Positions [B, N, 2] -> [B, 1, S, S] uint8 with N dots."""
        return draw.draw_dots(positions, self.size, self.dot_std).unsqueeze(1)

    def to_pixels(self, position: Tensor) -> Tensor:
        """Positions [..., 2] in the image's pixels -> `(x, y)` [..., 2] in a frame's pixels."""
        return (position + 0.5) * (draw.FRAME_SIZE / self.size) - 0.5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: the environment, the task and how it is evaluated."""

    arena: Arena
    canvas: Canvas
    motion: Motion
    layouts: tuple[tuple[int, int], ...]  # (wall x, door y)
    goal: Callable[[Variant, Tensor, Tensor, Tensor], Tensor]
    """Variant, starts `[B, 2]`, layouts `[B, 2]`, keys `[B]` -> goals `[B, 2]`."""
    goal_radius: float  # nearer to the goal than this, it counts as reached
    success_at: Literal["final", "ever"]  # the last step, or any
    max_episode_steps: int
    behaviour: Wander | NoisyExpert
    directed_fraction: float  # how often the behaviour policy goes into the other room


def goal_in_other_room(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """A uniform position on the other side of the wall."""
    u, _ = uniform(keys, 2)
    return dynamics.sample_in_room(variant.arena, layout, start[:, 0] < layout[:, 0], u)


def goal_from_rollout(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """The position that the variant's behaviour policy, directed, reaches after some steps."""
    behaviour, position = dynamics.init_behaviour(start, keys), start
    for _ in range(ROLLOUT_STEPS):
        behaviour = dynamics.behaviour_step(
            variant.behaviour, variant.arena, position, layout, behaviour, 1.0
        )
        position = variant.motion.contact(variant.arena, position, behaviour.last_move, layout)
    return position


def layout_table(variant: Variant, split: str) -> Tensor:
    """The layouts [N, 2] of a split. About a fifth are kept for "test"; a single one is in all."""
    rows = torch.tensor(variant.layouts)
    held_out = splitmix64(splitmix64(rows[:, 0]) + rows[:, 1]) % 5 == 0
    keep = {"all": held_out | True, "train": ~held_out, "test": held_out}[split]
    return rows[keep | (len(rows) == 1)].float()


def _grid(wall_x: range, door_y: range) -> tuple[tuple[int, int], ...]:
    return tuple((x, y) for x in wall_x for y in door_y)


def _disk(scale: float, contact: Contact, bound: float = 1.0) -> Motion:
    limit = shrink_to_disk
    return Motion(bound=bound, scale=scale, limit=limit, shrink=limit, contact=contact)


def wander(max_step: float) -> Wander:
    """Steps up to `max_step` pixels, more of them long than in the published data, since a planner
    takes long steps; and every other directed policy goes straight into the wall, so that the data
    show what a wall is."""
    return Wander(
        mean=0.7 * max_step,
        std=0.4 * max_step,
        low=0.05 * max_step,
        high=max_step,
        ignoring_fraction=0.5,
    )


_TWO_CHANNELS_65 = Canvas(size=65, border=(4, 4), dot_std=1.3, channels=2, paint=two_channels)

_EB_FIXED = Variant(
    arena=Arena(low=4, high=60, wall_width=3, half_door=4),
    canvas=_TWO_CHANNELS_65,
    motion=_disk(1.0, dynamics.rebound, bound=2.45),
    layouts=((32, 18),),
    goal=goal_in_other_room,
    goal_radius=4.5,
    success_at="final",
    max_episode_steps=200,
    behaviour=Wander(),
    directed_fraction=0.35,
)

_FIXED = replace(
    _EB_FIXED,
    arena=Arena(low=4, high=60, wall_width=3, half_door=5),
    motion=_disk(0.05 * 56, dynamics.slide),
    layouts=((32, 20),),
    goal_radius=0.06 * 56,
    max_episode_steps=50,
    behaviour=wander(0.05 * 56),
    directed_fraction=0.1,
)

_RANDOM = replace(
    _FIXED,
    arena=Arena(low=1, high=30, wall_width=2, half_door=3),
    canvas=Canvas(size=32, border=(0, 0), dot_std=1.0, channels=2, paint=two_channels),
    motion=_disk(0.05 * 29, dynamics.slide),
    layouts=_grid(range(10, 22), range(6, 26)),
    goal_radius=0.06 * 29,
    max_episode_steps=60,
    behaviour=wander(0.05 * 29),
    directed_fraction=0.35,
)

VARIANTS: dict[str, Variant] = {
    "fixed": _FIXED,
    "random": _RANDOM,
    "slow": replace(
        _RANDOM,
        motion=_disk(0.005 * 29, dynamics.slide),
        layouts=((16, 10),),
        max_episode_steps=350,
        behaviour=wander(0.005 * 29),
    ),
    "eb-fixed": _EB_FIXED,
    "eb-random": replace(_EB_FIXED, layouts=_grid(range(20, 45), range(10, 55))),
    "pldm": replace(
        _EB_FIXED,
        layouts=((32, 10),),
        goal_radius=math.sqrt(2),  # a mean squared coordinate error of 1
        success_at="ever",
        directed_fraction=0.6,
    ),
    "swm": Variant(
        arena=Arena(low=21, high=203, wall_width=10, half_door=14, body=7, clearance=7),
        canvas=Canvas(size=224, border=(10, 13), dot_std=7, channels=3, paint=red_on_white),
        motion=Motion(
            bound=1.0, scale=5.0, limit=clip_to_box, shrink=shrink_to_box, contact=dynamics.slide
        ),
        layouts=((112, 49),),
        goal=goal_from_rollout,
        goal_radius=16,
        success_at="ever",
        max_episode_steps=50,
        behaviour=NoisyExpert(full_step=5.0),
        directed_fraction=1.0,
    ),
}
"""`pldm`: arXiv 2502.14819; `eb-*`: 2602.03604; `swm`: 2605.21800; the others are ours."""
