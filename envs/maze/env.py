"""The environment: its state, observations, dynamics tests, and the Gymnasium classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..rng import keys_from_seeds, splitmix64, uniform
from ..single_env import SingleEnv
from ..vector_env import (
    NUM_TESTS,
    TEST_STEPS,
    DynamicsTest,
    GoalVectorEnv,
    TensorObs,
    check_range,
    check_rows,
    choose,
    read_factors,
    rounded,
)
from .dynamics import (
    BANDS,
    MAPS,
    POINT_PHYSICS,
    SPLITS,
    TERMINAL,
    BodyState,
    FixedMaze,
    Maze,
    Physics,
    SampledMaze,
    at_rest,
    band_miss,
    cell_of,
    centre_of,
    read_map,
    sample_goal,
    sample_in_cell,
    sample_index,
    sample_start,
)
from .policies import BehaviourState, behaviour_step, expert_action, init_behaviour
from .render import draw_frames, draw_image, draw_walls, image_size, to_pixels

RANDOM = "random"
SIZES = (3, 15)
MAX_LOOP_PROB = 0.9  # without any walls all mazes would be equal
STEPS_PER_CELL = 6  # of the longest path; at full speed a cell takes 3.3
AROUND = 2  # cells of the path, at most, at which a goal counts as reached; beyond is a wall
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # right, left, down, up


class State(NamedTuple):
    """The state of B environments."""

    body: BodyState
    goal: Tensor  # [B, 2]
    goal_radius: Tensor  # [B] cells; nearer to the goal than this, it counts as reached
    maze: Maze
    succeeded: Tensor  # [B] bool: the goal was reached in this episode
    behaviour: BehaviourState
    next_key: Tensor  # [B] int64: the random key of the next episode
    walls: Tensor  # [B, S, S] uint8
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] cells from the body straight to its goal."""
        return (self.body.position - self.goal).norm(dim=-1)

    @property
    def at_goal(self) -> Tensor:
        """[B] bool: near the goal and on the same side of every wall."""
        return (self.distance < self.goal_radius) & (self.path <= AROUND)

    @property
    def path(self) -> Tensor:
        """[B] float32: cells from the body's to the goal's."""
        here, goal = (cell_of(p, self.maze.size) for p in (self.body.position, self.goal))
        rows = torch.arange(len(goal), device=goal.device)
        return self.maze.path_length[rows, here, goal].float()


class ObsType(Protocol):
    """What is observed of a body in a maze of a known size."""

    @property
    def space(self) -> spaces.Box: ...

    def observe(self, walls: Tensor, body: Any) -> Tensor:
        """Walls [B, S, S] as images show them -> observations [B, *O]."""


@dataclass(frozen=True)
class ImageObs:
    """Walls, the body, and the body one step earlier, each a channel of an image."""

    size: int

    @property
    def space(self) -> spaces.Box:
        pixels = image_size(self.size)
        return spaces.Box(0, 255, (3, pixels, pixels), np.uint8)

    def observe(self, walls: Tensor, body: BodyState) -> Tensor:
        return draw_image(walls, self.size, body)


@dataclass(frozen=True)
class StateObs:
    """Position from -1 to 1 across the maze, and velocity as a fraction of the terminal speed."""

    size: int

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (4,), np.float32)

    def observe(self, walls: Tensor, body: BodyState) -> Tensor:
        position = 2 * body.position / self.size - 1
        return torch.cat([position, body.velocity / TERMINAL], -1).clamp(-1, 1)


OBS_TYPES: dict[str, type[ImageObs] | type[StateObs]] = {"image": ImageObs, "state": StateObs}


def to_factors(size: int, body: BodyState) -> Tensor:
    """x and y as fractions of the maze, velocity as a fraction of the terminal speed, [B, 4]."""
    return torch.cat([body.position / size, body.velocity / TERMINAL], -1)


