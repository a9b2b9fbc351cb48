"""What the worlds look like to a person who watches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..picture import PICTURE, distance, ink
from .physics import MOUTH
from .states import State
from .tasks import AT_FLAG

SIDE = 272  # pixels of the arena's side
LEFT, TOP = 24, 12  # pixels beside and above the arena
BAR = (298.0, 308.0)  # rows of the energy bar
FOOD = 13.0  # pixels, a food's radius: more than the body's, so that both are seen
HAZE = 0.35  # of a food's colour, at its place
INK = {
    "arena": (250, 248, 243),
    "border": (70, 74, 84),
    "hazard": (225, 70, 60),
    "food": (46, 150, 72),
    "unripe": (250, 248, 243),
    "pole": (70, 62, 54),
    "pennant": (245, 170, 20),
    "track": (222, 220, 214),
    "rim": (255, 255, 255),
    "body": (30, 90, 220),
    "empty": (210, 70, 50),
    "full": (60, 165, 90),
}


def to_picture(place: Tensor) -> Tensor:
    """Places [..., 2] -> `(x, y)` [..., 2] in the picture's pixels."""
    return place * SIDE + torch.tensor([LEFT - 0.5, TOP - 0.5], device=place.device)


def draw_picture(state: State) -> Tensor:
    """The worlds as pictures, [B, 320, 320, 3] uint8."""
    layout, side = state.layout, torch.arange(PICTURE, device=state.body.device)
    page = 255.0 - torch.zeros(len(state.body), PICTURE, PICTURE, 3, device=side.device)
    page = _ink(page, box(side, 2), "border")
    page = _ink(page, box(side, 0), "arena")
    page = draw_hazard(page, side, to_picture(layout.hazard), SIDE * layout.radius)
    for place, growth in zip(layout.food.unbind(1), state.growth.unbind(1), strict=True):
        page = draw_food(page, side, to_picture(place), growth)
    page = draw_flag(page, side, to_picture(layout.flag))
    page = draw_energy(page, side, state.energy)
    off = distance(side, to_picture(state.body))
    return _ink(_ink(page, 9.5 - off, "rim"), 7.5 - off, "body").round().to(torch.uint8)


def box(side: Tensor, rim: float) -> Tensor:
    """How far inside the arena, with a rim around it, every pixel is, [N, N]."""
    middle = torch.tensor([LEFT, TOP], device=side.device) + SIDE / 2 - 0.5
    across, down = (side - middle[:, None]).abs()
    return SIDE / 2 + rim - torch.maximum(across[None], down[:, None])


def draw_hazard(page: Tensor, side: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """A disc that is redder the more it hurts, as far as it lies in the arena."""
    depth = radius[:, None, None] - distance(side, centre)
    deep = 0.25 + 0.55 * depth / radius[:, None, None]
    inside = torch.minimum(depth, box(side, 0))
    return _ink(page, (inside + 0.5).clamp(0, 1) * deep - 0.5, "hazard")


def draw_food(page: Tensor, side: Tensor, centre: Tensor, growth: Tensor) -> Tensor:
    """A green disc, filled from below as far as it is grown, in a haze that fades to where a mouth
    still reaches."""
    off = distance(side, centre)
    near = (1 - off / (SIDE * MOUTH)).clamp(min=0)
    page = _ink(page, (box(side, 0) + 0.5).clamp(0, 1) * HAZE * near - 0.5, "food")
    page = _ink(page, FOOD - off, "food")
    level = centre[:, 1] + (FOOD - 1.5) * (1 - 2 * growth)
    hollow = (level[:, None] - side)[..., None].expand(-1, -1, len(side))
    return _ink(page, torch.minimum(FOOD - 2 - off, hollow), "unripe")


def draw_flag(page: Tensor, side: Tensor, foot: Tensor) -> Tensor:
    """A pennant on a pole, and a ring around the places that count as being there."""
    page = _ink(page, 0.8 - (distance(side, foot) - SIDE * AT_FLAG).abs(), "pennant")
    across = (side - foot[:, :1])[:, None, :]
    up = (foot[:, 1:] - side)[:, :, None]
    slope = 6.0 - across * (6.0 / 16)
    page = _ink(page, torch.minimum(across, slope - (up - 20).abs()), "pennant")
    return _ink(page, torch.minimum(1.3 - across.abs(), 13 - (up - 13).abs()), "pole")


def draw_energy(page: Tensor, side: Tensor, energy: Tensor) -> Tensor:
    """A bar as long as the energy, redder when there is little, with a mark at one half."""
    thick = (BAR[1] - BAR[0]) / 2
    height = (side - (BAR[0] + BAR[1]) / 2)[:, None]
    ends = (LEFT + thick - 0.5, LEFT + SIDE - thick - 0.5)
    track = thick - torch.hypot(side - side.clamp(*ends), height)[None]
    page = _ink(page, track, "track")
    filled = torch.minimum(track, LEFT - 0.5 + SIDE * energy[:, None, None] - side)
    page = _ink(page, filled, "empty")
    tint = (1.6 * energy - 0.3).clamp(0, 1)[:, None, None]
    page = _ink(page, torch.minimum((filled + 0.5).clamp(0, 1), tint) - 0.5, "full")
    mark = 0.8 - (side - (LEFT + SIDE / 2 - 0.5)).abs()
    return _ink(page, torch.minimum(mark, thick + 3 - height.abs())[None], "border")


def _ink(page: Tensor, depth: Tensor, name: str) -> Tensor:
    return ink(page, depth, INK[name])
