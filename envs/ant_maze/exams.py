"""Questions about walls with answers from the true physics: does a trot pass, or not?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batched import DynamicsTest
from ..chance import draw, mix
from ..maze.exams import WAYS, choices
from ..maze.goals import pick_one
from ..maze.layouts import Maze
from ..maze.physics import Physics, centre
from ..maze.rendering import draw_walls
from ..maze.senses import Senses
from ..maze.states import to_factors
from .ants import gait

STEPS = 40
NEAR = 0.1  # cells, how much further from a side than it must an ant begins at most


def trot(
    maze: Maze, physics: Physics, senses: Senses, chosen: Tensor, uniform: Tensor
) -> DynamicsTest:
    """What two seconds of a trot do to ants that stand before a side that may be chosen [N, cells,
    4]."""
    side = pick_one(chosen.flatten(1).long(), uniform[:, 0])
    ahead = torch.tensor(WAYS, device=uniform.device)[side % 4]
    gap = physics.wide + NEAR * uniform[:, 1:2]
    aside = (1 - 2 * physics.wide) * (uniform[:, 2:] - 0.5) * (1 - ahead.abs())
    place = centre(side // 4, maze.size) + ahead * (0.5 - gap) + aside
    body = end = physics.put(place, torch.zeros_like(place))
    actions = []
    for _ in range(STEPS):
        actions.append(gait(end, ahead))
        end = physics.moved(maze, end, actions[-1])
    return DynamicsTest(
        obs=senses.sense(draw_walls(maze), body),
        actions=torch.stack(actions, 1),
        start_factors=to_factors(maze.size, body),
        end_factors=to_factors(maze.size, end),
    )


def exams(maze: Maze, physics: Physics, senses: Senses, keys: Tensor) -> dict[str, DynamicsTest]:
    """Mazes and keys [N] -> trots against a "wall" and through what is "open"."""
    uniform, _ = draw(mix(keys ^ 8), 3)
    return {name: trot(maze, physics, senses, may, uniform) for name, may in choices(maze).items()}
