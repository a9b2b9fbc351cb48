"""How MuJoCo moves an ant between walls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
import torch
from torch import Tensor

from ..maze.layouts import Maze
from ..maze.physics import Physics, cell
from ..mujoco import MUJOCO_MISSING, Simulator
from ..point_maze.physics import Models, gaps
from ..point_maze.walls import SPARE, WALL, Wall, most
from .ants import Ant, put

if TYPE_CHECKING:
    from mujoco import MjModel

MODEL = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
CELL = 4.0  # metres to a cell, as in D4RL's AntMaze (arXiv 2004.07219)
HIGH = 0.5  # metres, half the height of a wall
STEP, SUBSTEPS = 0.05, 5  # seconds, as in Ant-v5
STILL = 0.002  # cells a step
SLOW = 24  # a trot makes 0.3 cells in about as many steps
REACHED = 0.125  # cells: half a metre, as in D4RL
WIDE = 0.21  # cells; a standing ant's feet are 0.7 metres from its middle, walls 0.12 thick


def walled(size: int, stand: list[Wall]) -> MjModel:
    """An ant between walls that stand. All mazes of a size have as many boxes, some of them spare,
    so that MuJoCo can step them together. Raises ImportError where there is no MuJoCo."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(MUJOCO_MISSING) from error
    spec = mujoco.MjSpec.from_file(str(MODEL))
    for wall in [*stand, *[SPARE] * (most(size) - len(stand))]:
        box = spec.worldbody.add_geom()
        box.type = mujoco.mjtGeom.mjGEOM_BOX
        box.pos = [CELL * wall.x, CELL * wall.y, HIGH + CELL * wall.z]
        box.size = [CELL * wall.across, CELL * wall.down, HIGH]
        box.contype, box.conaffinity = 0, 1  # walls don't touch each other
    return spec.compile()


class Ants:
    """Ants in mazes of one size, each maze a model of its own."""

    def __init__(self, size: int) -> None:
        self.models = Models(lambda stand: walled(size, stand))
        self.simulator = Simulator(self.models.build([]), SUBSTEPS)

    def __call__(self, maze: Maze, ant: Ant, actions: Tensor) -> Ant:
        """Actions [B, 8] -> ants one step later."""
        position, velocity = self.simulator(
            self.models(maze),
            torch.cat([CELL * ant.place, ant.pose], -1),
            torch.cat([CELL / STEP * ant.pace, ant.spin], -1),
            actions.clamp(-1, 1),
        )
        place, pose = position.split([2, 13], -1)
        pace, spin = velocity.split([2, 12], -1)
        return Ant(place / CELL, STEP / CELL * pace, ant.place, pose, spin, ant.clock + 1)


def is_free(maze: Maze, place: Tensor) -> Tensor:
    """Places [B, 2] -> [B] bool: an ant may stand there."""
    gap = torch.minimum(gaps(maze.upright, place), gaps(maze.level.mT, place.flip(-1)))
    within = ((place > 0) & (place < maze.size)).all(-1)
    rows = torch.arange(len(place), device=place.device)
    solid = maze.solid.flatten(1)[rows, cell(place, maze.size)]
    return within & ~solid & (gap >= WIDE - WALL - 1e-4)


def ants(size: int) -> Physics:
    """The physics of mazes of that size. Raises ImportError where there is no MuJoCo."""
    return Physics(Ants(size), is_free, STILL, put, SLOW, REACHED, WIDE)