def from_factors(maze: Maze, physics: Physics, name: str, factors: object) -> BodyState:
    """A user's factors [B, 4] -> bodies. Raises ValueError where no free body has them."""
    read = read_factors(name, factors, (len(maze.solid), 4), maze.solid.device)
    position, velocity = maze.size * read[:, :2], TERMINAL * read[:, 2:]
    if not bool(((read[:, :2] >= 0) & (read[:, :2] <= 1)).all()):
        raise ValueError(f"{name}: x and y must be fractions of the maze, each in [0, 1]")
    if not bool((read[:, 2:].abs() <= 1).all()):
        raise ValueError(f"{name}: velocities must be fractions of the terminal speed, in [-1, 1]")
    check_rows(
        physics.is_free(maze, position),
        lambda i: (
            f"{name}: in environment {i} the body at cell {rounded(position[i])} is inside a wall"
        ),
    )
    body: BodyState = physics.place_at(position, velocity)
    return body


def cell_sides(maze: Maze) -> tuple[Tensor, Tensor]:
    """The four sides of every cell, [B, N, 4] bool: which have a wall, and which are the maze's."""
    vertical, horizontal = maze.vertical_walls, maze.horizontal_walls
    walls = [vertical[:, :, 1:], vertical[:, :, :-1], horizontal[:, 1:], horizontal[:, :-1]]
    outer = torch.zeros(maze.size, maze.size, 4, dtype=torch.bool, device=vertical.device)
    outer[:, -1, 0] = outer[:, 0, 1] = outer[-1, :, 2] = outer[0, :, 3] = True
    return torch.stack(walls, -1).flatten(1, 2), outer.flatten(0, 1).expand(len(vertical), -1, -1)


def candidate_sides(maze: Maze) -> dict[str, Tensor]:
    """The sides [B, N, 4] that dynamics tests may be about: walls between two cells, those around
    the maze where there are no others, and openings."""
    walls, outer = cell_sides(maze)
    free = ~maze.solid.flatten(1)[..., None]
    wall, inner = walls & free, walls & free & ~outer
    any_inner = inner.flatten(1).any(-1)[:, None, None]
    return {"wall": torch.where(any_inner, inner, wall), "open": ~walls & free}


def mazes_of(
    size: int,
    name: str,
    maze_seed: int | None,
    loop_prob: float,
    split: str,
    device: torch.device,
) -> SampledMaze | FixedMaze:
    """Where the mazes come from."""
    drawing = choose("map", name, {RANDOM: None, **MAPS})
    if drawing is not None:
        if maze_seed is not None or loop_prob:
            raise ValueError(
                f"map {name!r} is one maze; maze_seed and loop_prob are of map {RANDOM!r}"
            )
        return FixedMaze(read_map(drawing, device))
    if maze_seed is not None:
        keys = keys_from_seeds([maze_seed], device)
        return FixedMaze(SampledMaze(size, loop_prob, "all")(keys))
    return SampledMaze(size, loop_prob, split)


