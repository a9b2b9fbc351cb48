"""Layouts, how the agent moves, eats, loses energy and is damaged, an expert for each task, and the
behaviour policy, which gathers experience. The arena is the unit square; y grows downwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import SegmentState
from ..batch import pick, where
from ..geometry import direction, rotate, shrink_to_disk
from ..rng import between, integers, splitmix64, uniform, von_mises

STEP = 0.05  # how far a full action moves the agent
NUM_FOODS = 2
MOUTH = 0.12  # largest distance from which the agent eats
MEAL = 0.4  # energy in a ripe food
ENERGY_LOSS = 0.02  # energy that a step costs
REGROWTH = 40  # steps from nothing to ripe

MARGIN = 0.05  # from everything but the hazard to the borders
MIN_START_GOAL = 0.6  # least distance from start to flag
HAZARD_RADIUS = (0.14, 0.20)  # 0.4 of the way to the flag is 0.04 more than the largest
HAZARD_FRACTION = (0.4, 0.6)  # of the straight path from start to flag, where the hazard lies
FOOD_GAP, FLAG_GAP, HAZARD_GAP = 0.15, 0.1, 0.05  # from a food to other foods, flag and hazard
CANDIDATES = 24

SPLITS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda keys: keys,
    "train": lambda keys: keys & ~1,
    "test": lambda keys: keys | 1,
}
"""The key [B] of a layout is even in "train" and odd in "test": no two are shared."""

AT_FLAG = 0.06  # nearer to the flag than this, it counts as reached
AT_START = 0.05  # as near as this to the start, the agent counts as staying there
ENOUGH_ENERGY = 0.5
ENOUGH_CELLS = 29
GRID = 6  # cells along a side

HAZARD_MARGIN = 0.02  # between the hazard's edge and the path round it
BLOCKED = 10.0  # added to the length of a path that leaves the arena
MEAL_STEPS = 2.0  # that a meal takes

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
IDLE = 0.1  # fraction of the segments
SEGMENT_STEPS = (10, 25)
LINGER = 3  # steps at most that a directed policy stays at its target
AT_TARGET = 0.02
MIN_STRENGTH = 0.1  # of the full step
OUTSIDE = 0.6  # how far beyond the borders a target may lie


class Layout(NamedTuple):
    """What stays where it is in B environments."""

    start: Tensor  # [B, 2]
    flag: Tensor  # [B, 2]
    hazard: Tensor  # [B, 2] its centre
    radius: Tensor  # [B] the hazard's
    food: Tensor  # [B, 2, 2]


class EpisodeRecord(NamedTuple):
    """What has happened in B episodes so far."""

    steps: Tensor  # [B]
    eaten: Tensor  # [B] food, summed
    damage: Tensor  # [B] summed
    stayed: Tensor  # [B] steps that ended at the start
    visited: Tensor  # [B, 36] bool


class State(NamedTuple):
    position: Tensor  # [B, 2]
    energy: Tensor  # [B] in [0, 1]
    growth: Tensor  # [B, 2] in [0, 1], 1 is ripe
    damage: Tensor  # [B] in this step
    meal: Tensor  # [B] food eaten in this step
    layout: Layout
    record: EpisodeRecord
    behaviour: SegmentState

    @property
    def at_flag(self) -> Tensor:
        """[B] bool."""
        return distance(self.position, self.layout.flag) <= AT_FLAG

    @property
    def at_start(self) -> Tensor:
        """[B] bool."""
        return distance(self.position, self.layout.start) <= AT_START

    @property
    def cells(self) -> Tensor:
        """[B] cells visited so far."""
        return self.record.visited.sum(-1)


def distance(here: Tensor, there: Tensor) -> Tensor:
    """[..., 2] and [..., 2] -> [...]."""
    return (here - there).square().sum(-1).sqrt()


def to_action(move: Tensor) -> Tensor:
    """Moves [..., 2] -> the longest actions [..., 2] along them that don't overshoot."""
    return shrink_to_disk(move / STEP, 1.0)


def first_valid(candidates: Tensor, clearance: Tensor) -> Tensor:
    """Candidates [B, K, ...], and by how much each meets the rules [B, K] -> the first that does,
    or the one that misses them by least, [B, ...]."""
    return pick(candidates, clearance.clamp(max=0).argmax(-1))  # of equals, the first


