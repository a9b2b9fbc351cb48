"""Drawing on batches of images: the soft dots of observations, and the frames that people watch."""

from __future__ import annotations

import torch
from torch import Tensor

FRAME_SIZE = 320  # pixels on a side of a frame
WALL_COLOUR, GOAL_COLOUR, AGENT_COLOUR = (45, 50, 60), (30, 150, 70), (30, 90, 220)
WHITE = (255, 255, 255)
MARGIN = 10  # pixels of a frame around a unit square
UNIT_SIDE = FRAME_SIZE - 2 * MARGIN
ROUNDING = 0.499  # added before bytes are cut off, so that they are rounded and 255 stays a byte


def _dot_profiles(position: Tensor, size: int, std: float) -> tuple[Tensor, Tensor]:
    """Positions [..., 2] -> the brightness of a dot across the image and down it, each [..., S]."""
    pixel = torch.arange(size, device=position.device)
    offset = (pixel - position.unsqueeze(-1)) / std  # [..., 2, S]
    across, down = torch.exp(-0.5 * offset.square()).unbind(-2)
    return across.unsqueeze(-2), 255 * down.unsqueeze(-1)


def draw_dot(
    position: Tensor,
    size: int,
    std: float,
    rounding: float = ROUNDING,
    peak_on_pixel: bool = False,
) -> Tensor:
    """Positions [B, 2] in pixels -> images [B, S, S] uint8 of a Gaussian dot with peak 255, which
    the pixel nearest to the position has where the peak is to be on a pixel."""
    across, down = _dot_profiles(position, size, std)
    if peak_on_pixel:
        across = across / across.amax(-1, keepdim=True)
        down = 255 * (down / down.amax(-2, keepdim=True))  # so that no rounding exceeds 255
    offset = torch.full((), rounding, device=position.device)
    return torch.addcmul(offset, down, across).to(torch.uint8)


def draw_dots(positions: Tensor, size: int, std: float) -> Tensor:
    """Positions [B, N, 2] in pixels -> images [B, S, S] uint8 of N dots, which add up."""
    image = torch.full((len(positions), size, size), ROUNDING, device=positions.device)
    for position in positions.unbind(1):
        across, down = _dot_profiles(position, size, std)
        image.addcmul_(down, across)
    return image.clamp_(max=255).to(torch.uint8)


def frame_pixels(device: torch.device) -> Tensor:
    """The pixels along a side of a frame, [N]."""
    return torch.arange(FRAME_SIZE, device=device)


def unit_to_pixels(position: Tensor, scale: float = UNIT_SIDE) -> Tensor:
    """Positions [..., 2] in a square of side `UNIT_SIDE / scale` -> pixels [..., 2] of a frame."""
    return MARGIN - 0.5 + scale * position


def white_frames(count: int, device: torch.device) -> Tensor:
    """Frames [B, N, N, 3] to draw on, as floats."""
    return 255.0 - torch.zeros(count, FRAME_SIZE, FRAME_SIZE, 3, device=device)


def to_bytes(frames: Tensor) -> Tensor:
    """Frames as they are shown, uint8."""
    return frames.round().to(torch.uint8)


def blend(frames: Tensor, depth: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """Frames [B, N, N, 3] with a shape in a colour; `depth` [B, N, N]: pixels inside the shape."""
    paint = torch.tensor(colour, dtype=frames.dtype, device=frames.device)
    return torch.lerp(frames, paint, (depth + 0.5).clamp(0, 1).unsqueeze(-1))


def pixel_distance(pixels: Tensor, centre: Tensor) -> Tensor:
    """Pixels along a side [N], centres [B, 2] -> the distance of every pixel, [B, N, N]."""
    across, down = (pixels - centre.unsqueeze(-1)).unbind(1)  # [B, N]
    return torch.hypot(across[:, None, :], down[:, :, None])


def blend_disk(
    frames: Tensor, centre: Tensor, radius: float, colour: tuple[int, int, int]
) -> Tensor:
    """Frames with a disk in a colour about the centres [B, 2]; all in pixels."""
    pixels = frame_pixels(frames.device)
    return blend(frames, radius - pixel_distance(pixels, centre), colour)


def blend_ring(frames: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Frames with green rings within which the goals [B, 2] count as reached; all in pixels."""
    distance = pixel_distance(frame_pixels(frames.device), centre)
    return blend(frames, 1.5 - (radius - distance).abs(), GOAL_COLOUR)


def blend_agent(frames: Tensor, centre: Tensor) -> Tensor:
    """Frames with a blue disk in a white rim about the centres [B, 2] in pixels."""
    return blend_disk(blend_disk(frames, centre, 9.5, WHITE), centre, 7.5, AGENT_COLOUR)


def distance_to_segments(pixels: Tensor, ends: Tensor) -> Tensor:
    """Pixels along a side [N], the ends of K segments [B, K, 2, 2] -> the distance of every pixel
    from the nearest segment, [B, N, N]."""
    pixel = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), -1)  # [N, N, 2]
    nearest = torch.full((), torch.inf, device=pixels.device)
    for segment in ends.unbind(1):  # one after the other: all at once would take gigabytes
        start, end = segment[:, None, None].unbind(3)  # [B, 1, 1, 2]
        span, offset = end - start, pixel - start
        along = ((offset * span).sum(-1) / span.square().sum(-1)).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - along[..., None] * span).norm(dim=-1))
    return nearest
