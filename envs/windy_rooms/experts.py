"""One who knows the world: round the pit by the shorter way, well clear of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plane import shrink_to_disk
from .physics import STEP, Box, share_to

FAR = 1e3
CLOSE = 1e-3  # as near as this to a corner is there
ACROSS = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))  # corners with the pit between


def zone_around(pit: Box, goal: Tensor, clear: float) -> Box:
    """Where not to go: so near the pit, unless a goal [B, 2] is nearer."""
    gap = torch.maximum(pit.low - goal, goal - pit.high).amax(-1, keepdim=True)
    return pit.grown(gap.clamp(0, clear))


def next_corner(zone: Box, body: Tensor, goal: Tensor) -> Tensor:
    """Bodies and goals [B, 2] -> the corner of the zone that the shortest way round leads to
    first, [B, 2]."""
    (left, top), (right, bottom) = zone.low.unbind(-1), zone.high.unbind(-1)
    corners = torch.stack([left, top, left, bottom, right, top, right, bottom], -1)
    corners = corners.unflatten(-1, (4, 2))
    core = Box(*(side[:, None] for side in zone.grown(-CLOSE)))
    here, there = body[:, None], goal[:, None]
    outside = ((corners < 0) | (corners > 1)).any(-1)  # the pass beside it is too narrow
    hidden = (share_to(core, corners, there) < 1) | outside
    leave = (corners - there).norm(dim=-1) + FAR * hidden
    beside = torch.cdist(corners, corners) + FAR * leave.new_tensor(ACROSS)
    reach = (corners - here).norm(dim=-1)
    blocked = (share_to(core, here, corners) < 1) | (reach < CLOSE)
    way = reach + FAR * blocked + (beside + leave[:, None]).amin(-1)
    return corners[torch.arange(len(body), device=body.device), way.argmin(-1)]


def way_out(zone: Box, body: Tensor) -> Tensor:
    """Bodies [B, 2] inside -> the nearest places [B, 2] on the zone's border, in the world."""
    border = torch.cat([zone.low, zone.high], -1)  # [B, 4]
    out = border - body.repeat(1, 2)
    nearest = (out.abs() + FAR * ((border < 0) | (border > 1))).argmin(-1, keepdim=True)
    step = torch.zeros_like(out).scatter(-1, nearest, out.gather(-1, nearest))
    return body + step[:, :2] + step[:, 2:]


def round_pit(pit: Box, body: Tensor, goal: Tensor, clear: float) -> Tensor:
    """Bodies and goals [B, 2] -> actions [B, 2] that keep `clear` of the pit."""
    zone = zone_around(pit, goal, clear)
    core = zone.grown(-CLOSE)
    seen = share_to(core, body, goal) >= 1
    target = torch.where(seen[:, None], goal, next_corner(zone, body, goal))
    target = torch.where(core.holds(body)[:, None], way_out(zone, body), target)
    return shrink_to_disk((target - body) / STEP, 1.0)
