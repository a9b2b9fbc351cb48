"""The state of B worlds, how it begins and goes on, and what an observer is told about it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .layouts import Starts, draw_goal, draw_start
from .physics import Box, Wind, moved, stepped
from .senses import Senses
from .walks import Walk, set_out

REACHED = 0.06  # nearer to the goal than this is there


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    body: Tensor  # [B, 2]
    fallen: Tensor  # [B] bool: in the pit
    goal: Tensor  # [B, 2]
    ever: Tensor  # [B] bool: was there in this episode
    walk: Walk
    wind: Tensor  # [B] int64: the luck that gusts are made of, whatever bodies do
    life: Tensor  # [B] int64: the luck that the next episode is made of
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] from the body straight to its goal."""
        return (self.body - self.goal).norm(dim=-1)

    @property
    def there(self) -> Tensor:
        """[B] bool."""
        return (self.distance < REACHED) & ~self.fallen


def begin(
    pit: Box, starts: Starts, bottom: float, senses: Senses, life: Tensor, options: dict[str, Any]
) -> State:
    """The first moment of the episodes that keys [B] hold; a user's options "factors" and
    "goal_factors" put bodies and goals elsewhere."""
    uniform, _ = draw(mix(life ^ 6), 5)
    body = draw_start(pit, starts, bottom, uniform[:, :3])
    if "factors" in options:
        body = read_factors("factors", options["factors"], life)
    goal = draw_goal(pit, body, bottom, uniform[:, 3:])
    if "goal_factors" in options:
        goal = read_factors("goal_factors", options["goal_factors"], life)
        require_floor(pit, goal)
    state = State(
        body=body,
        fallen=pit.holds(body),
        goal=goal,
        ever=torch.zeros_like(life, dtype=torch.bool),
        walk=set_out(mix(life ^ 1)),
        wind=mix(life ^ 3),
        life=mix(life ^ 2),
        goal_obs=senses.sense(goal),
    )
    return state._replace(ever=state.there)


def advance(pit: Box, wind: Wind, wade: float, state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later: first the body's own step, then the wind's."""
    gust, keys = wind.blow(state.wind)
    body = moved(pit, stepped(pit, state.body, actions, wade), gust)
    state = state._replace(body=body, fallen=pit.holds(body), wind=keys)
    return state._replace(ever=state.ever | state.there)


def read_factors(name: str, factors: object, like: Tensor) -> Tensor:
    """What a user gave as `name` -> [B, 2] like [B]; ValueError where it can't be factors."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=like.device)
    if read.shape != (len(like), 2):
        raise ValueError(f"{name} is {list(read.shape)}; needed is {[len(like), 2]}")
    wrong = (~((read >= 0) & (read <= 1)).all(-1)).nonzero().flatten().tolist()
    if wrong:
        given = [round(number, 3) for number in read[wrong[0]].tolist()]
        raise ValueError(f"{name} of world {wrong[0]} must each be in [0, 1]; they are {given}")
    return read.clone()


def require_floor(pit: Box, goal: Tensor) -> None:
    """ValueError naming the first world whose goal [B, 2] is in the pit."""
    lost = pit.holds(goal).nonzero().flatten().tolist()
    if lost:
        place = [round(number, 3) for number in goal[lost[0]].tolist()]
        raise ValueError(f"goal_factors: in world {lost[0]} the goal at {place} is in the pit")
