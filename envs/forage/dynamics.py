"""How layouts are drawn, and how the agent moves, eats, loses energy and is damaged.

The arena is the unit square; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import pick
from ..geometry import shrink_to_disk
from ..rng import between, splitmix64, uniform

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
"""The key [B] of a layout is an even number in "train" and an odd one in "test": no two are
shared."""

AT_FLAG = 0.06  # nearer to the flag than this, it counts as reached
AT_START = 0.05  # as near as this to the start, the agent counts as staying there
ENOUGH_ENERGY = 0.5
ENOUGH_CELLS = 29
GRID = 6  # cells along a side


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


class BehaviourState(NamedTuple):
    """What the behaviour policy does in B environments."""

    heading: Tensor  # [B, 2] unit vectors
    target: Tensor  # [B, 2] where a directed policy goes
    directed: Tensor  # [B] bool
    idle: Tensor  # [B] bool
    steps_left: Tensor  # [B] until the policy is resampled
    keys: Tensor  # [B] int64


class State(NamedTuple):
    """The state of B environments."""

    position: Tensor  # [B, 2]
    energy: Tensor  # [B] in [0, 1]
    growth: Tensor  # [B, 2] in [0, 1], 1 is ripe
    damage: Tensor  # [B] in this step
    meal: Tensor  # [B] food eaten in this step
    layout: Layout
    record: EpisodeRecord
    behaviour: BehaviourState

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
    u, _ = uniform(splitmix64(SPLITS[split](keys)), 3 + 4 * CANDIDATES + 2 * NUM_FOODS * CANDIDATES)
    for_hazard, for_ends, for_food = u.split(
        [3, 4 * CANDIDATES, 2 * NUM_FOODS * CANDIDATES], dim=-1
    )
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
    eaten_of_each = growth * (1 - distance(position.unsqueeze(-2), layout.food) / MOUTH).clamp(
        min=0
    )
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


def to_factors(state: State) -> Tensor:
    """x and y, energy, growth of the foods, [B, 5]."""
    return torch.cat([state.position, state.energy[:, None], state.growth], -1)


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