class MazeVectorEnv(GoalVectorEnv[State]):
    """B point masses with momentum, each in a maze of square cells of side 1, with a goal.

    The point mass, a square of half width 0.15, keeps 0.8 of its velocity from step to step; the
    action [2], shortened to length 1, adds 0.06 of itself, so that its speed is at most 0.3 cells a
    step. Walls, which are lines between cells, stop it, and it slides along them.

    The goal is reached nearer than 0.4 cells with no wall between. Episodes end after
    `max_episode_steps` and never before. Infos also report "path", the cells of the shortest path
    to the goal; "distance" is straight. Factors are x and y as fractions of the maze's side, in
    [0, 1], and the velocity as a fraction of the terminal speed, in [-1, 1]. Reset options:
    "factors" [B, 4] sets bodies, "goal_factors" [B, 4] sets goals; mazes stay the seed's. Dynamics
    tests: full actions against a "wall", and where it is "open".
    """

    body_name: ClassVar[str] = "A point mass (blue) with momentum"
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y", "velocity x", "velocity y")
    obs_types: ClassVar[Mapping[str, Callable[[int], ObsType]]] = OBS_TYPES
    action_dim: ClassVar[int] = 2

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 5,
        map: str = RANDOM,
        maze_seed: int | None = None,
        split: str = "all",
        loop_prob: float = 0.0,
        goal_distance: str = "any",
        obs_type: str = "image",
        max_episode_steps: int | None = None,
        directed_fraction: float = 0.0,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """Mazes of `size` by `size` cells are drawn, one for each episode, or, with a `maze_seed`,
        one for all: that of the first episode of `reset(seed=maze_seed)`. Exactly one path leads
        from each cell to each, but for `loop_prob`, the probability of any further wall to be open.
        `split` is "all", or "train" or "test", which share no maze; a single maze is in both. Or
        `map` is the name of a published maze: "u", "medium", "large", "four-rooms".

        `goal_distance` is along the path from the start: "short", 1 to 3 cells; "long", at least
        60 % of the longest path in the maze, and 4 cells where it has them; "medium", between them;
        "any". Pairs of cells in the band are drawn with equal probability; where it is empty (or
        has none for a start that a user sets), those that miss it by least.

        `obs_type` is "image" [3, S, S], walls, body, and body one step earlier; or, where there is
        one maze for all, "state" [4], position from -1 to 1 and velocity as in the factors.
        `max_episode_steps` is by default 6 for each cell of the longest path there can be.
        `directed_fraction` is how many of the behaviour policy's segments that aren't idle lead to
        a cell.

        Raises ValueError for names that don't exist and for numbers out of range.
        """
        check_range("size", size, *SIZES)
        check_range("loop_prob", loop_prob, 0, MAX_LOOP_PROB)
        check_range("directed_fraction", directed_fraction, 0, 1)
        split = choose("split", split, {name: name for name in SPLITS})
        self.directed_fraction = directed_fraction
        self.band = choose("goal_distance", goal_distance, BANDS)
        self.mazes = mazes_of(size, map, maze_seed, loop_prob, split, torch.device(device))
        sampled = isinstance(self.mazes, SampledMaze)
        self.description = (
            f"{self.body_name} is to find its way between walls to a goal (green ring). "
            + (
                "Every episode has a maze of its own."
                if sampled
                else "The maze is always the same."
            )
        )
        if obs_type == "state" and sampled:
            raise ValueError(
                "obs_type 'state' doesn't show the maze; choose one maze by maze_seed or map"
            )
        self.obs_type = choose("obs_type", obs_type, self.obs_types)(self.mazes.size)
        self.physics = self._physics()
        default_steps = STEPS_PER_CELL * self.physics.step_scale * self.mazes.longest
        super().__init__(
            num_envs,
            self.obs_type.space,
            spaces.Box(-1, 1, (self.action_dim,), np.float32),
            max_episode_steps=default_steps if max_episode_steps is None else max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def _physics(self) -> Physics:
        """What moves bodies in these mazes."""
        return POINT_PHYSICS

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        maze, physics = self.mazes(keys), self.physics
        u, _ = uniform(splitmix64(keys ^ 6), 6)
        miss = band_miss(maze, self.band)
        start = sample_start(miss, u[:, 0])
        position = sample_in_cell(start, maze.size, u[:, 1:3], physics.half_width)
        body = physics.place_at(position, torch.zeros_like(position))
        if "factors" in options:
            body = from_factors(maze, physics, "factors", options["factors"])
            start = cell_of(body.position, maze.size)
        goal_cell = sample_goal(miss, start, u[:, 3])
        goal = sample_in_cell(goal_cell, maze.size, u[:, 4:], physics.half_width)
        if "goal_factors" in options:
            goal = from_factors(maze, physics, "goal_factors", options["goal_factors"]).position
        walls = draw_walls(maze)
        state = State(
            body=body,
            goal=goal,
            goal_radius=torch.full_like(goal[:, 0], physics.goal_radius),
            maze=maze,
            succeeded=torch.zeros_like(keys, dtype=torch.bool),
            behaviour=init_behaviour(body.position, splitmix64(keys ^ 1)),
            next_key=splitmix64(keys ^ 2),
            walls=walls,
            goal_obs=self.obs_type.observe(walls, physics.place_at(goal, torch.zeros_like(goal))),
        )
        return state._replace(succeeded=state.at_goal)

    def _step_state(self, state: State, actions: Tensor) -> State:
        state = state._replace(body=self.physics.step(state.maze, state.body, actions))
        return state._replace(succeeded=state.succeeded | state.at_goal)

    def _observe(self, state: State) -> TensorObs:
        return self.obs_type.observe(state.walls, state.body)

    def _factors(self, state: State) -> Tensor:
        return to_factors(self.mazes.size, state.body)

    def _goal_factors(self, state: State) -> Tensor:
        return to_factors(self.mazes.size, at_rest(state.goal))

    def _info(self, state: State) -> dict[str, TensorObs]:
        return {**super()._info(state), "path": state.path}

    def _expert(self, state: State) -> Tensor:
        half_width = self.physics.half_width
        return self._to_actions(
            state, expert_action(state.maze, state.body, state.goal, half_width)
        )

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        behaviour, actions = behaviour_step(
            state.behaviour, state.maze, self.physics, state.body, self.directed_fraction
        )
        return behaviour, self._to_actions(state, actions)

    def _to_actions(self, state: State, point_actions: Tensor) -> Tensor:
        """What a point mass would do, [B, 2] -> actions [B, A] of this body."""
        return point_actions

    def _dynamics_tests(self, seed: int) -> dict[str, DynamicsTest]:
        keys = keys_from_seeds(range(seed, seed + NUM_TESTS), self.device)
        maze = self.mazes(keys)
        u, _ = uniform(splitmix64(keys ^ 8), 3)
        return {
            name: self._push_test(maze, sides, u) for name, sides in candidate_sides(maze).items()
        }

    def _push_test(self, maze: Maze, sides: Tensor, u: Tensor) -> DynamicsTest:
        """Five full actions from rest, before one of the sides [N, cells, 4] that may be chosen:
        from 0.05 of the terminal speed to all of it before where a wall would stop the body."""
        gap = TERMINAL * (0.05 + 0.95 * u[:, 1:2])
        offset = 0.5 - self.physics.half_width - gap
        body, ahead = self._before_side(maze, sides, u, offset)
        actions = ahead[:, None].repeat(1, TEST_STEPS, 1)
        return self._run_test(maze, body, lambda _body, step: actions[:, step], TEST_STEPS)

    def _before_side(
        self, maze: Maze, sides: Tensor, u: Tensor, offset: Tensor
    ) -> tuple[BodyState, Tensor]:
        """Bodies at rest, this far [N, 1] from a cell's centre towards one of the sides, and the
        direction [N, 2] to it."""
        side, width = sample_index(sides.flatten(1).long(), u[:, 0]), self.physics.half_width
        ahead = torch.tensor(DIRECTIONS, device=u.device)[side % 4]
        sideways = (1 - 2 * width) * (u[:, 2:] - 0.5) * (1 - ahead.abs())
        position = centre_of(side // 4, maze.size) + ahead * offset + sideways
        return self.physics.place_at(position, torch.zeros_like(position)), ahead

    def _run_test(
        self, maze: Maze, start: BodyState, act: Callable[[Any, int], Tensor], steps: int
    ) -> DynamicsTest:
        """What the actions [N, A] of `act(body, step)` do."""
        end, actions = start, []
        for step in range(steps):
            actions.append(act(end, step))
            end = self.physics.step(maze, end, actions[-1])
        return DynamicsTest(
            obs=self.obs_type.observe(draw_walls(maze), start),
            actions=torch.stack(actions, 1),
            start_factors=to_factors(maze.size, start),
            end_factors=to_factors(maze.size, end),
        )

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(self.mazes.size * factors[..., :2], self.mazes.size)

    def _draw(self, state: State) -> Tensor:
        return draw_frames(state.maze, state.body.position, state.goal, self.physics.goal_radius)


class MazeEnv(SingleEnv[MazeVectorEnv]):
    """One environment of `MazeVectorEnv`."""

    vector_env = MazeVectorEnv
