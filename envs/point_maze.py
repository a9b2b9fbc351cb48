"""Point Maze: the mazes of `maze`, with a ball that MuJoCo moves between boxes. It is as wide with
half a wall as half the point mass of `maze`, so positions that are free there are free here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from .base import SingleEnv
from .batch import pick
from .geometry import shrink_to_disk
from .maze import MazeVectorEnv
from .maze.dynamics import HALF_WIDTH, KEPT, TERMINAL, Maze, Physics, PointState, cell_of
from .mujoco import Simulator, compile_model

if TYPE_CHECKING:
    from mujoco import MjModel

WALL_HALF_WIDTH = 0.03
BALL_RADIUS = HALF_WIDTH - WALL_HALF_WIDTH
STEP, SUBSTEPS = 0.1, 10  # seconds
CONTACT_SUBSTEPS = 2  # in which a contact gives way; MuJoCo can't do fewer
CONTACT_DAMPING = 1.5  # 1 would throw a ball back with a fifth of its speed
STOPPED_SPEED = 0.01  # cells a step; what is left of a velocity into a wall
MAX_OVERLAP = 0.03  # cells; how far contacts let a ball into a wall, at full speed

MJCF = """
<mujoco>
  <option timestep="{timestep}" gravity="0 0 0"/>
  <default><geom condim="1" solref="{contact} {contact_damping}"/></default>
  <worldbody>
    {walls}
    <body>
      <joint name="x" type="slide" axis="1 0 0" damping="{damping}"/>
      <joint name="y" type="slide" axis="0 1 0" damping="{damping}"/>
      <geom type="sphere" size="{ball}" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="{force}"/><motor joint="y" gear="{force}"/></actuator>
