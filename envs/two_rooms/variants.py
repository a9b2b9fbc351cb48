"""Which two rooms: the published tasks that share the name, and our own.

Lengths are pixels of the variant's own image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..chance import draw, mix
from ..plane import clip_to_box, shrink_to_box, shrink_to_disk
from .physics import (
    Arena,
    Contact,
    Motion,
    place_in_room,
    rebound,
    slide,
)
from .policies import NoisyExpert, Scene, Walker, Wander, set_out
from .rendering import Canvas, red_on_white, two_channels

GoalRule: TypeAlias = Callable[["Variant", Tensor, Tensor, Tensor], Tensor]
"""Variant, starts `[B, 2]`, layouts `[B, 2]`, keys `[B]` -> goals `[B, 2]`."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: the world, the task and how it is judged."""

    arena: Arena
    canvas: Canvas
    motion: Motion
    layouts: tuple[tuple[int, int], ...]  # (wall x, door y)
    goal: GoalRule
    radius: float  # success is being nearer to the goal than this
    judged: Literal["final", "ever"]  # at the last step, or at any
    max_episode_steps: int  # steps in an episode
    walker: Walker
    errands: float  # chance that a stretch of a walk is an errand to the other room


def in_opposite_room(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """A uniform place on the other side of the wall."""
    uniform, _ = draw(keys, 2)
    return place_in_room(variant.arena, layout, start[:, 0] < layout[:, 0], uniform)


@dataclass(frozen=True, kw_only=True)
class WhereWalkLeads:
    """The place that the variant's own walker, on an errand, reaches after some steps."""

    steps: int

    def __call__(self, variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
        walk, position = set_out(start, keys), start
        for _ in range(self.steps):
            scene = Scene(position, layout)
            walk = variant.walker(variant.arena, scene, walk, 1.0)
            position = variant.motion.contact(variant.arena, position, walk.last, layout)
        return position


def table(variant: Variant, split: str) -> Tensor:
    """The layouts [N, 2] of a split. About a fifth are kept for "test"; a single one is in all."""
    rows = torch.tensor(variant.layouts)
    held_out = mix(mix(rows[:, 0]) + rows[:, 1]) % 5 == 0
    keep = {"all": held_out | True, "train": ~held_out, "test": held_out}[split]
    return rows[keep | (len(rows) == 1)].float()


def _grid(wall_x: range, door_y: range) -> tuple[tuple[int, int], ...]:
    return tuple((x, y) for x in wall_x for y in door_y)


def _disk(scale: float, contact: Contact, bound: float = 1.0) -> Motion:
    return Motion(
        bound=bound, scale=scale, limit=shrink_to_disk, shrink=shrink_to_disk, contact=contact
    )


def wander(longest: float) -> Wander:
    """Steps up to the longest, more of them long than in the published walks, since long steps are
    what a planner takes; and every other errand against the wall, to learn what a wall is."""
    return Wander(
        mean=0.7 * longest, std=0.4 * longest, low=0.05 * longest, high=longest, blind=0.5
    )


_TWO_CHANNELS_65 = Canvas(size=65, border=(4, 4), dot_std=1.3, channels=2, paint=two_channels)

_EB_FIXED = Variant(
    arena=Arena(low=4, high=60, wall_width=3, half_door=4),
    canvas=_TWO_CHANNELS_65,
    motion=_disk(1.0, rebound, bound=2.45),
    layouts=((32, 18),),
    goal=in_opposite_room,
    radius=4.5,
    judged="final",
    max_episode_steps=200,
    walker=Wander(),
    errands=0.35,
)

_FIXED = replace(
    _EB_FIXED,
    arena=Arena(low=4, high=60, wall_width=3, half_door=5),
    motion=_disk(0.05 * 56, slide),
    layouts=((32, 20),),
    radius=0.06 * 56,
    max_episode_steps=50,
    walker=wander(0.05 * 56),
    errands=0.1,
)

_RANDOM = replace(
    _FIXED,
    arena=Arena(low=1, high=30, wall_width=2, half_door=3),
    canvas=Canvas(size=32, border=(0, 0), dot_std=1.0, channels=2, paint=two_channels),
    motion=_disk(0.05 * 29, slide),
    layouts=_grid(range(10, 22), range(6, 26)),
    radius=0.06 * 29,
    max_episode_steps=60,
    walker=wander(0.05 * 29),
    errands=0.35,
)

VARIANTS: dict[str, Variant] = {
    "fixed": _FIXED,
    "random": _RANDOM,
    "slow": replace(
        _RANDOM,
        motion=_disk(0.005 * 29, slide),
        layouts=((16, 10),),
        max_episode_steps=350,
        walker=wander(0.005 * 29),
    ),
    "eb-fixed": _EB_FIXED,
    "eb-random": replace(_EB_FIXED, layouts=_grid(range(20, 45), range(10, 55))),
    "pldm": replace(
        _EB_FIXED,
        layouts=((32, 10),),
        radius=math.sqrt(2),  # a mean squared coordinate error of 1
        judged="ever",
        errands=0.6,
    ),
    "swm": Variant(
        arena=Arena(low=21, high=203, wall_width=10, half_door=14, body=7, clearance=7),
        canvas=Canvas(size=224, border=(10, 13), dot_std=7, channels=3, paint=red_on_white),
        motion=Motion(bound=1.0, scale=5.0, limit=clip_to_box, shrink=shrink_to_box, contact=slide),
        layouts=((112, 49),),
        goal=WhereWalkLeads(steps=25),
        radius=16,
        judged="ever",
        max_episode_steps=50,
        walker=NoisyExpert(reach=5.0),
        errands=1.0,
    ),
}
"""`pldm`: arXiv 2502.14819; `eb-*`: 2602.03604; `swm`: 2605.21800; the rest are ours."""
