"""The walls of a maze as MuJoCo's boxes, and a ball between them, written in MJCF."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from ..maze.physics import KEPT, RADIUS, TERMINAL

WALL = 0.03  # half the width of a wall
BALL = RADIUS - WALL  # the radius of a ball
STEP = 0.1  # seconds
SUBSTEPS = 10
HARD = 2  # substeps in which a contact gives way; MuJoCo can't do fewer
DAMPED = 1.5  # how a contact is; 1 would throw a ball back with a fifth of its speed

MJCF = """
<mujoco>
  <option timestep="{tick}" gravity="0 0 0"/>
  <default><geom condim="1" solref="{contact} {damped}"/></default>
  <worldbody>
    {walls}
    <body>
      <joint name="x" type="slide" axis="1 0 0" damping="{drag}"/>
      <joint name="y" type="slide" axis="0 1 0" damping="{drag}"/>
      <geom type="sphere" size="{ball}" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="{force}"/><motor joint="y" gear="{force}"/></actuator>
</mujoco>
"""
BOX = '<geom type="box" pos="{x} {y} {z}" size="{across} {down} {ball}"/>'


class Wall(NamedTuple):
    """A box: its middle and half its sides, in cells."""

    x: float
    y: float
    across: float
    down: float
    z: float = 0.0


SPARE = Wall(0.0, 0.0, WALL, WALL, z=-9.0)  # far below, where no ball comes


def runs(lane: list[bool]) -> Iterator[tuple[float, float]]:
    """What of a line is wall -> the middle and half the length of each stretch."""
    start = 0
    for is_wall, stretch in groupby(lane):
        length = len(list(stretch))
        if is_wall:
            yield start + length / 2, length / 2
        start += length


def walls(upright: Tensor, level: Tensor) -> list[Wall]:
    """The walls of a maze, [n, n + 1] and [n + 1, n]: one box for each straight stretch, because a
    ball that rolls along is thrown back where two boxes meet. They end in the middle of those that
    they run into, so that nothing of an end is to be felt on the other side."""
    return [
        *(Wall(x, y, WALL, h) for x, lane in enumerate(upright.T.tolist()) for y, h in runs(lane)),
        *(Wall(x, y, w, WALL) for y, lane in enumerate(level.tolist()) for x, w in runs(lane)),
    ]


def most(size: int) -> int:
    """The most stretches that the walls of a maze can have: openings are between them."""
    return 2 * (size + 1) * ((size + 1) // 2)


def written(size: int, stand: list[Wall]) -> str:
    """A ball between walls that stand, in MJCF. All mazes of a size have as many boxes, some of
    them spare, so that MuJoCo can step them together."""
    boxes = [*stand, *[SPARE] * (most(size) - len(stand))]
    tick = STEP / SUBSTEPS
    drag = (KEPT ** (-1 / SUBSTEPS) - 1) / tick  # so that a step keeps just that much
    return MJCF.format(
        walls="\n    ".join(BOX.format(**box._asdict(), ball=BALL) for box in boxes),
        tick=tick,
        contact=HARD * tick,
        damped=DAMPED,
        drag=drag,
        ball=BALL,
        force=drag * TERMINAL / STEP,
    )
