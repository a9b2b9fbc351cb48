"""What observations and frames show: walls, the point mass, and distractors in the background."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import draw
from ..geometry import direction
from ..rng import splitmix64, uniform
from ..vector_env import TensorObs
from .dynamics import Arena

Paint: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Walls and point mass, each `[B, S, S]` uint8 -> observation `[B, C, S, S]` uint8."""

DISTRACTOR_COLOUR = (150, 70, 190)
DISTRACTOR_OPACITY = 0.35  # in a frame


def two_channels(walls: Tensor, dot: Tensor) -> Tensor:
    """The point mass in one channel, the walls in the other."""
    return torch.stack([dot, walls], 1)


def red_on_white(walls: Tensor, dot: Tensor) -> Tensor:
    """A red point mass and black walls on white."""
    ground = ~walls  # 0 or 255, so the bits of a byte do as masks
    rest = ground & ~dot
    return torch.stack([ground | dot, rest, rest], 1)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The image that is observed."""

    size: int  # S, pixels on a side
    border: tuple[int, int]  # first and last pixel of the outer walls, counted from each edge
    dot_std: float  # pixels
    channels: int
    paint: Paint

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (self.channels, self.size, self.size), np.uint8)


def draw_walls(canvas: Canvas, arena: Arena, layout: Tensor) -> Tensor:
    """Layout [B, 2] -> [B, S, S] uint8, 255 where a pixel's centre is on a wall."""
    pixel = torch.arange(canvas.size, device=layout.device)
    to_edge = torch.minimum(pixel, canvas.size - 1 - pixel)
    inside = to_edge >= canvas.border[0]
    line = inside & (to_edge <= canvas.border[1])
    outer = (line[:, None] & inside) | (line & inside[:, None])  # [S, S]
    wall_x, door_y = layout[:, :1], layout[:, 1:]
    column = ((pixel - wall_x).abs() <= arena.wall_width / 2) & inside  # [B, S]
    closed = ((pixel - door_y).abs() > arena.half_door) & inside
    walls = closed[:, :, None] & column[:, None, :]
    return (walls | outer).to(torch.uint8) * 255


def draw_dot(canvas: Canvas, position: Tensor) -> Tensor:
    """Position [B, 2] -> [B, S, S] uint8."""
    return draw.draw_dot(position, canvas.size, canvas.dot_std)


def observe(canvas: Canvas, walls: Tensor, position: Tensor) -> Tensor:
    """Walls [B, S, S], position [B, 2] -> observation [B, C, S, S] uint8."""
    return canvas.paint(walls, draw_dot(canvas, position))


class Distractors(NamedTuple):
    """N dots that drift in the background of B environments, whatever the agent does."""

    position: Tensor  # [B, N, 2] pixels
    velocity: Tensor  # [B, N, 2] pixels per step
    goal_image: Tensor  # [B, 1, S, S] uint8: the background at another moment


def sample_positions(canvas: Canvas, count: int, keys: Tensor) -> Tensor:
    """Keys [B] -> positions [B, N, 2], anywhere in the image."""
    u, _ = uniform(keys, 2 * count)
    return u.unflatten(-1, (count, 2)) * (canvas.size - 1)


def sample_distractors(canvas: Canvas, count: int, max_speed: float, keys: Tensor) -> Distractors:
    """Keys [B] -> distractors of any heading and of speeds up to `max_speed`, in pixels per
    step."""
    u, keys = uniform(keys, 2 * count)
    heading, speed = 2 * math.pi * u[:, :count], max_speed * u[:, count:]
    velocity = speed.unsqueeze(-1) * direction(heading)
    goal_positions = sample_positions(canvas, count, splitmix64(keys ^ 1))
    goal_image = draw_background(canvas, goal_positions)
    return Distractors(sample_positions(canvas, count, keys), velocity, goal_image)


def step_distractors(canvas: Canvas, distractors: Distractors) -> Distractors:
    """One step on; distractors bounce off the image's borders."""
    ahead, far = distractors.position + distractors.velocity, canvas.size - 1.0
    outside = (ahead < 0) | (ahead > far)
    velocity = torch.where(outside, -distractors.velocity, distractors.velocity)
    return distractors._replace(position=far - (far - ahead.abs()).abs(), velocity=velocity)


def draw_background(canvas: Canvas, positions: Tensor) -> Tensor:
    """Positions [B, N, 2] -> [B, 1, S, S] uint8 with N dots."""
    return draw.draw_dots(positions, canvas.size, canvas.dot_std).unsqueeze(1)


class Background(Protocol):
    """What observations show of the background."""

    def space(self, scene: spaces.Box) -> spaces.Space:
        """The observation space, where images of the scene are in that one."""

    def observe(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        """Scene [B, C, S, S] -> observation [B, *O]."""

    def observe_goal(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        """Scene [B, C, S, S] of the goal -> observation [B, *O] of it."""


class NoBackground:
    """Observations are the scene alone."""

    def space(self, scene: spaces.Box) -> spaces.Space:
        return scene

    def observe(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        return scene

    def observe_goal(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        return scene


@dataclass(frozen=True)
class DistractorBackground:
    """Observations are the scene and, in an image of its own, the background."""

    canvas: Canvas

    def space(self, scene: spaces.Box) -> spaces.Space:
        shape = (1, self.canvas.size, self.canvas.size)
        return spaces.Dict({"scene": scene, "background": spaces.Box(0, 255, shape, np.uint8)})

    def observe(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        background = draw_background(self.canvas, distractors.position)
        return {"scene": scene, "background": background}

    def observe_goal(self, scene: Tensor, distractors: Distractors) -> TensorObs:
        return {"scene": scene, "background": distractors.goal_image}


def to_pixels(canvas: Canvas, position: Tensor) -> Tensor:
    """Positions [..., 2] in the image's pixels -> `(x, y)` [..., 2] in a frame's pixels."""
    return (position + 0.5) * (draw.FRAME_SIZE / canvas.size) - 0.5


def draw_frames(
    canvas: Canvas,
    walls: Tensor,
    position: Tensor,
    goal: Tensor,
    goal_radius: float,
    distractors: Distractors,
) -> Tensor:
    """Walls [B, S, S], point masses and goals [B, 2], the radius in pixels of the image ->
    [B, 320, 320, 3] uint8."""
    zoom = draw.FRAME_SIZE / canvas.size
    dot_radius = 1.2 * zoom * canvas.dot_std
    pixels = draw.frame_pixels(position.device)
    source = ((pixels + 0.5) / zoom).long().clamp(max=canvas.size - 1)
    frames = draw.white_frames(len(position), position.device)
    for centre in distractors.position.unbind(1):
        depth = dot_radius - draw.pixel_distance(pixels, to_pixels(canvas, centre))
        depth = depth.clamp(max=DISTRACTOR_OPACITY - 0.5)
        frames = draw.blend(frames, depth, DISTRACTOR_COLOUR)
    wall_depth = walls[:, source][:, :, source].float() / 255 - 0.5
    frames = draw.blend(frames, wall_depth, draw.WALL_COLOUR)
    distance = draw.pixel_distance(pixels, to_pixels(canvas, goal))
    frames = draw.blend_ring(frames, distance, zoom * goal_radius)
    depth = dot_radius - draw.pixel_distance(pixels, to_pixels(canvas, position))
    return draw.to_bytes(draw.blend(frames, depth, draw.AGENT_COLOUR))
