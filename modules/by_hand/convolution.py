"""Convolutions of small maps with a constant kernel, as products of matrices."""

from __future__ import annotations

import threading
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


class MapConvolution:
    """A convolution 3x3 with padding 1 and without bias whose kernel takes no gradient, on maps
    `[N * h * w, C]`. On small maps it takes less than half the time of `conv2d`. With fewer inputs
    than outputs it is one product of the taps with the 9 cells around each cell; otherwise one
    product of each cell with all taps, of which each cell adds up those of its neighbours."""

    def __init__(self, kernel: Tensor, size: tuple[int, int]) -> None:
        """`[out, in, 3, 3]`, height and width of the maps."""
        self.size, (num_out, num_in, *_) = size, kernel.shape
        self.gathers = num_in < num_out
        if self.gathers:
            self.taps = kernel.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # [9 in, out]
        else:
            self.taps = kernel.permute(1, 2, 3, 0).flatten(1).contiguous()  # [in, 9 out]

    @classmethod
    def with_pullback(
        cls, kernel: Tensor, size: tuple[int, int]
    ) -> tuple[MapConvolution, MapConvolution]:
        """The convolution, and the one that maps the gradient of its output to that of its
        input."""
        return cls(kernel, size), cls(kernel.flip(2, 3).transpose(0, 1), size)

    def __call__(self, cells: Tensor, padded: Tensor | None = None) -> Tensor:
        """`[N * h * w, in]` -> `[N * h * w, out]`. `padded`: the same cells and a row of zeros,
        where there are such, which saves a copy."""
        taps = self.taps
        key = cells.shape[0], taps.shape[not self.gathers], self.size, taps.dtype, taps.device
        parts = _memory.parts.get(key) or _parts(*key)
        if len(parts) == 1:
            return self._convolve(cells, padded, *parts[0][1:])
        return torch.cat([self._convolve(cells[part[0]], None, *part[1:]) for part in parts])

    def _convolve(
        self, cells: Tensor, padded: Tensor | None, memory: Tensor, by_tap: Tensor,
        neighbours: tuple[Tensor, ...],
    ) -> Tensor:  # fmt: skip
        rows, starts, around = neighbours
        if self.gathers:
            if padded is None:
                padded = nn.functional.pad(cells, (0, 0, 0, 1))
            torch.index_select(padded, 0, around, out=by_tap)
            return memory @ self.taps
        torch.mm(cells, self.taps, out=memory)
        return torch.embedding_bag(by_tap, rows, starts)[0]


MAX_PRODUCTS = 2**19
"""Numbers that a `MapConvolution` computes at once."""


_Part: TypeAlias = tuple[slice, Tensor, Tensor, tuple[Tensor, ...]]


class _Memory(threading.local):
    """What all calls of a thread overwrite: new memory takes more time than the products."""

    def __init__(self) -> None:
        self.products: dict[Any, Tensor] = {}  # by type and device
        self.parts: dict[Any, list[_Part]] = {}


_memory = _Memory()


def _parts(
    cells: int, numbers: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> list[_Part]:
    """For so many cells, a few maps at once: which cells, memory for so many numbers of each, its
    rows by tap, and `_neighbours`."""
    per_map, memory = prod(size), _memory.products.get((dtype, device))
    at_once = min(cells, per_map * max(1, MAX_PRODUCTS // (per_map * numbers)))
    if len(_memory.parts) > 64 or memory is None or len(memory) < at_once * numbers:
        _memory.parts.clear()
        with torch.inference_mode(False):  # its tensors can't be overwritten outside
            memory = torch.empty(max(MAX_PRODUCTS, at_once * numbers), dtype=dtype, device=device)
        _memory.products[dtype, device] = memory
    parts: list[_Part] = []
    for start in range(0, cells, at_once):
        count = min(at_once, cells - start)
        numbers_of_part = memory[: count * numbers].view(count, numbers)
        neighbours = _neighbours(count // per_map, *size, device)
        by_tap = numbers_of_part.view(9 * count, -1)
        parts.append((slice(start, start + count), numbers_of_part, by_tap, neighbours))
    _memory.parts[cells, numbers, size, dtype, device] = parts
    return parts


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def _neighbours(
    maps: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows `[cells * 9, C]`, the products of each cell with 9 taps: those that a cell of the
    convolution adds up, one cell after the other, and where each cell's begin. Then the cells that
    each cell's 9 taps multiply, `[cells * 9]`, one more than there are for those beyond the
    edge."""
    count = maps * height * width
    cells = torch.arange(count).view(maps, height, width)
    padded = nn.functional.pad(cells, (1, 1, 1, 1), value=count)
    around = padded.unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 9)
    rows, is_cell = 9 * around + torch.arange(9), around < count
    starts = nn.functional.pad(is_cell.sum(1).cumsum(0), (1, -1))
    return rows[is_cell].to(device), starts.to(device), around.flatten().to(device)


def to_cells(maps: Tensor, channels: int) -> Tensor:
    """Flat maps `[..., C h w]` -> their cells `[..., h w, C]`; a view."""
    return maps.unflatten(-1, (channels, -1)).mT
