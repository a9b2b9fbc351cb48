"""The expert, which takes the shortest path, and the behaviour policy, which gathers experience."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import SegmentState
from ..batch import pick, where
from ..geometry import direction, rotate, shrink_to_disk
from ..rng import integers, uniform, von_mises
from . import dynamics
from .dynamics import BodyState, Maze, Physics

MARGIN = 0.05  # between a body and the ends of the walls it passes
BRAKE = 0.4  # speed towards the goal, as a fraction of the remaining distance

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
IDLE = 0.1  # fraction of the segments
SEGMENT_STEPS = (10, 25)
STEPS_PER_CELL = 6  # of a directed policy's path, added to a segment
AT_TARGET = 0.2
MIN_STRENGTH = 0.2  # of the full action
BOUNCE_PROB = 0.2  # in a step, to turn away from a wall that stops the body


def next_cell(maze: Maze, here: Tensor, there: Tensor) -> Tensor:
    """Cells [B] -> the first cell on the shortest path, [B]; the same at its end."""
    left = pick(maze.path_length, there)  # [B, N]
    neighbour = pick(maze.path_length, here) == 1
    nearer = neighbour & (left < left.gather(1, here[:, None]))
    return torch.where(here == there, here, nearer.int().argmax(-1))


def through_opening(
    opening: Tensor, ahead: Tensor, position: Tensor, beyond: Tensor, half_width: float
) -> Tensor:
    """Where the straight path from a position to one beyond passes an opening, or as near to that
    as a body can; all [B, 2]. `opening` is its middle, `ahead` is 1 along the axis through it."""
    before = ((opening - position).abs() * ahead).sum(-1, keepdim=True)
    after = ((beyond - opening).abs() * ahead).sum(-1, keepdim=True)
    point = torch.lerp(position, beyond, before / (before + after).clamp(min=1e-6))
    slack = (1 - ahead) * (0.5 - half_width - MARGIN)
    return torch.minimum(torch.maximum(point, opening - slack), opening + slack)


def expert_action(
    maze: Maze, body: BodyState, goal: Tensor, half_width: float = dynamics.HALF_WIDTH
) -> Tensor:
    """Bodies and goals [B, 2] -> actions [B, 2]: from opening to opening along the shortest path,
    cutting corners, at full speed to the last opening, then slower the nearer."""
    here, there = dynamics.cell_of(body.position, maze.size), dynamics.cell_of(goal, maze.size)
    first = next_cell(maze, here, there)
    second = next_cell(maze, first, there)
    mine, middle, onward = (dynamics.centre_of(c, maze.size) for c in (here, first, second))
    last = (first == there)[:, None]
    beyond = torch.where(last, goal, (middle + onward) / 2)
    ahead = (middle - mine).abs()
    point = through_opening((mine + middle) / 2, ahead, body.position, beyond, half_width)
    point = torch.where((here == there)[:, None], goal, point)
    path = point - body.position
    length = path.norm(dim=-1, keepdim=True)
    left = length + (goal - point).norm(dim=-1, keepdim=True)
    speed = torch.where(last, (BRAKE * left).clamp(max=dynamics.TERMINAL), dynamics.TERMINAL)
    velocity = path / length.clamp(min=1e-6) * speed
    return shrink_to_disk((velocity - dynamics.KEPT * body.velocity) / dynamics.PUSH, 1.0)


def behaviour_step(
    behaviour: SegmentState, maze: Maze, physics: Physics, body: BodyState, directed_fraction: float
) -> tuple[SegmentState, Tensor]:
    """The behaviour policy one step on, and its actions [B, 2]. Every 10 to 25 steps, later where
    bodies are slow, it is resampled: idle in a tenth of the segments; directed in
    `directed_fraction` of the others, to any cell until it arrives or the segment, longer by the
    path, ends; else drifting. The heading turns back now and then from a wall that has stopped the
    body. A third of the actions are full, the others have any strength down to a fifth."""
    position, scale = body.position, physics.step_scale
    u, keys = uniform(behaviour.keys, 7)
    to_target = (behaviour.target - position).norm(dim=-1)
    renew = (behaviour.steps_left <= 0) | (behaviour.directed & (to_target < AT_TARGET))
    idle = u[:, 0] < IDLE
    directed = ~idle & (u[:, 1] < directed_fraction)
    cells = dynamics.sample_index((~maze.solid).flatten(1).long(), u[:, 2])
    target = dynamics.sample_in_cell(cells, maze.size, u[:, 3:5])
    steps = integers(u[:, 5], SEGMENT_STEPS)
    path_length = pick(pick(maze.path_length, dynamics.cell_of(position, maze.size)), cells)
    active_steps = scale * (steps + STEPS_PER_CELL * path_length * directed)
    steps = torch.where(idle, steps, active_steps)
    new = SegmentState(direction(2 * math.pi * u[:, 6]), target, directed, idle, steps, keys)
    behaviour = where(renew, new, behaviour)
    u, keys = uniform(keys, 3)
    stopped = body.velocity.abs() <= physics.stopped_speed
    turn_back = stopped & (u[:, 2, None] < BOUNCE_PROB / scale)
    heading = torch.where(turn_back, -behaviour.heading, behaviour.heading)
    heading = rotate(heading, von_mises(u[:, 0], scale * KAPPA))
    strength = (MIN_STRENGTH + 1.2 * u[:, 1:2]).clamp(max=1)
    to_target = expert_action(maze, body, behaviour.target, physics.half_width)
    actions = torch.where(behaviour.directed[:, None], to_target, heading * strength)
    left = behaviour.steps_left - 1
    behaviour = behaviour._replace(heading=heading, steps_left=left, keys=keys)
    return behaviour, actions * ~behaviour.idle[:, None]
