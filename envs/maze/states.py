"""The state of B worlds, how it begins and goes on, and what an observer is told about it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .goals import Band, draw_goal, draw_start, missed
from .layouts import Maze
from .physics import TERMINAL, Moving, Physics, cell, inside
from .rendering import draw_walls
from .senses import Senses
from .walks import Walk, set_out

AROUND = 2  # cells to go at most where one is there: with more a wall is between


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    body: Moving
    goal: Tensor  # [B, 2]
    reached: Tensor  # [B] cells; nearer to the goal than this is there
    maze: Maze
    ever: Tensor  # [B] bool: was there in this episode
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of
    walls: Tensor  # [B, S, S] uint8
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] cells from the body straight to its goal."""
        return (self.body.place - self.goal).norm(dim=-1)

    @property
    def there(self) -> Tensor:
        """[B] bool: near the goal and on the same side of every wall."""
        return (self.distance < self.reached) & (self.path <= AROUND)

    @property
    def path(self) -> Tensor:
        """[B] float32: cells to go from the body's to the goal's."""
        here, goal = (cell(place, self.maze.size) for place in (self.body.place, self.goal))
        rows = torch.arange(len(goal), device=goal.device)
        return self.maze.far[rows, here, goal].float()


class Birth(NamedTuple):
    """How an episode begins, where chance leaves off and a user may choose instead."""

    body: Moving
    goal: Tensor  # [B, 2]


def conceive(
    maze: Maze, physics: Physics, band: Band, life: Tensor, options: dict[str, Any]
) -> Birth:
    """Keys [B] -> start and goal in the band, from each world's own luck; or where the user's
    options "factors" and "goal_factors" put them."""
    uniform, _ = draw(mix(life ^ 6), 6)
    off = missed(maze, band)
    start = draw_start(off, uniform[:, 0])
    place = inside(start, maze.size, uniform[:, 1:3], physics.wide)
    body = physics.put(place, torch.zeros_like(place))
    if "factors" in options:
        body = read_factors(maze, physics, "factors", options["factors"])
        start = cell(body.place, maze.size)
    goal = inside(draw_goal(off, start, uniform[:, 3]), maze.size, uniform[:, 4:], physics.wide)
    if "goal_factors" in options:
        goal = read_factors(maze, physics, "goal_factors", options["goal_factors"]).place
    return Birth(body, goal)


def begin(maze: Maze, physics: Physics, birth: Birth, senses: Senses, life: Tensor) -> State:
    """The first moment of an episode; `life` [B] are the keys it was conceived from."""
    walls = draw_walls(maze)
    state = State(
        body=birth.body,
        goal=birth.goal,
        reached=torch.full_like(birth.goal[:, 0], physics.reached),
        maze=maze,
        ever=torch.zeros_like(life, dtype=torch.bool),
        walk=set_out(birth.body.place, mix(life ^ 1)),
        life=mix(life ^ 2),
        walls=walls,
        goal_obs=senses.sense(walls, physics.put(birth.goal, torch.zeros_like(birth.goal))),
    )
    return state._replace(ever=state.there)


def advance(physics: Physics, state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later."""
    state = state._replace(body=physics.moved(state.maze, state.body, actions))
    return state._replace(ever=state.ever | state.there)


def to_factors(size: int, body: Moving) -> Tensor:
    """x and y as fractions of the maze, velocity as a share of the terminal speed, [B, 4]."""
    return torch.cat([body.place / size, body.pace / TERMINAL], -1)


def read_factors(maze: Maze, physics: Physics, name: str, factors: object) -> Moving:
    """What a user gave as `name` -> bodies; ValueError where it can't be factors of a free body."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=maze.solid.device)
    count = len(maze.solid)
    if read.shape != (count, 4):
        raise ValueError(f"{name} is {list(read.shape)}; needed is {[count, 4]}")
    place, pace = maze.size * read[:, :2], TERMINAL * read[:, 2:]
    if not bool(((read[:, :2] >= 0) & (read[:, :2] <= 1)).all()):
        raise ValueError(f"{name}: x and y must be fractions of the maze, each in [0, 1]")
    if not bool((read[:, 2:].abs() <= 1).all()):
        raise ValueError(f"{name}: velocities must be shares of the terminal speed, in [-1, 1]")
    stuck = (~physics.is_free(maze, place)).nonzero().flatten().tolist()
    if stuck:
        given = [round(number, 3) for number in place[stuck[0]].tolist()]
        raise ValueError(f"{name}: in world {stuck[0]} the body at cell {given} is inside a wall")
    body: Moving = physics.put(place, pace)
    return body
