"""Where the walls are: mazes grown from luck, and the way from every cell to every other.

A maze has n by n cells, N in all, counted row by row. An edge is between two neighbours: first all
that are side by side, then all that are one above the other; E in all. It is open or a wall.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix

FAR = 10_000  # cells; there is no way

SPLITS: dict[str, tuple[int, ...]] = {"all": (0, 1), "train": (0,), "test": (1,)}
"""The halves of all mazes that a split draws from: no maze is in both "train" and "test"."""


class Maze(NamedTuple):
    """The walls of B mazes; a solid cell has walls all around."""

    upright: Tensor  # [B, n, n + 1] bool: by row, and by the line x = 0 ... n that a wall is on
    level: Tensor  # [B, n + 1, n] bool: by the line y = 0 ... n that a wall is on, and by column
    solid: Tensor  # [B, n, n] bool
    far: Tensor  # [B, N, N] int16: cells to go from one to the other; FAR where there is no way

    @property
    def size(self) -> int:
        """n"""
        return self.solid.shape[-1]

    @property
    def longest(self) -> Tensor:
        """[B] cells to go between those two that are furthest apart."""
        return torch.where(self.far == FAR, 0, self.far).flatten(1).amax(-1)


@lru_cache
def edges(size: int, device: torch.device) -> Tensor:
    """The two cells of every edge, [2, E]."""
    cell = torch.arange(size * size, device=device).unflatten(0, (size, size))
    beside = torch.stack([cell[:, :-1].flatten(), cell[:, 1:].flatten()])
    below = torch.stack([cell[:-1].flatten(), cell[1:].flatten()])
    return torch.cat([beside, below], -1)


def grown(weight: Tensor, size: int) -> Tensor:
    """Weights of the edges [B, E] in [0, 1) -> which are open [B, E]: the lightest tree that
    reaches every cell, so that one way leads from each to each (Prim, 1957)."""
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


def half(is_open: Tensor) -> Tensor:
    """Open edges [B, E] -> which half of all mazes each is one of, 0 or 1: a bit of its hash."""
    words = mix(torch.arange(1, 1 + is_open.shape[-1], device=is_open.device))
    return mix((is_open * words).sum(-1)) & 1


def sprout(keys: Tensor, size: int, loops: float) -> Tensor:
    """Keys [B] -> open edges [B, E] of any maze at all."""
    count = edges(size, keys.device).shape[-1]
    weight, chance = draw(keys, 2 * count)[0].split(count, dim=-1)
    return grown(weight, size) | (chance < loops)


def draw_edges(life: Tensor, size: int, loops: float, split: str) -> Tensor:
    """Keys [B] -> open edges [B, E] of the first maze each comes upon that is in the split."""
    keys = mix(life ^ 5)
    is_open = sprout(keys, size, loops)
    halves = torch.tensor(SPLITS[split], device=life.device)
    missing = torch.arange(len(life), device=life.device)
    while len(missing := missing[~torch.isin(half(is_open[missing]), halves)]):
        keys = mix(keys ^ 1)
        is_open[missing] = sprout(keys[missing], size, loops)
    return is_open


def ways(is_open: Tensor, size: int) -> Tensor:
    """Open edges [B, E] -> cells to go from each cell to each, [B, N, N] (Floyd, 1962)."""
    one, other = edges(size, is_open.device)
    shape = (len(is_open), size**2, size**2)
    far = torch.full(shape, FAR, dtype=torch.int16, device=is_open.device)
    far[:, one, other] = far[:, other, one] = torch.where(is_open, 1, FAR).to(torch.int16)
    far.diagonal(dim1=1, dim2=2).zero_()
    for via in range(size**2):
        torch.minimum(far, far[:, :, via, None] + far[:, via, None, :], out=far)
    return far


def built(is_open: Tensor, solid: Tensor) -> Maze:
    """Open edges [B, E] and solid cells [B, n, n] -> mazes, with walls around them."""
    size = solid.shape[-1]
    beside, below = (~is_open).split(is_open.shape[-1] // 2, dim=-1)
    upright = solid.new_ones(len(solid), size, size + 1)
    level = solid.new_ones(len(solid), size + 1, size)
    upright[:, :, 1:-1] = beside.unflatten(-1, (size, size - 1))
    level[:, 1:-1] = below.unflatten(-1, (size - 1, size))
    return Maze(upright, level, solid, ways(is_open, size))


class Drawn(NamedTuple):
    """A maze of its own for every episode."""

    size: int
    loops: float
    split: str

    @property
    def longest(self) -> int:
        """Cells to go in a maze that is one long way through all cells."""
        return self.size**2 - 1

    def __call__(self, life: Tensor) -> Maze:
        """Keys [B] -> the mazes of their episodes."""
        is_open = draw_edges(life, self.size, self.loops, self.split)
        return built(is_open, is_open.new_zeros(len(life), self.size, self.size))


class Given(NamedTuple):
    """One maze for all."""

    maze: Maze  # a batch of one

    @property
    def size(self) -> int:
        return self.maze.size

    @property
    def longest(self) -> int:
        return int(self.maze.longest)

    def __call__(self, life: Tensor) -> Maze:
        """Keys [B] -> the same maze for each."""
        return Maze(*(part.expand(len(life), *part.shape[1:]) for part in self.maze))
