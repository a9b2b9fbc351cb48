"""A body as images show it: a dot with soft edges, a Gaussian with peak 255."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 0.499  # so that cutting off rounds, and the peak stays a byte


def _profiles(position: Tensor, size: int, std: float) -> tuple[Tensor, Tensor]:
    """Position [..., 2] -> how bright a dot is across the image and down it, each [..., S]."""
    pixel = torch.arange(size, device=position.device)
    offset = (pixel - position.unsqueeze(-1)) / std  # [..., 2, S]
    across, down = torch.exp(-0.5 * offset.square()).unbind(-2)
    return across.unsqueeze(-2), 255 * down.unsqueeze(-1)


def draw_dot(position: Tensor, size: int, std: float) -> Tensor:
    """Position [B, 2] in pixels -> [B, S, S] uint8."""
    across, down = _profiles(position, size, std)
    rounding = torch.full((), ROUNDING, device=position.device)
    return torch.addcmul(rounding, down, across).to(torch.uint8)


def draw_dots(positions: Tensor, size: int, std: float) -> Tensor:
    """Positions [B, N, 2] in pixels -> [B, S, S] uint8 with N dots, brighter where they overlap."""
    image = torch.full((len(positions), size, size), ROUNDING, device=positions.device)
    for position in positions.unbind(1):
        across, down = _profiles(position, size, std)
        image.addcmul_(down, across)
    return image.clamp_(max=255).to(torch.uint8)
