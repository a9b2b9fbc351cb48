"""Pictures made for people: shapes with soft edges, drawn onto batches of canvases."""

from __future__ import annotations

import torch
from torch import Tensor

PICTURE = 320  # pixels on a side


def ink(picture: Tensor, depth: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """Picture [B, N, N, 3]; how far inside a shape each pixel is, [B, N, N] -> the picture with
    that shape."""
    paint = torch.tensor(colour, dtype=picture.dtype, device=picture.device)
    return torch.lerp(picture, paint, (depth + 0.5).clamp(0, 1).unsqueeze(-1))


def beside(side: Tensor, ends: Tensor) -> Tensor:
    """Pixels along a side [N], the ends of K strokes [B, K, 2, 2] -> how far every pixel is from
    the nearest stroke, [B, N, N]."""
    pixel = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)  # [N, N, 2]
    nearest = torch.full((), torch.inf, device=side.device)
    for stroke in ends.unbind(1):  # one after the other: all at once would be gigabytes
        start, end = stroke[:, None, None].unbind(3)  # [B, 1, 1, 2]
        way, off = end - start, pixel - start
        share = ((off * way).sum(-1) / way.square().sum(-1)).clamp(0, 1)
        nearest = torch.minimum(nearest, (off - share[..., None] * way).norm(dim=-1))
    return nearest


def distance(side: Tensor, centre: Tensor) -> Tensor:
    """Pixels along a side [N], centres [B, 2] -> distance of every pixel [B, N, N]."""
    across, down = (side - centre.unsqueeze(-1)).unbind(1)  # [B, N]
    return torch.hypot(across[:, None, :], down[:, :, None])
