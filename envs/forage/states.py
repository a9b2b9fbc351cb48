"""The state of B worlds, how it begins and goes on, and what an observer is told about it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .layouts import draw_layout, spread
from .physics import FOODS, Layout, bites, damage, distance, fed, moved, regrown
from .walks import Walk, set_out

GRID = 6  # cells along a side
ENERGY = (0.3, 0.8)  # at the start
RIPE = 0.7  # chance of a food to be ripe at the start
HOME = 0.05  # as near as this to the start is resting there
FACTORS = 3 + FOODS


class Record(NamedTuple):
    """What an episode has come to so far."""

    steps: Tensor  # [B]
    eaten: Tensor  # [B] food, summed
    damage: Tensor  # [B] summed
    rested: Tensor  # [B] steps that ended at the start
    visited: Tensor  # [B, 36] bool
    ever: Tensor  # [B] bool: the task's success rule was met


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    body: Tensor  # [B, 2]
    energy: Tensor  # [B] in [0, 1]
    growth: Tensor  # [B, 2] in [0, 1], 1 is ripe
    damage: Tensor  # [B] felt on arrival
    meal: Tensor  # [B] food eaten on arrival
    layout: Layout
    record: Record
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of


def cell(body: Tensor) -> Tensor:
    """Body [B, 2] -> the cell it is in, counted along x first, [B]."""
    column, row = (body * GRID).long().clamp(max=GRID - 1).unbind(-1)
    return row * GRID + column


def visit(visited: Tensor, body: Tensor) -> Tensor:
    """Visited cells [B, 36] -> the same and the one the body [B, 2] is in."""
    return visited | (torch.arange(GRID * GRID, device=body.device) == cell(body)[:, None])


def conceive(life: Tensor) -> Tensor:
    """Keys [B] -> energy and growths as an episode begins, [B, 3]."""
    uniform, _ = draw(mix(life ^ 6), 1 + 2 * FOODS)
    energy, chance, young = uniform.split([1, FOODS, FOODS], dim=-1)
    growth = torch.where(chance < RIPE, 1.0, young)
    return torch.cat([spread(energy, ENERGY), growth], -1)


def begin(life: Tensor, split: str, factors: Tensor | None = None) -> State:
    """The first moment of the episodes that keys [B] hold; `factors` [B, 5] put the bodies,
    energies and growths elsewhere."""
    layout = draw_layout(life, split)
    if factors is None:
        factors = torch.cat([layout.start, conceive(life)], -1)
    body, energy, growth = factors[:, :2], factors[:, 2], factors[:, 3:]
    none = torch.zeros_like(energy)
    nowhere = none.bool()[:, None].repeat(1, GRID * GRID)
    return State(
        body=body,
        energy=energy,
        growth=growth,
        damage=damage(body, layout.hazard, layout.radius),
        meal=torch.zeros_like(energy),
        layout=layout._replace(start=body),
        record=Record(none, none, none, none, visit(nowhere, body), none.bool()),
        walk=set_out(body, mix(life ^ 4)),
        life=mix(life ^ 2),
    )


def advance(state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later; food grows before it can be eaten."""
    layout = state.layout
    body = moved(state.body, actions)
    growth = regrown(state.growth)
    bitten = bites(body, growth, layout.food)
    eaten = bitten.sum(-1)
    felt = damage(body, layout.hazard, layout.radius)
    return state._replace(
        body=body,
        energy=fed(state.energy, eaten),
        growth=growth - bitten,
        damage=felt,
        meal=eaten,
        record=recorded(state, body, eaten, felt),
    )


def recorded(state: State, body: Tensor, eaten: Tensor, felt: Tensor) -> Record:
    """What the episode has come to, with one more step."""
    record = state.record
    return record._replace(
        steps=record.steps + 1,
        eaten=record.eaten + eaten,
        damage=record.damage + felt,
        rested=record.rested + (distance(body, state.layout.start) <= HOME),
        visited=visit(record.visited, body),
    )


def to_factors(state: State) -> Tensor:
    """Body x and y, energy, growth of the foods, [B, 5]."""
    return torch.cat([state.body, state.energy[:, None], state.growth], -1)


def read_factors(factors: object, like: Tensor) -> Tensor:
    """What a user gave as factors -> [B, 5] like [B]; ValueError where it can't be factors."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=like.device)
    if read.shape != (len(like), FACTORS):
        raise ValueError(f"factors is {list(read.shape)}; needed is {[len(like), FACTORS]}")
    wrong = (~((read >= 0) & (read <= 1)).all(-1)).nonzero().flatten().tolist()
    if wrong:
        given = [round(number, 3) for number in read[wrong[0]].tolist()]
        raise ValueError(f"factors of world {wrong[0]} must each be in [0, 1]; they are {given}")
    return read.clone()


def observe(state: State) -> dict[str, Tensor]:
    """The world as the body sees it: places as ways to go from here."""
    layout, here = state.layout, state.body
    food = torch.cat([layout.food - here[:, None], state.growth[..., None]], -1)
    return {
        "body": here,
        "energy": state.energy[:, None],
        "food": food,
        "hazard": torch.cat([layout.hazard - here, layout.radius[:, None]], -1),
        "flag": layout.flag - here,
    }


def feel(state: State) -> Tensor:
    """Energy, damage and meal, [B, 3]."""
    return torch.stack([state.energy, state.damage, state.meal], -1)
