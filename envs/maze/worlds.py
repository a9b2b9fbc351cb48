"""Maze for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, pick, require
from ..chance import keys_of
from .exams import exam_keys, exams
from .experts import pursue
from .goals import BANDS
from .layouts import SPLITS, Drawn, Given, Maze
from .maps import MAPS, read_map
from .physics import SQUARES, Physics, resting
from .rendering import draw_picture, to_picture
from .senses import SENSES, Senses
from .states import State, advance, begin, conceive, to_factors
from .walks import stroll

FACTOR_NAMES = ("body x", "body y", "velocity x", "velocity y")
RANDOM = "random"
SIZES = (3, 15)
LOOPS = 0.9  # at most: without any walls, all mazes are one
PATIENCE = 6  # steps of a max_episode_steps for each cell of the longest way; at full speed a cell takes 3.3


def _source(
    size: int, name: str, maze: int | None, loops: float, split: str, device: torch.device
) -> Drawn | Given:
    """Where the mazes come from."""
    drawing = pick("map", name, {RANDOM: None, **MAPS})
    if drawing is not None:
        if maze is not None or loops:
            raise ValueError(f"map {name!r} is one maze; maze and loops are of map {RANDOM!r}")
        return Given(read_map(drawing, device))
    if maze is not None:
        return Given(Drawn(size, loops, "all")(keys_of([maze], device)))
    return Drawn(size, loops, split)


class MazeVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    A maze of square cells of side 1; walls are lines between them. A body, a square of half side
    0.15, keeps 0.8 of its velocity from step to step and its action, cut back to length 1, adds
    0.06 of itself: 0.3 cells a step is as fast as it gets. Walls stop it, and it slides along them.

    Episodes end when the max_episode_steps is spent and never before. The reward is 1 for every step that ends
    nearer than 0.4 cells to the goal with no wall between. Told are, among others, "distance",
    straight to the goal, and "path", cells to go. Factors are x and y as fractions of the maze's
    side, in [0, 1], and the velocity as a share of the terminal speed, in [-1, 1]. Options of
    reset: "factors" [B, 4] puts bodies, "goal_factors" [B, 4] puts goals, where a body rests; mazes
    stay the seed's.
    """

    moves: ClassVar[str] = "A body (blue) that keeps its momentum"
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES
    kinds: ClassVar[Mapping[str, Callable[[int], Senses]]] = SENSES
    actions: ClassVar[int] = 2

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 5,
        map: str = RANDOM,
        maze: int | None = None,
        layouts: str = "all",
        loops: float = 0.0,
        goals: str = "any",
        senses: str = "image",
        max_episode_steps: int | None = None,
        errands: float = 0.0,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """Mazes of `size` by `size` cells are drawn, one for each episode, or with a number `maze`
        that one for all: the one that `reset(seed=maze)` begins with. Exactly one way leads from
        each cell to each, but for `loops`, the chance of any further wall to be open. Of `layouts`,
        "train" and "test" share no maze; a single maze is in both. Or else `map` is the name of a
        maze that many know, which has its own size: "u", "medium", "large", "four-rooms".

        `goals` are so far from the start along the way: "short", 1 to 3 cells; "long", at least 60
        % of the longest way in the maze, and 4 cells where it has them; "medium", between them;
        "any". Pairs of cells in the band are drawn with equal chances; where it is empty (or has
        none for a start that a user gives), those that miss it by least.

        `senses` are an "image" [3, S, S], walls, body, and body one step earlier, or, where the
        maze is one and the same, the "state" [4], position from -1 to 1 and velocity as in the
        factors. `max_episode_steps` is by default 6 steps for each cell of the longest way there can be.
        `errands` is the share of errands to any cell among the stretches of `behaviour_action`.

        Raises ValueError for names that don't exist, and for numbers that make no sense.
        """
        require("size", size, *SIZES)
        require("loops", loops, 0, LOOPS)
        require("errands", errands, 0, 1)
        split = pick("layouts", layouts, {name: name for name in SPLITS})
        self.errands, self.band = errands, pick("goals", goals, BANDS)
        self.mazes = _source(size, map, maze, loops, split, torch.device(device))
        drawn = isinstance(self.mazes, Drawn)
        self.description = (
            f"{self.moves} is to find its way between walls to a goal (green ring). "
            + ("Every episode has a maze of its own." if drawn else "The maze is always the same.")
        )
        if senses == "state" and drawn:
            raise ValueError("senses 'state' can't tell drawn mazes apart; choose a maze or a map")
        self.senses = pick("senses", senses, self.kinds)(self.mazes.size)
        self.physics = self._physics()
        super().__init__(
            num_envs,
            self.senses.space(),
            spaces.Box(-1, 1, (self.actions,), np.float32),
            max_episode_steps=PATIENCE * self.physics.slow * self.mazes.longest
            if max_episode_steps is None
            else max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def _physics(self) -> Physics:
        """What moves bodies in these mazes."""
        return SQUARES

    def expert_action(self) -> Array:
        """What one who knows the maze would do, [B, A]."""
        state = self.state
        wanted = pursue(state.maze, state.body, state.goal, self.physics.wide)
        return self._out(self._carried_out(wanted))

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, A]: drifting, on errands, at rest."""
        state = self.state
        walk, actions = stroll(state.walk, state.maze, self.physics, state.body, self.errands)
        self._state = state._replace(walk=walk)
        return self._out(self._carried_out(actions))

    def _carried_out(self, wanted: Tensor) -> Tensor:
        """What a square would do to go somewhere, [B, 2] -> actions [B, A]."""
        return wanted

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes against a "wall" and where it is "open"."""
        keys = exam_keys(seed, self.device)
        asked = self._asked_of(self.mazes(keys), keys)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def _asked_of(self, maze: Maze, keys: Tensor) -> dict[str, DynamicsTest]:
        """Mazes and keys [N] -> exams by name."""
        return exams(maze, self.physics, self.senses, keys)

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: body blue, goal a green ring of success."""
        state = self.state
        pictures = draw_picture(state.maze, state.body.place, state.goal, self.physics.reached)
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 4] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""
        size, read = self.mazes.size, torch.as_tensor(factors, dtype=torch.float32)
        return self._out(to_picture(size * read[..., :2], size))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        maze = self.mazes(life)
        birth = conceive(maze, self.physics, self.band, life, options)
        return begin(maze, self.physics, birth, self.senses, life)

    def _advance(self, state: State, actions: Tensor) -> State:
        return advance(self.physics, state, actions)

    def _observe(self, state: State) -> Seen:
        return self.senses.sense(state.walls, state.body)

    def _reward(self, state: State) -> Tensor:
        return state.there.float()

    def _tell(self, state: State) -> dict[str, Seen]:
        size = self.mazes.size
        return {
            "goal": state.goal_obs,
            "factors": to_factors(size, state.body),
            "goal_factors": to_factors(size, resting(state.goal)),
            "distance": state.distance,
            "path": state.path,
            "success": state.ever,
            "final_success": state.there,
        }
