"""Somebody to move the dot: one who knows the way, and ones who gather experience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..chance import draw, normal, truncated_normal, von_mises
from ..plane import direction
from .physics import Arena, can_see, place_in_room

FAR = 1e6
REACHED = 0.05  # pixels


def door_posts(arena: Arena, layout: Tensor) -> Tensor:
    """Layout [B, 2] -> [B, 4, 2]: the points around which a way through the door may bend."""
    margin = min(1.0, arena.half_door / 3)
    across, along = arena.half_wall + margin, arena.half_door - margin
    left, right = layout[:, 0] - across, layout[:, 0] + across
    top, bottom = layout[:, 1] - along, layout[:, 1] + along
    posts = [left, top, left, bottom, right, top, right, bottom]
    return torch.stack(posts, -1).unflatten(-1, (4, 2))


def next_waypoint(arena: Arena, start: Tensor, goal: Tensor, layout: Tensor) -> Tensor:
    """[B, 2] each -> [B, 2]: where the shortest way first bends, or the goal where it doesn't."""
    posts, around = door_posts(arena, layout), layout[:, None]
    here, there = start[:, None], goal[:, None]
    leave = (posts - there).norm(dim=-1)  # [B, 4]
    leave = torch.where(can_see(arena, posts, there, around), leave, FAR)
    onward = (torch.cdist(posts, posts) + leave[:, None]).amin(-1)
    reach = (posts - here).norm(dim=-1)
    usable = can_see(arena, here, posts, around) & (reach > REACHED)
    best = (torch.where(usable, reach, FAR) + onward).argmin(-1)
    bend = posts[torch.arange(len(best), device=best.device), best]
    return torch.where(can_see(arena, start, goal, layout)[:, None], goal, bend)


class Walk(NamedTuple):
    """What somebody who walks has in mind, in each of B worlds."""

    last: Tensor  # [B, 2] the last move asked for, in pixels
    target: Tensor  # [B, 2] where the errand leads
    errand: Tensor  # [B] bool: on an errand, or aimless
    blind: Tensor  # [B] bool: the errand goes straight on, door or no door
    patience: Tensor  # [B] steps until something else comes to mind
    keys: Tensor  # [B] int64


class Scene(NamedTuple):
    """What a walker can know about B worlds."""

    position: Tensor  # [B, 2]
    layout: Tensor  # [B, 2]


class Walker(Protocol):
    """One step of a walk: the new state of mind; its `last` is the move to make."""

    def __call__(self, arena: Arena, scene: Scene, walk: Walk, errands: float) -> Walk: ...


def set_out(position: Tensor, keys: Tensor) -> Walk:
    """Nothing in mind yet but a heading."""
    uniform, keys = draw(keys, 1)
    nothing = torch.zeros_like(uniform[:, 0])
    heading = direction(2 * math.pi * uniform[:, 0])
    return Walk(heading, position, nothing > 0, nothing > 0, nothing, keys)


def reconsider(
    arena: Arena, scene: Scene, walk: Walk, errands: float, errand_steps: float, blind: float
) -> Walk:
    """Every 20 to 40 steps, or on arrival: an errand to the other room with chance `errands`.

    An errand lasts until it is done, or `errand_steps` at most; a share `blind` of them goes
    straight on, meets the wall, and is given up like an aimless walk.
    """
    uniform, keys = draw(walk.keys, 5)
    near = (walk.target - scene.position).norm(dim=-1) < 0.05 * arena.side
    renew = (walk.patience <= 0) | (walk.errand & near)
    errand = torch.where(renew, uniform[:, 0] < errands, walk.errand)
    aimless_steps = 20 + (21 * uniform[:, 1]).floor()
    blinded = torch.where(renew, uniform[:, 2] < blind, walk.blind) & errand
    patience = torch.where(errand & ~blinded, errand_steps, aimless_steps)
    right = scene.position[:, 0] < scene.layout[:, 0]
    place = place_in_room(arena, scene.layout, right, uniform[:, 3:])
    return Walk(
        walk.last,
        torch.where(renew[:, None], place, walk.target),
        errand,
        blinded,
        torch.where(renew, patience, walk.patience) - 1,
        keys,
    )


def aim(arena: Arena, scene: Scene, walk: Walk) -> Tensor:
    """The direction [B, 2] somebody without noise would take: the errand's, or the last one."""
    waypoint = next_waypoint(arena, scene.position, walk.target, scene.layout)
    goal = torch.where(walk.blind[:, None], walk.target, waypoint)
    ahead = torch.where(walk.errand[:, None], goal - scene.position, walk.last)
    return ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Wander:
    """A heading that drifts by von Mises noise and steps of truncated normal length.

    Source of the form: PLDM, arXiv 2502.14819. Lengths in pixels.
    """

    kappa: float = 5.0
    mean: float = 1.0
    std: float = 0.4
    low: float = 0.2
    high: float = 1.8
    blind: float = 0.0
    """Share of the errands that take no notice of the wall."""

    def __call__(self, arena: Arena, scene: Scene, walk: Walk, errands: float) -> Walk:
        walk = reconsider(arena, scene, walk, errands, 4 * arena.side / self.mean, self.blind)
        uniform, keys = draw(walk.keys, 2)
        ahead = aim(arena, scene, walk)
        heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(uniform[:, 0], self.kappa)
        move = direction(heading) * self.length(uniform[:, 1:])
        return walk._replace(last=move, keys=keys)

    def length(self, uniform: Tensor) -> Tensor:
        """Uniform [...] in [0, 1) -> lengths of steps [...]."""
        return truncated_normal(uniform, mean=self.mean, std=self.std, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class NoisyExpert:
    """One who knows the way and whose hand shakes; sometimes it repeats its last move.

    Source of the form and the noise: stable-worldmodel, arXiv 2605.21800. Noise is per coordinate,
    in units of the full step; moves are clipped to the box of `reach` pixels.
    """

    reach: float
    noise: float = 2.0
    repeat: float = 0.05

    def __call__(self, arena: Arena, scene: Scene, walk: Walk, errands: float) -> Walk:
        walk = reconsider(arena, scene, walk, errands, 40 * arena.side / self.reach, 0.0)
        uniform, keys = draw(walk.keys, 3)
        shaken = aim(arena, scene, walk) + self.noise * normal(uniform[:, :2])
        move = shaken.clamp(-1, 1) * self.reach
        again = uniform[:, 2:] < self.repeat
        return walk._replace(last=torch.where(again, walk.last, move), keys=keys)
