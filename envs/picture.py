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


def distance(side: Tensor, centre: Tensor) -> Tensor:
    """Pixels along a side [N], centres [B, 2] -> distance of every pixel [B, N, N]."""
    across, down = (side - centre.unsqueeze(-1)).unbind(1)  # [B, N]
    return torch.hypot(across[:, None, :], down[:, :, None])
