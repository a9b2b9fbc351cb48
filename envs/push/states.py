"""The state of B worlds, how it begins and goes on, and what an observer is told about it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .physics import Table
from .senses import SWIFT, Numbers, Sight
from .things import HAND, RIM, TOUCH, Things, resting
from .walks import Walk, set_out

REACHED = 0.06  # sides of the table; less than a block's radius, 3 cm where it is half a metre
INNER = (0.2, 0.8)  # where blocks and their goals are, in both directions
APART = 0.2  # at least, from a block to its goal
GAP = 0.01  # at least, between hand and block to begin with
TRIES = 8  # places to choose from
CLOSE = 0.02  # so little may things be inside of each other, or of an edge


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    things: Things
    goal: Things  # the block at its goal, and the hand where it would be by then
    ever: Tensor  # [B] bool: was there in this episode
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] from the block to its goal; where the hand is doesn't matter."""
        return (self.things.block - self.goal.block).norm(dim=-1)

    @property
    def there(self) -> Tensor:
        """[B] bool."""
        return self.distance < REACHED


def draw_apart(low: float, high: float, other: Tensor, apart: float, uniform: Tensor) -> Tensor:
    """Uniform [B, 2 T] -> places [B, 2] in a square, so far apart from others [B, 2]."""
    places = low + (high - low) * uniform.unflatten(-1, (-1, 2))
    far = (places - other[:, None]).norm(dim=-1) >= apart
    first = far.int().argmax(-1)  # none at all is apart once in millions of episodes
    return places[torch.arange(len(other), device=other.device), first]


def pushed_to(block: Tensor, goal: Tensor) -> Things:
    """Blocks and goals [B, 2] -> all at rest when the block has been pushed there by the straight
    way: the hand right behind it."""
    way = torch.nn.functional.normalize(goal - block, dim=-1)
    return resting(goal - (TOUCH + GAP / 2) * way, goal)


def begin(senses: Sight | Numbers, life: Tensor, options: dict[str, Any]) -> State:
    """The first moment of the episodes that keys [B] hold; a user's options "factors" and
    "goal_factors" put things and goals elsewhere."""
    uniform, _ = draw(mix(life ^ 6), 4 * TRIES + 2)
    low, high = INNER
    block = low + (high - low) * uniform[:, :2]
    reach, apart = uniform[:, 2:].chunk(2, dim=-1)
    hand = draw_apart(HAND, 1 - HAND, block, TOUCH + GAP, reach)
    things = resting(hand, block)
    if "factors" in options:
        things = read_factors("factors", options["factors"], life)
    goal = pushed_to(things.block, draw_apart(low, high, things.block, APART, apart))
    if "goal_factors" in options:
        goal = read_factors("goal_factors", options["goal_factors"], life)
    state = State(
        things=things,
        goal=goal,
        ever=torch.zeros_like(life, dtype=torch.bool),
        walk=set_out(mix(life ^ 1)),
        life=mix(life ^ 2),
        goal_obs=senses.sense(goal),
    )
    return state._replace(ever=state.there)


def advance(table: Table, state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later."""
    state = state._replace(things=table(state.things, actions))
    return state._replace(ever=state.ever | state.there)


def to_factors(things: Things) -> Tensor:
    """The places of hand and block, and how fast they move as a share of what is swift, [B, 8]."""
    return torch.cat([things.place, things.pace / SWIFT], -1)


def read_factors(name: str, factors: object, like: Tensor) -> Things:
    """What a user gave as `name` -> things, as many as [B]; ValueError where it can't be
    factors."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=like.device)
    if read.shape != (len(like), 8):
        raise ValueError(f"{name} is {list(read.shape)}; needed is {[len(like), 8]}")
    place, share = read.split(4, dim=-1)
    if not bool((share.abs() <= 1).all()):
        raise ValueError(f"{name}: velocities must be shares of what is swift, in [-1, 1]")
    hand, block = place.split(2, dim=-1)
    on_table = ((hand - 0.5).abs() <= 0.5 - HAND + CLOSE).all(-1)
    within_rim = ((block - 0.5).abs() <= 0.5 - RIM + CLOSE).all(-1)
    apart = (hand - block).norm(dim=-1) >= TOUCH - CLOSE
    wrong = (~(on_table & within_rim & apart)).nonzero().flatten().tolist()
    if wrong:
        given = [round(number, 3) for number in place[wrong[0]].tolist()]
        raise ValueError(
            f"{name}: in world {wrong[0]} the hand must be on the table, the block within the rim, "
            f"and both {TOUCH:.2f} apart; they are at {given}"
        )
    return Things(place, SWIFT * share, place - SWIFT * share)
