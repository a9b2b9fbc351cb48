"""The expert, which takes the shortest path, and the behaviour policies that gather data: our own,
and those of the published data sets. Lengths are pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..base import SegmentState
from ..batch import pick
from ..geometry import direction
from ..rng import normal, truncated_normal, uniform, von_mises
from .dynamics import Arena, is_free, is_visible, sample_in_room

BLOCKED = 1e6  # the length of a path that isn't open
AT_WAYPOINT = 0.05  # pixels
WALK_STEPS = 90  # of a published walk


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


def beside_wall(arena: Arena, goal: Tensor, layout: Tensor) -> Tensor:
    """Goals [B, 2], those inside the wall moved out of it to the nearer side."""
    wall_x = layout[:, 0]
    side = torch.where(goal[:, 0] < wall_x, -1.0, 1.0)
    beside = torch.stack([wall_x + side * (arena.half_wall + 1), goal[:, 1]], -1)
    return torch.where(is_free(arena, goal, layout)[:, None], goal, beside)


class Scene(NamedTuple):
    """What a policy sees of B environments."""

    position: Tensor  # [B, 2]
    goal: Tensor  # [B, 2]
    layout: Tensor  # [B, 2]


class BehaviourState(NamedTuple):
    last_move: Tensor  # [B, 2] pixels, before any contact
    target: Tensor  # [B, 2] where a directed policy goes
    directed: Tensor  # [B] bool: to the target, or wandering
    ignores_walls: Tensor  # [B] bool: straight to the target, into the wall
    steps_left: Tensor  # [B] until the policy is resampled
    keys: Tensor  # [B] int64
    walk: Tensor  # [B, W, 2] the moves of a published walk; W is 0 where there is none


def init_behaviour(position: Tensor, keys: Tensor, walk: Tensor | None = None) -> BehaviourState:
    """A behaviour policy as an episode begins, with a heading, or with a walk [B, W, 2]."""
    segment = SegmentState.begin(position, keys)
    if walk is None:
        return BehaviourState(*segment, walk=position[:, None, :][:, :0])
    return BehaviourState(*segment, walk=walk)._replace(
        steps_left=torch.full_like(segment.steps_left, walk.shape[1])
    )


class BehaviourPolicy(Protocol):
    """A policy that gathers data."""

    def step(
        self, arena: Arena, scene: Scene, behaviour: BehaviourState, directed_fraction: float
    ) -> BehaviourState:
        """The policy one step later, whose `last_move` is the move to make."""


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

    def length(self, u: Tensor) -> Tensor:
        """Uniform [...] in [0, 1) -> lengths of steps [...]."""
        return truncated_normal(u, mean=self.mean, std=self.std, low=self.low, high=self.high)

    def step(
        self, arena: Arena, scene: Scene, behaviour: BehaviourState, directed_fraction: float
    ) -> BehaviourState:
        """Every 20 to 40 steps, or on arrival, the policy is resampled: with probability
        `directed_fraction` it goes to a position in the other room, until it arrives or for four
        times the steps that cross the arena; else it wanders. `ignoring_fraction` of the directed
        ones go straight on, meet the wall, and last as long as wandering."""
        position, _, layout = scene
        u, keys = uniform(behaviour.keys, 5)
        arrived = (behaviour.target - position).norm(dim=-1) < 0.05 * arena.side
        renew = (behaviour.steps_left <= 0) | (behaviour.directed & arrived)
        directed = torch.where(renew, u[:, 0] < directed_fraction, behaviour.directed)
        wander_steps = 20 + (21 * u[:, 1]).floor()
        ignoring = u[:, 2] < self.ignoring_fraction
        ignoring = torch.where(renew, ignoring, behaviour.ignores_walls) & directed
        directed_steps = 4 * arena.side / self.mean
        steps = torch.where(directed & ~ignoring, directed_steps, wander_steps)
        target = sample_in_room(arena, layout, position[:, 0] < layout[:, 0], u[:, 3:])
        target = torch.where(renew[:, None], target, behaviour.target)

        waypoint = next_waypoint(arena, position, target, layout)
        to_target = torch.where(ignoring[:, None], target, waypoint) - position
        ahead = torch.where(directed[:, None], to_target, behaviour.last_move)
        ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        u, keys = uniform(keys, 2)
        heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(u[:, 0], self.kappa)
        return behaviour._replace(
            last_move=direction(heading) * self.length(u[:, 1:]),
            target=target,
            directed=directed,
            ignores_walls=ignoring,
            steps_left=torch.where(renew, steps, behaviour.steps_left) - 1,
            keys=keys,
        )


@dataclass(frozen=True, kw_only=True)
class NoisyExpert:
    """Goes to the goal, by the middle of the door where the goal is in the other room, with normal
    noise on both coordinates of its direction, clipped to the box of `full_step` pixels. Source:
    stable-worldmodel, arXiv 2605.21800, whose setting for repeated actions has no effect."""

    full_step: float
    noise: float = 2.0
    at_door: float = 10.5  # pixels from its middle

    def step(
        self, arena: Arena, scene: Scene, behaviour: BehaviourState, directed_fraction: float
    ) -> BehaviourState:
        """As its episode begins, the policy is drawn: with probability `directed_fraction` it is
        the expert, else its moves are the noise alone."""
        position, goal, layout = scene
        u, keys = uniform(behaviour.keys, 3)
        begins = behaviour.steps_left <= 0
        directed = torch.where(begins, u[:, 0] < directed_fraction, behaviour.directed)
        right_of_wall = torch.stack([position[:, 0], goal[:, 0]]) > layout[:, 0]
        by_door = right_of_wall[0] != right_of_wall[1]
        by_door &= (layout - position).norm(dim=-1) > self.at_door
        ahead = torch.where(by_door[:, None], layout, goal) - position
        ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        move = directed[:, None] * ahead + self.noise * normal(u[:, 1:])
        return behaviour._replace(
            last_move=move.clamp(-1, 1) * self.full_step,
            directed=directed,
            steps_left=torch.ones_like(behaviour.steps_left),
            keys=keys,
        )


@dataclass(frozen=True, kw_only=True)
class PublishedWalk:
    """The walks of PLDM's data, arXiv 2502.14819, which EB-JEPA, arXiv 2602.03604, takes over: all
    moves are drawn before the first one. The other settings are those of `Wander`."""

    form: Wander = Wander()
    door_std: float = 1.4  # pixels, of the height at which a walk crosses the door
    max_slope: float = math.pi / 4  # of the heading in the door

    def sample(
        self, arena: Arena, layout: Tensor, keys: Tensor, crossing_fraction: float
    ) -> tuple[Tensor, Tensor]:
        """Layout [B, 2], keys [B] -> starts [B, 2] and moves [B, W, 2]."""
        u, keys = uniform(keys, 11)
        chains = uniform(keys, 2 * (2 * WALK_STEPS - 1))[0].unflatten(-1, (2, -1))
        heading = 2 * math.pi * u[:, 0]
        walks = self._anywhere(arena, layout, u[:, 1:5]), self._chain(heading, chains[:, 0])
        crossing = self._crossing(arena, layout, u[:, 5:10], chains)
        crosses = u[:, 10] < crossing_fraction
        start = torch.where(crosses[:, None], crossing[0], walks[0])
        return start, torch.where(crosses[:, None, None], crossing[1], walks[1])

    def step(
        self, arena: Arena, scene: Scene, behaviour: BehaviourState, directed_fraction: float
    ) -> BehaviourState:
        """The walk's next move."""
        index = behaviour.walk.shape[1] - behaviour.steps_left.long()
        return behaviour._replace(
            last_move=pick(behaviour.walk, index), steps_left=behaviour.steps_left - 1
        )

    def _chain(self, heading: Tensor, u: Tensor) -> Tensor:
        """First headings [B], uniform [B, 2 W - 1] -> moves [B, W, 2]."""
        turns = von_mises(u[:, : WALK_STEPS - 1], self.form.kappa)
        headings = torch.cat([heading[:, None], turns], 1).cumsum(1)
        return direction(headings) * self.form.length(u[:, WALK_STEPS - 1 :]).unsqueeze(-1)

    def _anywhere(self, arena: Arena, layout: Tensor, u: Tensor) -> Tensor:
        """Uniform [B, 4] -> starts [B, 2], of which those in the wall are drawn anew in a room."""
        start = arena.low + arena.side * u[:, :2]
        wall_x = layout[:, 0]
        left = arena.low + (wall_x - arena.half_wall - arena.low) * u[:, 3]
        right = arena.high - (arena.high - wall_x - arena.half_wall) * u[:, 3]
        x = torch.where(u[:, 2] < 0.5, left, right)
        free = is_free(arena, start, layout)
        return torch.where(free[:, None], start, torch.stack([x, start[:, 1]], -1))

    def _crossing(
        self, arena: Arena, layout: Tensor, u: Tensor, chains: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Uniform [B, 5] and [B, 2, 2 W - 1] -> starts [B, 2] and moves [B, W, 2] through the door:
        two walks from a point in it, the first of them backwards, up to a step of the walk that is
        drawn. Walks that would begin outside of the arena begin at its border."""
        half = arena.half_door
        in_door = layout + torch.stack(
            [
                arena.half_wall * (2 * u[:, 0] - 1),
                truncated_normal(u[:, 1], mean=0, std=self.door_std, low=-half, high=half),
            ],
            -1,
        )
        heading = math.pi + self.max_slope * (2 * u[:, 2] - 1)
        to_left = self._chain(heading, chains[:, 0])
        to_right = self._chain(heading + math.pi, chains[:, 1])
        step = torch.arange(WALK_STEPS, device=u.device)
        door_step = 1 + (WALK_STEPS * u[:, 3:4]).long()  # [B, 1]
        batch = torch.arange(len(u), device=u.device)[:, None]
        before = -to_left[batch, (door_step - 1 - step).clamp(min=0)]
        after = to_right[batch, (1 + step - door_step).clamp(0, WALK_STEPS - 1)]
        moves = torch.where((step < door_step).unsqueeze(-1), before, after)
        turned = u[:, 4:5] < 0.5
        moves = torch.where(turned.unsqueeze(-1), -moves.flip(1), moves)
        num_before = torch.where(turned, WALK_STEPS + 1 - door_step, door_step)
        way = (moves * (step < num_before).unsqueeze(-1)).sum(1)
        return (in_door - way).clamp(arena.low + 0.01, arena.high - 0.01), moves
