"""Which patches of an image are hidden in masked pretraining: blocks, drawn for a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from math import prod, sqrt
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modules.perception.image import MaskableImage, pixel_mask
from modules.types import FRACTION, BadSetting, ConfigError, Settings

Grid = tuple[int, int]
"""h, w: the patches of an image; they are numbered row by row, L = h w."""


class Masks(NamedTuple):
    """Patches by number, int64; no patch is in both."""

    context: Tensor  # [B, K]: what the context shows, in order
    targets: Tensor  # [B, M, K']: blocks whose features are predicted


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Settings):
    """Multi-block masking (I-JEPA, Assran et al. 2023, section 3; its values by default)."""

    num_targets: Annotated[int, (1, 64)] = 4
    """M: blocks that are predicted."""
    target_scale: Annotated[tuple[float, float], FRACTION] = (0.15, 0.2)
    """Smallest and largest fraction of the patches that a block has."""
    target_aspect: Annotated[tuple[float, float], (0.01, 100.0)] = (0.75, 1.5)
    """Smallest and largest ratio of the height of a block to its width, relative to that of the
    image."""
    context_scale: Annotated[tuple[float, float], FRACTION] = (0.85, 1.0)
    """Smallest and largest fraction of the patches in the block from which the context is what the
    targets leave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_scale", "target_aspect", "context_scale"):
            found = vars(self)[name]
            if len(found) != 2 or not 0 < found[0] <= found[1]:
                raise BadSetting(name, found, "two numbers above 0, the smaller one first")

    def check(self, grid: Grid) -> None:
        """Raises ConfigError where targets could have no patch of images with this grid, or leave
        none."""
        count = prod(grid)
        what = f"an image has {grid[0]} by {grid[1]} patches"
        if count * self.target_scale[1] < 1:
            raise ConfigError(
                f"target_scale is {self.target_scale}, but {what}: a target would be less than one"
            )
        lowest, highest = (
            _height(grid, scale, aspect)
            for scale, aspect in zip(self.target_scale, self.target_aspect, strict=True)
        )
        largest = max(
            height * _width(grid, self.target_scale[1], height)
            for height in range(lowest, highest + 1)
        )
        if self.num_targets * largest >= count:
            raise ConfigError(
                f"num_targets is {self.num_targets} and {what}: targets of up to {largest} patches "
                "could hide all of them; fewer targets or a smaller target_scale leave a context"
            )

    def sample(self, grid: Grid, count: int, generator: torch.Generator) -> Masks:
        """Masks of `count` images, on the host. All blocks of a batch have the same size, and all
        contexts as many patches as the smallest of them, so that batches are dense: from larger
        ones patches are removed at random."""
        num_rows, num_columns = grid
        draws = torch.rand(3, generator=generator).tolist()
        scale, aspect, context_scale = (
            low + draw * (high - low)
            for draw, (low, high) in zip(
                draws, (self.target_scale, self.target_aspect, self.context_scale), strict=True
            )
        )
        height = _height(grid, scale, aspect)
        size = (height, _width(grid, scale, height))
        targets = _blocks(grid, size, (count, self.num_targets), generator)
        side = sqrt(context_scale)
        size = (max(1, round(num_rows * side)), max(1, round(num_columns * side)))
        block = _blocks(grid, size, (count,), generator)
        is_hidden = torch.zeros(count, prod(grid), dtype=torch.bool)
        is_hidden.scatter_(1, targets.flatten(1), True)
        is_visible = torch.zeros_like(is_hidden).scatter_(1, block, True) & ~is_hidden
        # where the targets cover a whole context block, patches outside of it are shown
        noise = torch.rand(is_hidden.shape, generator=generator)
        rank = is_visible.int() + (~is_hidden).int() + noise
        num_shown = max(1, int(is_visible.sum(1).min()))
        return Masks(rank.topk(num_shown, 1).indices.sort(1).values, targets)


def _height(grid: Grid, scale: float, aspect: float) -> int:
    return min(max(round(grid[0] * sqrt(scale * aspect)), 1), grid[0])


def _width(grid: Grid, scale: float, height: int) -> int:
    """The width of a block of this height that has at most the fraction `scale` of the patches, if
    one patch is that few."""
    return min(max(int(prod(grid) * scale / height), 1), grid[1])


def _blocks(
    grid: Grid, size: tuple[int, int], shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Rectangles of `size` patches anywhere in the grid, as many as `shape` says -> the numbers of
    their patches, `[*shape, K]`."""
    first = [
        torch.randint(whole - part + 1, shape, generator=generator)
        for whole, part in zip(grid, size, strict=True)
    ]
    rows, columns = (
        start[..., None] + torch.arange(part) for start, part in zip(first, size, strict=True)
    )
    return (rows[..., :, None] * grid[1] + columns[..., None, :]).flatten(-2)


TARGET_COLORS = ((240, 89, 26), (30, 90, 220), (30, 150, 70), (138, 99, 210))
HIDDEN_COLOR = (118, 125, 138)
DRAWN_SIDE, MARGIN = 160, 4  # pixels of the picture


def draw_masks(frames: Tensor, masks: Masks, image: MaskableImage) -> np.ndarray:
    """Images `[N, T, C, S, S]` and the masks of N windows -> a picture, uint8 `[h, w, 3]`: for each
    window a row of its frames, of what the context shows of them, and of its targets, each block in
    a colour."""
    pixels = frames.float() if frames.is_floating_point() else frames.float() / 255
    if pixels.shape[2] != 3:  # stacks of frames, layers of a scene
        pixels = pixels.amax(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    size = pixels.shape[3:]

    def mask(index: Tensor) -> Tensor:
        """The pixels of the patches `[N, K]`, `[N, 1, 1, S, S]`."""
        return pixel_mask(index, image.grid, image.side, size)[:, None]

    def color(rgb: tuple[int, int, int]) -> Tensor:
        return torch.tensor(rgb)[:, None, None] / 255

    context = torch.where(mask(masks.context), pixels, color(HIDDEN_COLOR))
    targets = pixels
    for block, rgb in zip(masks.targets.unbind(1), cycle(TARGET_COLORS), strict=False):
        targets = torch.where(mask(block), 0.4 * targets + 0.6 * color(rgb), targets)
    zoom = max(1, DRAWN_SIDE // max(size))
    tiles = torch.cat([pixels, context, targets], 1).clamp(0, 1)  # [N, 3 T, 3, S, S]
    tiles = tiles.repeat_interleave(zoom, 3).repeat_interleave(zoom, 4)
    tiles = nn.functional.pad(tiles, (MARGIN,) * 4, value=1.0)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [h, w, 3]
    return (255 * sheet).round().byte().numpy()
