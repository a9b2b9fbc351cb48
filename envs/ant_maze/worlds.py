"""Ant Maze for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..batched import Array, DynamicsTest
from ..chance import draw, mix
from ..maze import MazeVectorEnv
from ..maze.layouts import Maze
from ..maze.physics import Physics
from ..maze.senses import Senses
from .ants import Ant, gait
from .exams import exams
from .physics import ants
from .rendering import draw_picture
from .senses import SENSES

SHAKEN = 0.15  # of the full torque, how far a walk's may be off


class AntMazeVectorEnv(MazeVectorEnv):
    """The mazes of `MazeVectorEnv`, their keywords and all that is told there, with a quadruped
    that MuJoCo moves: the body of Gymnasium's `Ant-v5` between walls, 4 metres to a cell.

    The action [8] is a torque on each of its joints, in the order of `Ant-v5`; a step is a
    twentieth of a second. Nearer than half a metre to the goal is there. The goal tells of an ant
    that stands there. Who knows the maze, and the worlds' own walk, trot from cell to cell, 0.4 to
    0.9 metres a second, the way they are turned; on a walk torques are shaken. An ant that falls on
    its back stays there until the max_episode_steps is spent.
    """

    moves: ClassVar[str] = "An ant, a body on four legs (blue),"
    kinds: ClassVar[Mapping[str, Callable[[int], Senses]]] = SENSES
    actions: ClassVar[int] = 8

    def __init__(
        self, num_envs: int = 1, *, map: str = "u", senses: str = "state", **settings: Any
    ) -> None:
        """`senses` are the "state" [29]: position from -1 to 1, height, orientation and joints, and
        the velocities of these. `max_episode_steps` is by default 144 steps for each cell of the longest way.
        """
        super().__init__(num_envs, map=map, senses=senses, **settings)

    def _physics(self) -> Physics:
        return ants(self.mazes.size)

    def _carried_out(self, wanted: Tensor) -> Tensor:
        # who stands begins with the same legs: what comes next is plain from the pose
        clock = torch.where(wanted.any(-1), self.ant.clock, -1.0)
        self._state = self.state._replace(body=self.ant._replace(clock=clock))
        return gait(self.ant, wanted)

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, 8]: as in a maze, at a trot, shaken."""
        torque = torch.as_tensor(super().behaviour_action(), device=self.device)
        uniform, _ = draw(mix(self.state.walk.keys ^ 1), self.actions)
        return self._out((torque + SHAKEN * (2 * uniform - 1)).clamp(-1, 1))

    def _asked_of(self, maze: Maze, keys: Tensor) -> dict[str, DynamicsTest]:
        """Mazes and keys [N] -> a trot against a "wall" and one where it is "open"."""
        return exams(maze, self.physics, self.senses, keys)

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: ants blue, goal a green ring of success."""
        state = self.state
        pictures = draw_picture(state.maze, self.ant, state.goal)
        return tuple(pictures.cpu().numpy())

    @property
    def ant(self) -> Ant:
        """As they are."""
        body = self.state.body
        assert isinstance(body, Ant)
        return body
