"""What frames show: the arena, the foods, the hazard, the flag, the agent and its energy."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import draw
from .dynamics import AT_FLAG, MOUTH, State

SIDE = 272  # pixels of the arena's side
LEFT, TOP = 24, 12  # pixels beside and above the arena
BAR = (298.0, 308.0)  # rows of the energy bar
FOOD_RADIUS = 13.0  # pixels; more than the agent's, so that both are visible
HAZE = 0.35  # opacity of a food's haze at its centre
COLOURS = {
    "arena": (250, 248, 243),
    "border": (70, 74, 84),
    "hazard": (225, 70, 60),
    "food": (46, 150, 72),
    "unripe": (250, 248, 243),
    "pole": (70, 62, 54),
    "pennant": (245, 170, 20),
    "track": (222, 220, 214),
    "empty": (210, 70, 50),
    "full": (60, 165, 90),
}


def to_pixels(position: Tensor) -> Tensor:
    """Positions [..., 2] -> `(x, y)` [..., 2] in the pixels of a frame."""
    return position * SIDE + torch.tensor([LEFT - 0.5, TOP - 0.5], device=position.device)


def draw_frames(state: State) -> Tensor:
    """[B, 320, 320, 3] uint8"""
    layout, pixels = state.layout, draw.frame_pixels(state.position.device)
    frames = draw.white_frames(len(state.position), pixels.device)
    frames = _blend(frames, depth_in_arena(pixels, 2), "border")
    frames = _blend(frames, depth_in_arena(pixels, 0), "arena")
    frames = draw_hazard(frames, pixels, to_pixels(layout.hazard), SIDE * layout.radius)
    for food, growth in zip(layout.food.unbind(1), state.growth.unbind(1), strict=True):
        frames = draw_food(frames, pixels, to_pixels(food), growth)
    frames = draw_flag(frames, pixels, to_pixels(layout.flag))
    frames = draw_energy(frames, pixels, state.energy)
    distance = draw.pixel_distance(pixels, to_pixels(state.position))
    return draw.to_bytes(draw.blend_agent(frames, distance))


def depth_in_arena(pixels: Tensor, rim: float) -> Tensor:
    """How many pixels inside the arena, with a rim around it, every pixel is, [N, N]."""
    middle = torch.tensor([LEFT, TOP], device=pixels.device) + SIDE / 2 - 0.5
    across, down = (pixels - middle[:, None]).abs()
    return SIDE / 2 + rim - torch.maximum(across[None], down[:, None])


def draw_hazard(frames: Tensor, pixels: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """A disk that is redder where damage is larger, as far as it lies in the arena."""
    depth = radius[:, None, None] - draw.pixel_distance(pixels, centre)
    deep = 0.25 + 0.55 * depth / radius[:, None, None]
    inside = torch.minimum(depth, depth_in_arena(pixels, 0))
    return _blend(frames, (inside + 0.5).clamp(0, 1) * deep - 0.5, "hazard")


def draw_food(frames: Tensor, pixels: Tensor, centre: Tensor, growth: Tensor) -> Tensor:
    """A green disk, filled from below as far as it has grown, in a haze that fades to where the
    agent can't eat from."""
    distance = draw.pixel_distance(pixels, centre)
    near = (1 - distance / (SIDE * MOUTH)).clamp(min=0)
    frames = _blend(
        frames, (depth_in_arena(pixels, 0) + 0.5).clamp(0, 1) * HAZE * near - 0.5, "food"
    )
    frames = _blend(frames, FOOD_RADIUS - distance, "food")
    level = centre[:, 1] + (FOOD_RADIUS - 1.5) * (1 - 2 * growth)
    hollow = (level[:, None] - pixels)[..., None].expand(-1, -1, len(pixels))
    return _blend(frames, torch.minimum(FOOD_RADIUS - 2 - distance, hollow), "unripe")


def draw_flag(frames: Tensor, pixels: Tensor, foot: Tensor) -> Tensor:
    """A pennant on a pole, and a ring within which the flag counts as reached."""
    frames = _blend(
        frames, 0.8 - (draw.pixel_distance(pixels, foot) - SIDE * AT_FLAG).abs(), "pennant"
    )
    across = (pixels - foot[:, :1])[:, None, :]
    up = (foot[:, 1:] - pixels)[:, :, None]
    slope = 6.0 - across * (6.0 / 16)
    frames = _blend(frames, torch.minimum(across, slope - (up - 20).abs()), "pennant")
    return _blend(frames, torch.minimum(1.3 - across.abs(), 13 - (up - 13).abs()), "pole")


def draw_energy(frames: Tensor, pixels: Tensor, energy: Tensor) -> Tensor:
    """A bar as long as the energy, redder when there is little, with a mark at one half."""
    thick = (BAR[1] - BAR[0]) / 2
    height = (pixels - (BAR[0] + BAR[1]) / 2)[:, None]
    ends = (LEFT + thick - 0.5, LEFT + SIDE - thick - 0.5)
    track = thick - torch.hypot(pixels - pixels.clamp(*ends), height)[None]
    frames = _blend(frames, track, "track")
    filled = torch.minimum(track, LEFT - 0.5 + SIDE * energy[:, None, None] - pixels)
    frames = _blend(frames, filled, "empty")
    tint = (1.6 * energy - 0.3).clamp(0, 1)[:, None, None]
    frames = _blend(frames, torch.minimum((filled + 0.5).clamp(0, 1), tint) - 0.5, "full")
    mark = 0.8 - (pixels - (LEFT + SIDE / 2 - 0.5)).abs()
    return _blend(frames, torch.minimum(mark, thick + 3 - height.abs())[None], "border")


def _blend(frames: Tensor, depth: Tensor, name: str) -> Tensor:
    return draw.blend(frames, depth, COLOURS[name])
