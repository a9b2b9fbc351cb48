"""Point Maze for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from typing import ClassVar

from ..maze import MazeVectorEnv
from ..maze.physics import Physics
from .physics import ball


class PointMazeVectorEnv(MazeVectorEnv):
    """The mazes of `MazeVectorEnv`, their keywords and all that is told there, with a body that
    MuJoCo moves: a ball between walls that have a width.

    The action, cut back to length 1, is a force on the ball, which friction slows down. In the open
    it is as fast as the body of those mazes: it keeps 0.8 of its velocity from step to step and a
    full action comes to 0.3 cells a step. Walls throw it back a little, and it rolls round their
    ends.
    """

    moves: ClassVar[str] = "A ball (blue)"

    def _physics(self) -> Physics:
        return ball(self.mazes.size)
