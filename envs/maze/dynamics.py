"""Where walls are, and how a point mass moves between them.

A maze has n by n cells, N in all, counted row by row. An edge is between two neighbours: first all
that are side by side, then all that are one above the other; E in all. Positions are `(x, y)` in
cells, y down; walls are lines between cells and have no width."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ..batch import pick
from ..geometry import shrink_to_disk
from ..rng import splitmix64, uniform

UNREACHABLE = 10_000  # cells; there is no path
MAX_SHORT_PATH = 3  # cells to a goal at distance "short"

SPLITS: dict[str, tuple[int, ...]] = {"all": (0, 1), "train": (0,), "test": (1,)}
"""The halves of all mazes that a split draws from: no maze is in both "train" and "test"."""

HALF_WIDTH = 0.15  # of the point mass, a square
KEPT = 0.8  # of the velocity, from step to step
PUSH = 0.06  # what a full action adds to it
TERMINAL = PUSH / (1 - KEPT)  # the speed, in cells a step, that full actions come to
ROUNDING = 1e-4  # an overlap with a wall as small as this is rounding
GOAL_RADIUS = 0.4  # cells

U = """
...
##.
...
"""
MEDIUM = """
..##..
..#...
#...##
..#...
.#..#.
...#..
"""
LARGE = """
##########
....#.....
.##.#.#.#.
......#...
.####.###.
..#.#.....
#.#.#.#.##
..#...#...
##########
##########
"""
FOUR_ROOMS = """
.....#.....
.....#.....
...........
.....#.....
.....#.....
#.####.....
.....###.##
.....#.....
.....#.....
...........
.....#.....
"""
MAPS: dict[str, str] = {"u": U, "medium": MEDIUM, "large": LARGE, "four-rooms": FOUR_ROOMS}
"""Published mazes: "." is a free cell, "#" a solid one. Three are those of D4RL's PointMaze (arXiv
2004.07219), "large" made square; the last is that of Sutton, Precup and Singh (1999)."""


class Maze(NamedTuple):
    """The walls of B mazes; a solid cell has walls all around."""

    vertical_walls: Tensor  # [B, n, n + 1] bool: by row, and by the line x = 0 ... n of the wall
    horizontal_walls: Tensor  # [B, n + 1, n] bool: by the line y = 0 ... n, and by column
    solid: Tensor  # [B, n, n] bool
    path_length: Tensor  # [B, N, N] int16: cells from one to the other, or UNREACHABLE

    @property
    def size(self) -> int:
        """n"""
        return self.solid.shape[-1]

    @property
    def longest(self) -> Tensor:
        """[B] cells between those two that are furthest apart."""
        reachable = self.path_length != UNREACHABLE
        return torch.where(reachable, self.path_length, 0).flatten(1).amax(-1)


@lru_cache
def edges(size: int, device: torch.device) -> Tensor:
    """The two cells of every edge, [2, E]."""
    cells = torch.arange(size * size, device=device).unflatten(0, (size, size))
    beside = torch.stack([cells[:, :-1].flatten(), cells[:, 1:].flatten()])
    below = torch.stack([cells[:-1].flatten(), cells[1:].flatten()])
    return torch.cat([beside, below], -1)


def prim_tree(weight: Tensor, size: int) -> Tensor:
    """Weights of the edges [B, E] in [0, 1) -> which are open [B, E]: the lightest tree that
    reaches every cell, so that one path leads from each to each (Prim, 1957)."""
    one, other = edges(size, weight.device)
    rows = torch.arange(len(weight), device=weight.device)
    is_open = torch.zeros_like(weight, dtype=torch.bool)
    reached = is_open.new_zeros(len(weight), size * size)
    reached[:, 0] = True
    for _ in range(size * size - 1):
        leaving = reached[:, one] != reached[:, other]
        lightest = torch.where(leaving, weight, 1.0).argmin(-1)
        is_open[rows, lightest] = True
        reached[rows, one[lightest]] = True
        reached[rows, other[lightest]] = True
    return is_open


def half_of(is_open: Tensor) -> Tensor:
    """Open edges [B, E] -> which half of all mazes each is in, 0 or 1: a bit of its hash."""
    words = splitmix64(torch.arange(1, 1 + is_open.shape[-1], device=is_open.device))
    return splitmix64((is_open * words).sum(-1)) & 1


def sample_edges(keys: Tensor, size: int, loop_prob: float) -> Tensor:
    """Keys [B] -> open edges [B, E] of any maze."""
    count = edges(size, keys.device).shape[-1]
    weight, for_loops = uniform(keys, 2 * count)[0].split(count, dim=-1)
    return prim_tree(weight, size) | (for_loops < loop_prob)


def sample_split_edges(keys: Tensor, size: int, loop_prob: float, split: str) -> Tensor:
    """Keys [B] -> open edges [B, E] of the first maze of each that is in the split."""
    maze_keys = splitmix64(keys ^ 5)
    is_open = sample_edges(maze_keys, size, loop_prob)
    halves = torch.tensor(SPLITS[split], device=keys.device)
    missing = torch.arange(len(keys), device=keys.device)
    while len(missing := missing[~torch.isin(half_of(is_open[missing]), halves)]):
        maze_keys = splitmix64(maze_keys ^ 1)
        is_open[missing] = sample_edges(maze_keys[missing], size, loop_prob)
    return is_open


def path_lengths(is_open: Tensor, size: int) -> Tensor:
    """Open edges [B, E] -> cells from each cell to each, [B, N, N] (Floyd, 1962)."""
    one, other = edges(size, is_open.device)
    shape = (len(is_open), size**2, size**2)
    length = torch.full(shape, UNREACHABLE, dtype=torch.int16, device=is_open.device)
    edge_length = torch.where(is_open, 1, UNREACHABLE).to(torch.int16)
    length[:, one, other] = length[:, other, one] = edge_length
    length.diagonal(dim1=1, dim2=2).zero_()
    for via in range(size**2):
        torch.minimum(length, length[:, :, via, None] + length[:, via, None, :], out=length)
    return length


def build(is_open: Tensor, solid: Tensor) -> Maze:
    """Open edges [B, E] and solid cells [B, n, n] -> mazes, with walls around them."""
    size = solid.shape[-1]
    beside, below = (~is_open).split(is_open.shape[-1] // 2, dim=-1)
    vertical = solid.new_ones(len(solid), size, size + 1)
    horizontal = solid.new_ones(len(solid), size + 1, size)
    vertical[:, :, 1:-1] = beside.unflatten(-1, (size, size - 1))
    horizontal[:, 1:-1] = below.unflatten(-1, (size - 1, size))
    return Maze(vertical, horizontal, solid, path_lengths(is_open, size))


def read_map(drawing: str, device: torch.device) -> Maze:
    """A drawing -> its maze, a batch of one; free neighbours have no wall between them."""
    rows = [[cell == "#" for cell in row] for row in drawing.split()]
    solid = torch.tensor([rows], device=device)
    one, other = edges(len(rows), device)
    return build(~solid.flatten(1)[:, one] & ~solid.flatten(1)[:, other], solid)


class SampledMaze(NamedTuple):
    """A maze of its own for every episode."""

    size: int
    loop_prob: float
    split: str

    @property
    def longest(self) -> int:
        """Cells of the path in a maze that is one path through all cells."""
        return self.size**2 - 1

    def __call__(self, keys: Tensor) -> Maze:
        """Keys [B] -> the mazes of their episodes."""
        is_open = sample_split_edges(keys, self.size, self.loop_prob, self.split)
        return build(is_open, is_open.new_zeros(len(keys), self.size, self.size))


class FixedMaze(NamedTuple):
    """One maze for all."""

    maze: Maze  # a batch of one

    @property
    def size(self) -> int:
        return self.maze.size

    @property
    def longest(self) -> int:
        return int(self.maze.longest)

    def __call__(self, keys: Tensor) -> Maze:
        """Keys [B] -> the same maze for each."""
        return Maze(*(part.expand(len(keys), *part.shape[1:]) for part in self.maze))


Band: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Cells of a maze's longest path `[B]` -> fewest and most cells to the goal `[B]`."""