</mujoco>
"""
BOX = '<geom type="box" pos="{x} {y} {z}" size="{half_x} {half_y} {ball}"/>'


class WallBox(NamedTuple):
    """A box: its middle and half its sides, in cells."""

    x: float
    y: float
    half_x: float
    half_y: float
    z: float = 0.0


SPARE = WallBox(0.0, 0.0, WALL_HALF_WIDTH, WALL_HALF_WIDTH, z=-9.0)  # far below every body


def straight_runs(line: list[bool]) -> Iterator[tuple[float, float]]:
    """Which edges on a line are walls -> the middle and half the length of each straight run."""
    start = 0
    for is_wall, run in groupby(line):
        length = len(list(run))
        if is_wall:
            yield start + length / 2, length / 2
        start += length


def wall_boxes(vertical: Tensor, horizontal: Tensor) -> list[WallBox]:
    """The walls of a maze, [n, n + 1] and [n + 1, n]: one box for each straight run, because a ball
    that rolls along is thrown back where two boxes meet. They end in the middle of those that they
    run into, so that no end sticks out on the other side."""
    width = WALL_HALF_WIDTH
    columns, rows = enumerate(vertical.T.tolist()), enumerate(horizontal.tolist())
    return [
        *(WallBox(x, y, width, h) for x, line in columns for y, h in straight_runs(line)),
        *(WallBox(x, y, w, width) for y, line in rows for x, w in straight_runs(line)),
    ]


def max_boxes(size: int) -> int:
    """The most straight runs that the walls of a maze can have, with an opening between any two."""
    return 2 * (size + 1) * ((size + 1) // 2)


def with_spares(size: int, boxes: list[WallBox]) -> list[WallBox]:
    """As many boxes for all mazes of a size, some spare, so that MuJoCo can step them together."""
    return [*boxes, *[SPARE] * (max_boxes(size) - len(boxes))]


def to_mjcf(size: int, boxes: list[WallBox]) -> str:
    """A ball between walls, in MJCF."""
    timestep = STEP / SUBSTEPS
    damping = (KEPT ** (-1 / SUBSTEPS) - 1) / timestep  # so that a step keeps just that fraction
    walls = [BOX.format(**box._asdict(), ball=BALL_RADIUS) for box in with_spares(size, boxes)]
    return MJCF.format(
        walls="\n    ".join(walls),
        timestep=timestep,
        contact=CONTACT_SUBSTEPS * timestep,
        contact_damping=CONTACT_DAMPING,
        damping=damping,
        ball=BALL_RADIUS,
        force=damping * TERMINAL / STEP,
    )


class ModelCache:
    """The models of the mazes of the last call, and no others."""

    def __init__(self, build: Callable[[list[WallBox]], MjModel]) -> None:
        self.build = build
        self.models: dict[bytes, MjModel] = {}

    def __call__(self, maze: Maze) -> list[MjModel]:
        """B mazes -> the model of each."""
        vertical, horizontal = maze.vertical_walls.cpu(), maze.horizontal_walls.cpu()
        walls = torch.cat([vertical.flatten(1), horizontal.flatten(1)], -1).numpy()
        names = [row.tobytes() for row in walls]
        models: dict[bytes, MjModel] = {}
        for i, name in enumerate(names):
            if name not in models:
                known = self.models.get(name)
                models[name] = known or self.build(wall_boxes(vertical[i], horizontal[i]))
        self.models = models
        return [models[name] for name in names]


class BallPhysics:
    """MuJoCo moves balls in mazes of one size: the action is a force."""

    def __init__(self, size: int) -> None:
        self.models = ModelCache(lambda boxes: compile_model(to_mjcf(size, boxes)))
        self.simulator = Simulator(self.models.build([]), SUBSTEPS)

    def __call__(self, maze: Maze, body: PointState, actions: Tensor) -> PointState:
        """Actions [B, 2] -> balls one step later."""
        models, force = self.models(maze), shrink_to_disk(actions, 1.0)
        position, velocity = self.simulator(models, body.position, body.velocity / STEP, force)
        return PointState(position, STEP * velocity, body.position)


def distance_to_vertical(walls: Tensor, position: Tensor) -> Tensor:
    """The distance of positions [B, 2] from the nearest vertical wall [B, n, n + 1], [B]."""
    rows, lines = (torch.arange(n, device=position.device) for n in walls.shape[1:])
    across = ((position[:, None, :1] - lines).abs() - WALL_HALF_WIDTH).clamp(min=0)  # [B, 1, n + 1]
    along = ((position[:, 1:, None] - rows[:, None] - 0.5).abs() - 0.5).clamp(min=0)  # [B, n, 1]
    return torch.where(walls, torch.hypot(across, along), torch.inf).flatten(1).amin(-1)


def has_room(maze: Maze, position: Tensor, min_gap: float) -> Tensor:
    """Positions [B, 2] -> [B] bool: inside the maze, in no solid cell, and so far from walls."""
    to_vertical = distance_to_vertical(maze.vertical_walls, position)
    to_horizontal = distance_to_vertical(maze.horizontal_walls.mT, position.flip(-1))
    inside = ((position > 0) & (position < maze.size)).all(-1)
    solid = pick(maze.solid.flatten(1), cell_of(position, maze.size))
    return inside & ~solid & (torch.minimum(to_vertical, to_horizontal) >= min_gap)


def is_free(maze: Maze, position: Tensor) -> Tensor:
    """Positions [B, 2] -> [B] bool: a ball may be there; it may overlap walls a little."""
    return has_room(maze, position, BALL_RADIUS - MAX_OVERLAP)


class PointMazeVectorEnv(MazeVectorEnv):
    """The mazes of `MazeVectorEnv`, with its keyword arguments and infos, and a ball that MuJoCo
    moves between walls of width 0.06. The action [2], shortened to length 1, is a force on it; in
    the open it moves as the point mass of those mazes. Walls throw it back a little, and it rolls
    round their ends. The constructor raises ImportError where MuJoCo is missing."""

    body_name: ClassVar[str] = "A ball (blue)"

    def _physics(self) -> Physics:
        return Physics(BallPhysics(self.mazes.size), is_free, STOPPED_SPEED)


class PointMazeEnv(SingleEnv):
    vector_env = PointMazeVectorEnv
