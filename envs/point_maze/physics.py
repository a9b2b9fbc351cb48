"""How MuJoCo moves a ball: walls as boxes, the action as a force.

Ball and walls together are as wide as the body of `..maze`, so places that are free there are free
here, and what it keeps of a velocity and how fast it gets are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..maze.layouts import Maze
from ..maze.physics import Body, Physics, cell
from ..mujoco import Simulator, compile_model
from ..plane import shrink_to_disk
from .walls import BALL, STEP, SUBSTEPS, WALL, Wall, walls, written

if TYPE_CHECKING:
    from mujoco import MjModel

STILL = 0.01  # cells a step; what is left of a pace that leans on a wall
DEEPEST = 0.03  # cells; how far contacts let a ball into a wall, at full speed


class Models:
    """The models of mazes, as they are asked for; the latest are kept, and no others."""

    def __init__(self, build: Callable[[list[Wall]], MjModel]) -> None:
        self.build = build
        self.known: dict[bytes, MjModel] = {}

    def __call__(self, maze: Maze) -> list[MjModel]:
        """B mazes -> the model of each."""
        upright, level = maze.upright.cpu(), maze.level.cpu()
        told = torch.cat([upright.flatten(1), level.flatten(1)], -1).numpy()
        names = [row.tobytes() for row in told]
        models: dict[bytes, MjModel] = {}
        for i, name in enumerate(names):
            if name not in models:
                models[name] = self.known.get(name) or self.build(walls(upright[i], level[i]))
        self.known = models
        return [models[name] for name in names]


class Balls:
    """Balls in mazes of one size, each maze a model of its own."""

    def __init__(self, size: int) -> None:
        """Raises ImportError where there is no MuJoCo."""
        self.models = Models(lambda stand: compile_model(written(size, stand)))
        self.simulator = Simulator(self.models.build([]), SUBSTEPS)

    def __call__(self, maze: Maze, body: Body, actions: Tensor) -> Body:
        """Actions [B, 2] -> bodies one step later."""
        models, force = self.models(maze), shrink_to_disk(actions, 1.0)
        place, speed = self.simulator(models, body.place, body.pace / STEP, force)
        return Body(place, STEP * speed, body.place)


def gaps(lines: Tensor, place: Tensor) -> Tensor:
    """How far places [B, 2] are from the nearest upright wall [B, n, n + 1], [B]."""
    rows, line = (torch.arange(n, device=place.device) for n in lines.shape[1:])
    across = ((place[:, None, :1] - line).abs() - WALL).clamp(min=0)  # [B, 1, n + 1]
    along = ((place[:, 1:, None] - rows[:, None] - 0.5).abs() - 0.5).clamp(min=0)  # [B, n, 1]
    return torch.where(lines, torch.hypot(across, along), torch.inf).flatten(1).amin(-1)


def is_free(maze: Maze, place: Tensor) -> Tensor:
    """Places [B, 2] -> [B] bool: a ball may be there; it leans into walls a little."""
    gap = torch.minimum(gaps(maze.upright, place), gaps(maze.level.mT, place.flip(-1)))
    within = ((place > 0) & (place < maze.size)).all(-1)
    rows = torch.arange(len(place), device=place.device)
    solid = maze.solid.flatten(1)[rows, cell(place, maze.size)]
    return within & ~solid & (gap >= BALL - DEEPEST)


def ball(size: int) -> Physics:
    """The physics of mazes of that size. Raises ImportError where there is no MuJoCo."""
    return Physics(Balls(size), is_free, STILL)
