"""What moves behind the scene and has nothing to do with it: blobs that look like the dot, each
adrift on its own, whatever the dot does."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Seen
from ..chance import draw, mix
from ..plane import direction
from .rendering import Canvas, draw_blobs


class Drift(NamedTuple):
    """Where N blobs are in B worlds, and what becomes of them."""

    place: Tensor  # [B, N, 2] pixels
    pace: Tensor  # [B, N, 2] pixels per step
    at_goal: Tensor  # [B, 1, S, S] uint8: the background at some other moment


def scatter(canvas: Canvas, count: int, keys: Tensor) -> Tensor:
    """Keys [B] -> places [B, N, 2], anywhere in the image."""
    uniform, _ = draw(keys, 2 * count)
    return uniform.unflatten(-1, (count, 2)) * (canvas.size - 1)


def set_adrift(canvas: Canvas, count: int, fastest: float, keys: Tensor) -> Drift:
    """Keys [B] -> blobs of any heading and of speeds up to the fastest, in pixels per step."""
    uniform, keys = draw(keys, 2 * count)
    heading, speed = 2 * math.pi * uniform[:, :count], fastest * uniform[:, count:]
    pace = speed.unsqueeze(-1) * direction(heading)
    elsewhere = scatter(canvas, count, mix(keys ^ 1))
    return Drift(scatter(canvas, count, keys), pace, draw_blobs(canvas, elsewhere))


def drift(canvas: Canvas, blobs: Drift) -> Drift:
    """One step on, thrown back at the image's borders."""
    ahead, far = blobs.place + blobs.pace, canvas.size - 1.0
    beyond = (ahead < 0) | (ahead > far)
    pace = torch.where(beyond, -blobs.pace, blobs.pace)
    return blobs._replace(place=far - (far - ahead.abs()).abs(), pace=pace)


class Backdrop(Protocol):
    """What is seen of the background."""

    def space(self, scene: spaces.Box) -> spaces.Space:
        """Of observations, where the scene alone has that one."""

    def view(self, scene: Tensor, blobs: Drift) -> Seen:
        """Scene [B, C, S, S] -> observation [B, *O]."""

    def goal(self, scene: Tensor, blobs: Drift) -> Seen:
        """Scene [B, C, S, S] of the goal -> observation [B, *O] of it."""


class Nothing:
    """The scene is all that is seen."""

    def space(self, scene: spaces.Box) -> spaces.Space:
        return scene

    def view(self, scene: Tensor, blobs: Drift) -> Seen:
        return scene

    def goal(self, scene: Tensor, blobs: Drift) -> Seen:
        return scene


class Blobs:
    """The blobs are seen beside the scene, in an image of their own."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas

    def space(self, scene: spaces.Box) -> spaces.Space:
        shape = (1, self.canvas.size, self.canvas.size)
        return spaces.Dict({"scene": scene, "background": spaces.Box(0, 255, shape, np.uint8)})

    def view(self, scene: Tensor, blobs: Drift) -> Seen:
        return {"scene": scene, "background": draw_blobs(self.canvas, blobs.place)}

    def goal(self, scene: Tensor, blobs: Drift) -> Seen:
        return {"scene": scene, "background": blobs.at_goal}
