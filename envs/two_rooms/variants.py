"""The variants: published tasks, by their names, and our own. Lengths are pixels of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .. import draw
from ..geometry import clip_to_box, shrink_to_box, shrink_to_disk
from ..rng import keys_from_seeds, splitmix64, uniform
from . import dynamics
from .dynamics import Arena, EndOutside, Motion
from .policies import NoisyExpert, PublishedWalk, Scene, Wander, init_behaviour
from .render import ROUND_UP, Canvas, red_on_white, two_channels

NUM_RECORDED, RECORDED_STEPS = 10_000, 100  # episodes of the expert, and the length of the longest


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: the environment, the task and how it is evaluated."""

    arena: Arena
    canvas: Canvas
    motion: Motion
    layouts: tuple[tuple[int, int], ...]  # (wall x, door y)
    start: Callable[[Variant, Tensor, Tensor], Tensor]
    """Variant, layouts `[B, 2]`, uniform `[B, 3]` -> starts `[B, 2]`."""
    goal: Callable[[Variant, Tensor, Tensor, Tensor], Tensor]
    """Variant, starts `[B, 2]`, layouts `[B, 2]`, keys `[B]` -> goals `[B, 2]`."""
    goal_radius: float  # nearer to the goal than this, it counts as reached
    success_at: Literal["final", "ever"]  # the last step, or any
    max_episode_steps: int
    behaviour: Wander | NoisyExpert
    directed_fraction: float  # how often the behaviour policy is directed
    published_walk: PublishedWalk | None = None  # of the data set, where that is one of walks
    ends_at_goal: bool = False
    goals_in_wall: bool = False
    goal_offset: int = 0
    """Recorded steps from a start to its goal, where both are from a recorded episode; else 0."""


def start_in_free_space(variant: Variant, layout: Tensor, u: Tensor) -> Tensor:
    """A uniform position in one of the rooms, in each as often as it is large."""
    right = u[:, 0] < dynamics.right_room_fraction(variant.arena, layout)
    return dynamics.sample_in_room(variant.arena, layout, right, u[:, 1:])


def start_in_either_room(variant: Variant, layout: Tensor, u: Tensor) -> Tensor:
    """A uniform position in one of the rooms, in each as often as in the other."""
    return dynamics.sample_in_room(variant.arena, layout, u[:, 0] < 0.5, u[:, 1:])