def min_long_path(longest: Tensor) -> Tensor:
    """The longest paths [B] -> the fewest cells [B] of a long one: three fifths, rounded up."""
    return torch.maximum((3 * longest + 4) // 5, longest.clamp(max=MAX_SHORT_PATH + 1))


BANDS: dict[str, Band] = {
    "any": lambda longest: (torch.ones_like(longest), longest),
    "short": lambda longest: (torch.ones_like(longest), torch.full_like(longest, MAX_SHORT_PATH)),
    "medium": lambda longest: (
        torch.full_like(longest, MAX_SHORT_PATH + 1),
        min_long_path(longest) - 1,
    ),
    "long": lambda longest: (min_long_path(longest), longest),
}


def band_miss(maze: Maze, band: Band) -> Tensor:
    """By how many cells the path from each cell to each misses the band, [B, N, N]."""
    low, high = (bound[:, None, None] for bound in band(maze.longest))
    return torch.maximum(low - maze.path_length, maze.path_length - high).clamp(min=0)


def sample_index(weight: Tensor, u: Tensor) -> Tensor:
    """Weights [B, N], whole numbers, and uniform [B] -> one of N, [B]."""
    cumulative = weight.cumsum(-1)
    position = (u * cumulative[:, -1]).floor().long()
    return torch.searchsorted(cumulative, position[:, None], right=True).squeeze(-1)


def sample_start(miss: Tensor, u: Tensor) -> Tensor:
    """`band_miss` [B, N, N], uniform [B] -> a cell [B]: the more goals in the band a cell has, the
    more often. Where the band is empty, the pairs that miss it by least are in it."""
    return sample_index((miss == miss.amin((1, 2), keepdim=True)).sum(-1), u)


def sample_goal(miss: Tensor, start: Tensor, u: Tensor) -> Tensor:
    """`band_miss` [B, N, N], starts [B], uniform [B] -> a cell [B] in the band, or of those that
    miss it by least."""
    from_start = pick(miss, start)
    return sample_index((from_start == from_start.amin(-1, keepdim=True)).long(), u)


class PointState(NamedTuple):
    """Point masses of B environments."""

    position: Tensor  # [B, 2]
    velocity: Tensor  # [B, 2] cells a step
    previous_position: Tensor  # [B, 2] one step earlier


class BodyState(Protocol):
    """What every moving body has, whatever else; a NamedTuple of tensors."""

    @property
    def position(self) -> Tensor: ...
    @property
    def velocity(self) -> Tensor: ...
    @property
    def previous_position(self) -> Tensor: ...


def place_at(position: Tensor, velocity: Tensor) -> PointState:
    """Point masses at positions [B, 2] that move with velocities [B, 2]."""
    return PointState(position, velocity, position - velocity)


def at_rest(position: Tensor) -> PointState:
    """Point masses at rest at positions [B, 2]."""
    return place_at(position, torch.zeros_like(position))


class Physics(NamedTuple):
    """How bodies move in mazes, and where there is room for one."""

    step: Callable[[Maze, Any, Tensor], Any]  # actions [B, A] -> bodies one step later
    is_free: Callable[[Maze, Tensor], Tensor]  # positions [B, 2] -> [B] bool
    stopped_speed: float  # cells a step; the most that a wall leaves of a velocity towards it
    place_at: Callable[[Tensor, Tensor], Any] = place_at  # positions, velocities [B, 2] -> bodies
    step_scale: int = 1  # steps in which a body gets as far as the point mass in one
    half_width: float = HALF_WIDTH  # cells; half of the room that a body takes


def cell_of(position: Tensor, size: int) -> Tensor:
    """Positions [B, 2] -> the cells they are in, [B]."""
    column, row = position.long().clamp(0, size - 1).unbind(-1)
    return row * size + column


def centre_of(cells: Tensor, size: int) -> Tensor:
    """Cells [...] -> their centres [..., 2]."""
    return torch.stack([cells % size, cells // size], -1) + 0.5


def sample_in_cell(cells: Tensor, size: int, u: Tensor, half_width: float = HALF_WIDTH) -> Tensor:
    """Cells [B], uniform [B, 2] -> positions [B, 2] in them that are free whatever the walls."""
    return centre_of(cells, size) + (1 - 2 * half_width) * (u - 0.5)


def step_points(maze: Maze, body: PointState, actions: Tensor) -> PointState:
    """Actions [B, 2] -> point masses one step later; they move along x first, then along y."""
    velocity = KEPT * body.velocity + PUSH * shrink_to_disk(actions, 1.0)
    (x, y), (right, down) = body.position.unbind(-1), velocity.unbind(-1)
    vertical, horizontal = maze.vertical_walls, maze.horizontal_walls
    x, right = slide(vertical, horizontal, x, y, right)
    y, down = slide(horizontal.mT, vertical.mT, y, x, down)
    return PointState(torch.stack([x, y], -1), torch.stack([right, down], -1), body.position)


def slide(
    across: Tensor, beside: Tensor, position: Tensor, other: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions and velocities [B] one step on along one axis; `other` [B] are the positions on the
    other axis. Walls across the way [B, n, n + 1] are by lane and by line; those along it
    [B, n + 1, n] by the line beside a lane: a point mass that straddles two lanes runs into the
    ends of those. It moves less than a cell a step, so it meets no line but the next."""
    sign = torch.where(velocity > 0, 1.0, -1.0)
    line = sign * (sign * position + HALF_WIDTH - ROUNDING).ceil()
    stop = line - sign * HALF_WIDTH
    low, high = lanes(other)
    last = across.shape[1] - 1
    beyond = torch.where(velocity > 0, line, line - 1).clamp(0, last)
    blocked = has_wall(across, low, line) | has_wall(across, high, line)
    blocked = blocked | (low != high) & has_wall(beside, high, beyond)
    end = position + velocity
    hit = blocked & (sign * end > sign * stop)
    return torch.where(hit, stop, end), torch.where(hit, 0.0, velocity)


def lanes(position: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B] along one axis -> the first and the last lane that a point mass is in, [B]."""
    return (position - HALF_WIDTH + ROUNDING).floor(), (position + HALF_WIDTH - ROUNDING).floor()


def has_wall(walls: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Walls [B, R, C], row and column [B], whole numbers -> whether there is one, [B]."""
    return walls[torch.arange(len(walls), device=walls.device), row.long(), column.long()]


def is_free(maze: Maze, position: Tensor) -> Tensor:
    """Positions [B, 2] -> [B] bool: inside the maze, and neither in a wall nor in a solid cell."""
    size, margin = maze.size, HALF_WIDTH - ROUNDING
    inside = ((position >= margin) & (position <= size - margin)).all(-1)
    x, y = position.clamp(HALF_WIDTH, size - HALF_WIDTH).unbind(-1)
    (left, right), (top, bottom) = lanes(x), lanes(y)
    vertical, horizontal = maze.vertical_walls, maze.horizontal_walls
    in_vertical = has_wall(vertical, top, right) | has_wall(vertical, bottom, right)
    in_horizontal = has_wall(horizontal, bottom, left) | has_wall(horizontal, bottom, right)
    in_wall = (left != right) & in_vertical | (top != bottom) & in_horizontal
    return inside & ~in_wall & ~has_wall(maze.solid, y.floor(), x.floor())