def sample_start_flag(u: Tensor) -> Tensor:
    """Uniform [B, 4 K] -> start and flag, [B, 2 positions, 2], far enough apart."""
    ends = between(u, (MARGIN, 1 - MARGIN)).unflatten(-1, (CANDIDATES, 2, 2))
    # The opposite corner is far enough from anywhere, if no candidate is.
    start = ends[:, -1:, 0]
    corner = torch.where(start < 0.5, 1 - MARGIN, MARGIN)
    ends = torch.cat([ends, torch.stack([start, corner], 2)], 1)
    return first_valid(ends, distance(ends[:, :, 0], ends[:, :, 1]) - MIN_START_GOAL)


def sample_hazard(u: Tensor, start: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform [B, 3], ends [B, 2] -> centre [B, 2] and radius [B], across the straight path."""
    radius = between(u[:, 0], HAZARD_RADIUS)
    path = flag - start
    ahead = path / distance(flag, start).unsqueeze(-1)
    sideways = torch.stack([-ahead[:, 1], ahead[:, 0]], -1)
    offset = sideways * (radius * (u[:, 2] - 0.5)).unsqueeze(-1)
    middle = start + path * between(u[:, 1:2], HAZARD_FRACTION)
    centre = middle + offset
    outside = ((centre < 0) | (centre > 1)).any(-1, keepdim=True)
    return torch.where(outside, middle - offset, centre), radius


def sample_food(u: Tensor, flag: Tensor, hazard: Tensor, radius: Tensor) -> Tensor:
    """Uniform [B, 4 K] -> positions [B, 2, 2], each away from those before it."""
    foods = between(u, (MARGIN, 1 - MARGIN)).unflatten(-1, (NUM_FOODS, CANDIDATES, 2))
    others = torch.stack([flag, hazard], 1)  # [B, n, 2] what to keep away from, and how far
    gaps = torch.stack([torch.full_like(radius, FLAG_GAP), radius + HAZARD_GAP], 1)
    for candidates in foods.unbind(1):
        clearance = distance(candidates[:, :, None], others[:, None]) - gaps[:, None]
        food = first_valid(candidates, clearance.amin(-1))
        others = torch.cat([others, food[:, None]], 1)
        gaps = torch.cat([gaps, torch.full_like(radius, FOOD_GAP)[:, None]], 1)
    return others[:, 2:]


def sample_layout(keys: Tensor, split: str) -> Layout:
    """Keys [B] -> layouts of the split. Constraints hold by construction where they must, and else
    by taking the first of a fixed number of candidates that meets them."""
    counts = [3, 4 * CANDIDATES, 2 * NUM_FOODS * CANDIDATES]
    u, _ = uniform(splitmix64(SPLITS[split](keys)), sum(counts))
    for_hazard, for_ends, for_food = u.split(counts, dim=-1)
    start, flag = sample_start_flag(for_ends).unbind(1)
    hazard, radius = sample_hazard(for_hazard, start, flag)
    return Layout(start, flag, hazard, radius, sample_food(for_food, flag, hazard, radius))


def move(position: Tensor, actions: Tensor) -> Tensor:
    """Positions and actions [..., 2] -> positions; at a border the agent slides."""
    return (position + STEP * shrink_to_disk(actions, 1.0)).clamp(0, 1)


def damage_at(position: Tensor, hazard: Tensor, radius: Tensor) -> Tensor:
    """Positions and hazards [..., 2], radius [...] -> damage [...], more the deeper inside."""
    return (1 - distance(position, hazard) / radius).clamp(min=0)


def mark_visited(visited: Tensor, position: Tensor) -> Tensor:
    """Visited cells [B, 36] -> the same and the one that the position [B, 2] is in."""
    column, row = (position * GRID).long().clamp(max=GRID - 1).unbind(-1)
    cell = row * GRID + column
    return visited | (torch.arange(GRID * GRID, device=position.device) == cell[:, None])


def step_state(state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later. Food grows before it can be eaten. A larger
    fraction of what has grown is eaten the nearer it is, all of it at distance 0."""
    layout, record = state.layout, state.record
    position = move(state.position, actions)
    growth = (state.growth + 1 / REGROWTH).clamp(max=1)  # [B, 2]
    nearness = 1 - distance(position.unsqueeze(-2), layout.food) / MOUTH
    eaten_of_each = growth * nearness.clamp(min=0)
    eaten = eaten_of_each.sum(-1)
    damage = damage_at(position, layout.hazard, layout.radius)
    state = state._replace(
        position=position,
        energy=((state.energy - ENERGY_LOSS).clamp(min=0) + MEAL * eaten).clamp(max=1),
        growth=growth - eaten_of_each,
        damage=damage,
        meal=eaten,
    )
    record = record._replace(
        steps=record.steps + 1,
        eaten=record.eaten + eaten,
        damage=record.damage + damage,
        stayed=record.stayed + state.at_start,
        visited=mark_visited(record.visited, position),
    )
    return state._replace(record=record)


class Evaluation(NamedTuple):
    """How B episodes stand."""

    score: Tensor  # [B] float32, of the episode so far
    success: Tensor  # [B] bool, as of now


def evaluate_staying(state: State) -> Evaluation:
    """The score is the fraction of steps at the start; success is to be there."""
    steps, stayed = state.record.steps, state.record.stayed
    fraction = (stayed + (steps == 0)) / steps.clamp(min=1)  # 1 before the first step
    return Evaluation(fraction, state.at_start)


TASKS: dict[str, Callable[[State], Evaluation]] = {
    "eat": lambda state: Evaluation(state.record.eaten, state.energy >= ENOUGH_ENERGY),
    "flag": lambda state: Evaluation(state.at_flag.float(), state.at_flag),
    "explore": lambda state: Evaluation(state.cells.float(), state.cells >= ENOUGH_CELLS),
    "stay": evaluate_staying,
}


def expert_eat(state: State) -> Tensor:
    """Actions [B, 2] to the food that will have grown most for the steps it takes to get there."""
    food, here = state.layout.food, state.position[:, None]
    travel = distance(food, here) / STEP
    growth = (state.growth + travel / REGROWTH).clamp(max=1)
    best = (growth / (travel + MEAL_STEPS)).argmax(-1)
    return to_action(pick(food, best) - state.position)


def expert_flag(state: State) -> Tensor:
    """Actions [B, 2] of the shortest path to the flag that keeps clear of the hazard: straight
    where it can be, else along the tangent on the better side."""
    layout, position = state.layout, state.position
    path, radius = layout.flag - position, layout.radius + HAZARD_MARGIN
    straight = is_clear(position, path, layout.hazard, layout.radius + HAZARD_MARGIN / 2)
    side = torch.where(detour(state, 1) <= detour(state, -1), 1.0, -1.0)
    inward = layout.hazard - position
    to_centre = inward.square().sum(-1).sqrt().clamp(min=1e-6)
    sin = (radius / to_centre).clamp(max=1)
    cos = (1 - sin.square()).sqrt()
    x, y = (inward / to_centre[:, None]).unbind(-1)
    # The direction to the centre, turned away from it until the path only touches the disk.
    along = torch.stack([x * cos + side * y * sin, y * cos - side * x * sin], -1)
    return to_action(torch.where(straight[:, None], path, STEP * along))


def is_clear(position: Tensor, path: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """[B] bool: the straight path [B, 2] from the position stays out of the disk."""
    length = path.square().sum(-1).clamp(min=1e-12)
    along = (((centre - position) * path).sum(-1) / length).clamp(0, 1)
    return distance(position + along[:, None] * path, centre) >= radius


def detour(state: State, side: int) -> Tensor:
    """The length [B] of the path to the flag round this side of the hazard (1: the angle about its
    centre grows); long, where the path would leave the arena."""
    layout = state.layout
    radius = layout.radius + HAZARD_MARGIN
    here, there = state.position - layout.hazard, layout.flag - layout.hazard
    angle = torch.atan2(here[:, 1], here[:, 0])
    turn = (side * (torch.atan2(there[:, 1], there[:, 0]) - angle)) % (2 * math.pi)
    first, to_disk = tangent(here, radius)
    last, from_disk = tangent(there, radius)
    arc = (turn - first - last).clamp(min=0)
    fraction = torch.linspace(0, 1, 9, device=arc.device)
    bend = angle[:, None] + side * (first[:, None] + arc[:, None] * fraction)  # [B, 9]
    points = direction(bend) * radius[:, None, None] + layout.hazard[:, None]
    blocked = ((points < 0) | (points > 1)).flatten(1).any(-1)
    return to_disk + from_disk + radius * arc + BLOCKED * blocked


def tangent(position: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, 2] about a disk -> the angle [B] to where a tangent touches, its length [B]."""
    to_centre = position.square().sum(-1).sqrt()
    angle = torch.acos((radius / to_centre.clamp(min=1e-6)).clamp(max=1))
    return angle, (to_centre.square() - radius.square()).clamp(min=0).sqrt()


@lru_cache
def lanes(device: torch.device) -> Tensor:
    """From each corner (left top, right top, left bottom, right bottom) up and down the columns:
    the cells in order, [4, 36]."""
    row = torch.arange(GRID, device=device)
    order = torch.stack([row * GRID + c for c in range(GRID)])  # [column, 6]
    order[1::2] = order[1::2].flip(-1)
    cells = order.flatten()
    across = cells // GRID * GRID + GRID - 1 - cells % GRID
    down = (GRID - 1 - cells // GRID) * GRID + cells % GRID
    both = (GRID - 1 - across // GRID) * GRID + across % GRID
    return torch.stack([cells, across, down, both])


def expert_explore(state: State) -> Tensor:
    """Actions [B, 2] to the first cell not yet visited, lane by lane; none after the last."""
    corner = (state.layout.start > 0.5).long()
    order = lanes(state.position.device)[corner[:, 0] + 2 * corner[:, 1]]  # [B, 36]
    left = ~state.record.visited.gather(1, order)
    following = order.gather(1, left.long().argmax(-1, keepdim=True))  # [B, 1]
    centre = torch.cat([following % GRID, following // GRID], -1) + 0.5
    return to_action(centre / GRID - state.position) * left.any(-1, keepdim=True)


EXPERTS: dict[str, Callable[[State], Tensor]] = {
    "eat": expert_eat,
    "flag": expert_flag,
    "explore": expert_explore,
    "stay": lambda state: torch.zeros_like(state.position),
}


def sample_target(layout: Layout, u: Tensor) -> Tensor:
    """Uniform [B, 4] -> [B, 2]: the flag, the hazard or any position, and a food twice as often.
    Some positions are outside, so that the policy meets borders."""
    food = pick(layout.food, (NUM_FOODS * u[:, 0]).long())
    anywhere = u[:, 2:] * (1 + 2 * OUTSIDE) - OUTSIDE
    targets = torch.stack([food, food, layout.flag, layout.hazard, anywhere], 1)
    return pick(targets, (5 * u[:, 1]).long())


def behaviour_step(
    behaviour: SegmentState, position: Tensor, layout: Layout, directed_fraction: float
) -> tuple[SegmentState, Tensor]:
    """The behaviour policy one step on, and its actions [B, 2]. Every 10 to 25 steps the policy is
    resampled: idle in a tenth of the segments, directed in `directed_fraction` of the others, else
    drifting. A third of the steps are full, the others have any length down to a tenth."""
    u, keys = uniform(behaviour.keys, 8)
    arrived = behaviour.directed & (distance(behaviour.target, position) < AT_TARGET)
    linger = ((LINGER + 1) * u[:, 0]).floor()
    left = behaviour.steps_left
    left = torch.where(arrived, torch.minimum(left, linger), left)
    idle = u[:, 1] < IDLE
    directed = ~idle & (u[:, 2] < directed_fraction)
    target, steps = sample_target(layout, u[:, 4:]), integers(u[:, 3], SEGMENT_STEPS)
    new = SegmentState(behaviour.heading, target, directed, idle, steps, keys)
    behaviour = where(left <= 0, new, behaviour._replace(steps_left=left))
    u, keys = uniform(keys, 2)
    heading = rotate(behaviour.heading, von_mises(u[:, 0], KAPPA))
    strength = (MIN_STRENGTH + 1.35 * u[:, 1:]).clamp(max=1)
    directed = behaviour.directed[:, None]
    ahead = torch.where(directed, behaviour.target - position, STEP * heading)
    actions = to_action(ahead) * strength * ~behaviour.idle[:, None]
    left = behaviour.steps_left - 1
    return behaviour._replace(heading=heading, steps_left=left, keys=keys), actions