def goal_in_other_room(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """A uniform position on the other side of the wall."""
    u, _ = uniform(keys, 2)
    return dynamics.sample_in_room(variant.arena, layout, start[:, 0] < layout[:, 0], u)


def goal_anywhere(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """A uniform position in the arena, in the wall too."""
    return variant.arena.low + variant.arena.side * uniform(keys, 2)[0]


def goal_from_rollout(variant: Variant, start: Tensor, layout: Tensor, keys: Tensor) -> Tensor:
    """The position that the behaviour policy reaches after `goal_offset` steps."""
    target = goal_anywhere(variant, start, layout, keys)
    scene, keys = Scene(start, target, layout), splitmix64(keys)
    return rollout(variant, scene, keys, variant.goal_offset)[:, -1]


def rollout(variant: Variant, scene: Scene, keys: Tensor, steps: int) -> Tensor:
    """Positions [B, steps + 1, 2] of the behaviour policy, which goes to the scene's goal."""
    behaviour, positions = init_behaviour(scene.position, keys), [scene.position]
    for _ in range(steps):
        scene = scene._replace(position=positions[-1])
        behaviour = variant.behaviour.step(variant.arena, scene, behaviour, 1.0)
        move = behaviour.last_move
        positions.append(
            variant.motion.contact(variant.arena, scene.position, move, scene.layout, None)
        )
    return torch.stack(positions, 1)


@lru_cache
def recorded_tasks(variant: Variant, device: torch.device) -> Tensor:
    """Pairs [N, 2, 2] of a start and the goal `goal_offset` steps later, all that `NUM_RECORDED`
    episodes of the behaviour policy hold. These are the same ones in every process, and end at
    their goal."""
    keys = keys_from_seeds(range(NUM_RECORDED), torch.device("cpu"))
    u, keys = uniform(keys, 3)
    layout = layout_table(variant, "all").expand(NUM_RECORDED, -1)
    start = variant.start(variant, layout, u)
    scene = Scene(start, goal_anywhere(variant, start, layout, keys), layout)
    positions = rollout(variant, scene, splitmix64(keys), RECORDED_STEPS)
    distance = (positions - scene.goal[:, None]).norm(dim=-1)
    reached = distance[:, 1:] < variant.goal_radius
    last = torch.where(reached.any(1), 1 + reached.int().argmax(1), RECORDED_STEPS)
    offset = variant.goal_offset
    within = torch.arange(offset, RECORDED_STEPS + 1) <= last[:, None]
    pairs = torch.stack([positions[:, :-offset], positions[:, offset:]], 2)
    return pairs[within].to(device)


def layout_table(variant: Variant, split: str) -> Tensor:
    """The layouts [N, 2] of a split. About a fifth are kept for "test"; a single one is in all."""
    rows = torch.tensor(variant.layouts)
    held_out = splitmix64(splitmix64(rows[:, 0]) + rows[:, 1]) % 5 == 0
    keep = {"all": held_out | True, "train": ~held_out, "test": held_out}[split]
    return rows[keep | (len(rows) == 1)].float()


def _grid(wall_x: range, door_y: range) -> tuple[tuple[int, int], ...]:
    return tuple((x, y) for x in wall_x for y in door_y)


def _sliding(scale: float) -> Motion:
    limit = shrink_to_disk
    return Motion(bound=1.0, scale=scale, limit=limit, shrink=limit, contact=dynamics.slide)


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


_CANVAS_65 = Canvas(
    size=65,
    border=(4, 4),
    half_wall=1,
    half_door=4,
    dot_std=1.3,
    channels=2,
    paint=two_channels,
)

_EB_FIXED = Variant(
    arena=Arena(low=4, high=60, half_wall=1, half_door=4, clearance=2.6),
    canvas=_CANVAS_65,
    # The environment bounds each coordinate; planners and our expert keep to the disk.
    motion=Motion(
        bound=2.45,
        scale=1.0,
        limit=clip_to_box,
        shrink=shrink_to_disk,
        contact=dynamics.rebound,
        random_contact=True,
    ),
    layouts=((32, 18),),
    start=start_in_either_room,
    goal=goal_in_other_room,
    goal_radius=4.5,
    success_at="final",
    max_episode_steps=200,
    behaviour=Wander(),
    directed_fraction=0.35,
    published_walk=PublishedWalk(),
)

_FIXED = Variant(
    arena=Arena(low=4, high=60, half_wall=1.5, half_door=5),
    canvas=replace(_CANVAS_65, half_door=5, walls_to_edge=False, rounding=draw.ROUNDING),
    motion=_sliding(0.05 * 56),
    layouts=((32, 20),),
    start=start_in_free_space,
    goal=goal_in_other_room,
    goal_radius=0.06 * 56,
    success_at="final",
    max_episode_steps=50,
    behaviour=wander(0.05 * 56),
    directed_fraction=0.1,
)

_RANDOM = replace(
    _FIXED,
    arena=Arena(low=1, high=30, half_wall=1, half_door=3),
    canvas=replace(_FIXED.canvas, size=32, border=(0, 0), half_door=3, dot_std=1.0),
    motion=_sliding(0.05 * 29),
    layouts=_grid(range(10, 22), range(6, 26)),
    goal_radius=0.06 * 29,
    max_episode_steps=60,
    behaviour=wander(0.05 * 29),
    directed_fraction=0.35,
)

_SWM = Variant(
    # The wall keeps the point mass's radius of 7; the door is wider by 1.75 than it looks.
    arena=Arena(low=14, high=209, half_wall=5 + 7, half_door=14 + 1.75, clearance=0),
    canvas=Canvas(
        size=224,
        border=(10, 13),
        half_wall=5,
        half_door=14,
        dot_std=7,
        channels=3,
        paint=red_on_white,
        rounding=ROUND_UP,
    ),
    motion=Motion(
        bound=1.0,
        scale=5.0,
        limit=clip_to_box,
        shrink=shrink_to_box,
        contact=EndOutside(borders=(21, 203), gap=0.5),
    ),
    layouts=((112, 49),),
    start=start_in_free_space,
    goal=goal_anywhere,
    goal_radius=16,
    success_at="ever",
    max_episode_steps=100,
    behaviour=NoisyExpert(full_step=5.0),
    directed_fraction=1.0,
    ends_at_goal=True,
    goals_in_wall=True,
)

VARIANTS: dict[str, Variant] = {
    "fixed": _FIXED,
    "random": _RANDOM,
    "slow": replace(
        _RANDOM,
        motion=_sliding(0.005 * 29),
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
    "swm": _SWM,
    **{
        f"swm-{offset}": replace(
            _SWM, goal=goal_from_rollout, goal_offset=offset, max_episode_steps=2 * offset
        )
        for offset in (25, 50, 75, 100)
    },
}
"""`pldm`: arXiv 2502.14819, as in vladisai/PLDM at cbaf674; `eb-*`: 2602.03604, as in
facebookresearch/eb_jepa at 966e61e; `swm`: 2605.21800, as `swm/TwoRoom-v1` resets itself in
galilai-group/stable-worldmodel at addbab4, and `swm-25` as its evaluation takes start and goal from
recorded episodes, the others farther apart. All other variants are ours."""
