"""What an ant is: a torso and four legs of two joints, as MuJoCo knows it, and how it walks.

The body is that of Gymnasium's `Ant-v5`, whose model is read from there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

STANDING = (0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
"""Height, a quaternion, and hip and ankle of each leg, anticlockwise from the front left."""
LEGS = (0.25, 0.75, 1.25, 1.75)  # half turns: where they are
BENT = (1.0, -1.0, -1.0, 1.0)  # the sign in which an ankle bends down
TOLD = (6, 7, 0, 1, 2, 3, 4, 5)  # the joint that each number of an action is for
HIP, UPPER, LOWER = 0.2 * math.sqrt(2), 0.2 * math.sqrt(2), 0.4 * math.sqrt(2)  # metres

# A trot: diagonal legs together, 2.5 times a second. Wider sweeps and faster beats are faster, but
# now and then turn an ant over.
BEAT = 1 / 8  # of a cycle, in a step
SWEEP, STRETCH, LIFT, BEND = 0.5, 0.3, 0.5, 1.0  # radians
SPRING, DAMPER = 1.0, 0.1  # of the full torque, for a radian and for a radian a second


class Ant(NamedTuple):
    """Ants of B worlds, as they move."""

    place: Tensor  # [B, 2] cells
    pace: Tensor  # [B, 2] cells a step
    before: Tensor  # [B, 2] the place one step earlier
    pose: Tensor  # [B, 13] height, quaternion, joints
    spin: Tensor  # [B, 12] how fast these change: metres and radians a second
    clock: Tensor  # [B] steps since it stood


def put(place: Tensor, pace: Tensor) -> Ant:
    """Ants that stand at places and move at a pace [B, 2], all facing the same way."""
    pose = place.new_tensor(STANDING).expand(len(place), -1)
    return Ant(place, pace, place - pace, pose, pose.new_zeros(len(place), 12), 0 * place[:, 0])


def heading(pose: Tensor) -> Tensor:
    """Poses [B, 13] -> the way the torso faces, seen from above, [B] radians."""
    w, x, y, z = pose[:, 1:5].unbind(-1)
    return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def gait(ant: Ant, wanted: Tensor) -> Tensor:
    """Ways to go [B, 2], 1 long at most -> torques [B, 8] that take a step of a trot that way,
    whatever way an ant faces: each leg sweeps back while it stands and forward while it is
    lifted, by its hip as far as that leads sideways of it and by its ankle as far as outward."""
    share = wanted.norm(dim=-1, keepdim=True).clamp(max=1)
    to = torch.atan2(wanted[:, 1], wanted[:, 0]) - heading(ant.pose)
    off = to[:, None] - math.pi * wanted.new_tensor(LEGS)  # [B, 4]
    turn = BEAT * ant.clock[:, None] + wanted.new_tensor([0.0, 0.5, 0.0, 0.5])
    swing, lift = torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn).clamp(min=0)
    hip = -share * SWEEP * off.sin() * swing
    ankle = BEND + share * (STRETCH * off.cos() * swing - LIFT * lift)
    ankle = ankle.clamp(math.radians(30), math.radians(70)) * wanted.new_tensor(BENT)
    aim = torch.stack([hip, ankle], -1).flatten(1)  # [B, 8], as joints are
    torque = SPRING * (aim - ant.pose[:, 5:]) - DAMPER * ant.spin[:, 4:]
    return torque.clamp(-1, 1)[:, list(TOLD)]


def feet(pose: Tensor) -> Tensor:
    """Poses [B, 13] -> where knees and feet are about the torso, seen from above, in metres,
    [B, 4, 2, 2]."""
    hip, ankle = pose[:, 5:].unflatten(-1, (4, 2)).unbind(-1)
    root = math.pi * pose.new_tensor(LEGS)
    out = torch.stack([torch.cos(root + hip), torch.sin(root + hip)], -1)  # [B, 4, 2]
    knee = HIP * torch.stack([root.cos(), root.sin()], -1) + UPPER * out
    down = ankle * pose.new_tensor(BENT)
    foot = knee + LOWER * down.cos()[..., None] * out
    flat = torch.stack([knee, foot], 2)  # [B, 4, 2, 2]
    depth = torch.stack([0 * down, -LOWER * down.sin()], 2)
    w, x, y, z = pose[:, 1:5, None, None].unbind(1)
    a, b = flat.unbind(-1)
    return torch.stack([
        (1 - 2 * (y * y + z * z)) * a + 2 * (x * y - w * z) * b + 2 * (x * z + w * y) * depth,
        2 * (x * y + w * z) * a + (1 - 2 * (x * x + z * z)) * b + 2 * (y * z - w * x) * depth,
    ], -1)  # fmt: skip
