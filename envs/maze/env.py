"""The environment: its state, what is observed and drawn, and the Gymnasium classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import pad

from .. import base, draw
from ..batch import pick
from ..rng import keys_from_seeds, splitmix64, uniform
from . import dynamics
from .dynamics import BodyState, Maze, Physics
from .policies import behaviour_step, expert_action

RANDOM = "random"
SIZES = (3, 15)
MAX_LOOP_PROB = 0.9  # without any walls all mazes would be equal
STEPS_PER_CELL = 6  # of the longest path; at full speed a cell takes 3.3
AROUND = 2  # cells of the path, at most, at which a goal counts as reached; beyond is a wall
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # right, left, down, up

CELL = 6  # pixels of an image to a cell
DOT_STD = 1.0  # pixels, of the body
WALL_WIDTH = 2  # pixels, half the width of a wall in a frame
MIN_RADIUS = 4.0  # pixels of the body in a frame


class State(NamedTuple):
    body: BodyState
    goal: Tensor  # [B, 2]
    maze: Maze
    behaviour: base.SegmentState
    walls: Tensor  # [B, S, S] uint8
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] cells from the body straight to its goal."""
        return (self.body.position - self.goal).norm(dim=-1)

    @property
    def path(self) -> Tensor:
        """[B] float32: cells from the body's to the goal's."""
        here, goal = (dynamics.cell_of(p, self.maze.size) for p in (self.body.position, self.goal))
        return pick(pick(self.maze.path_length, here), goal).float()


Policy: TypeAlias = Callable[[State], Tensor]  # states -> actions `[B, A]`


def image_size(size: int) -> int:
    """Cells on a side -> pixels on a side: a line more than the cells, up to a multiple of 4."""
    return -(-(CELL * size + 1) // 4) * 4


def to_image(position: Tensor, size: int) -> Tensor:
    """Positions [..., 2] -> pixels [..., 2] of the image, in whose middle the maze is."""
    return CELL * position + (image_size(size) - CELL * size - 1) // 2


def wall_grid(maze: Maze) -> Tensor:
    """What is wall, [B, 2 n + 1, 2 n + 1] bool: lines and cells by turns, both ways."""
    side = 2 * maze.size + 1
    wall = maze.solid.new_zeros(len(maze.solid), side, side)
    wall[:, 1::2, 1::2] = maze.solid
    wall[:, 1::2, ::2] = maze.vertical_walls
    wall[:, ::2, 1::2] = maze.horizontal_walls
    vertical = pad(maze.vertical_walls, (0, 0, 1, 1))
    horizontal = pad(maze.horizontal_walls, (1, 1))
    at_vertical = vertical[:, 1:] | vertical[:, :-1]
    wall[:, ::2, ::2] = at_vertical | horizontal[:, :, 1:] | horizontal[:, :, :-1]
    return wall


def draw_walls(maze: Maze) -> Tensor:
    """[B, S, S] uint8, 255 where a pixel is on a wall, in a solid cell or outside."""
    origin = int(to_image(torch.zeros(()), maze.size))
    pixel = torch.arange(image_size(maze.size), device=maze.solid.device) - origin
    source = 2 * pixel.div(CELL, rounding_mode="floor") + (pixel % CELL > 0)
    source = source.clamp(0, 2 * maze.size)
    return wall_grid(maze)[:, source][:, :, source].to(torch.uint8) * 255


def draw_frames(
    maze: Maze,
    position: Tensor,
    goal: Tensor,
    goal_radius: float,
    half_width: float = dynamics.HALF_WIDTH,
) -> Tensor:
    """Bodies and goals [B, 2], the radius in cells -> [B, 320, 320, 3] uint8."""
    scale, pixels = draw.UNIT_SIDE / maze.size, draw.frame_pixels(position.device)
    across = (pixels - draw.MARGIN + 0.5) / scale  # cells
    on_line = (across - across.round()).abs() * scale <= WALL_WIDTH
    source = torch.where(on_line, 2 * across.round(), 2 * across.floor() + 1).long()
    source = source.clamp(-1, 2 * maze.size + 1) + 1
    walls = pad(wall_grid(maze), (1, 1, 1, 1))[:, source][:, :, source].float()
    frames = draw.white_frames(len(position), position.device)
    frames = draw.blend(frames, walls - 0.5, draw.WALL_COLOUR)
    frames = draw.blend_ring(frames, draw.unit_to_pixels(goal, scale), scale * goal_radius)
    centre, radius = draw.unit_to_pixels(position, scale), max(MIN_RADIUS, scale * half_width)
    return draw.to_bytes(draw.blend_disk(frames, centre, radius, draw.AGENT_COLOUR))


def candidate_sides(maze: Maze) -> dict[str, Tensor]:
    """The sides [B, N, 4] of cells that dynamics tests may be about: walls between two cells, those
    around the maze where there are no others, and openings."""
    vertical, horizontal = maze.vertical_walls, maze.horizontal_walls
    sides = [vertical[:, :, 1:], vertical[:, :, :-1], horizontal[:, 1:], horizontal[:, :-1]]
    walls = torch.stack(sides, -1).flatten(1, 2)
    outer = torch.zeros(maze.size, maze.size, 4, dtype=torch.bool, device=walls.device)
    outer[:, -1, 0] = outer[:, 0, 1] = outer[-1, :, 2] = outer[0, :, 3] = True
    free = ~maze.solid.flatten(1)[..., None]
    wall = walls & free
    inner = wall & ~outer.flatten(0, 1)
    any_inner = inner.flatten(1).any(-1)[:, None, None]
    return {"wall": torch.where(any_inner, inner, wall), "open": ~walls & free}


class MazeVectorEnv(base.GoalVectorEnv[State]):
    """B point masses with momentum, each in a maze of square cells of side 1, with a goal.

    The point mass, a square of half width 0.15, keeps 0.8 of its velocity from step to step; the
    action [2], shortened to length 1, adds 0.06 of itself, so that its speed is at most 0.3 cells a
    step. Walls, which are lines between cells, stop it, and it slides along them. The goal is
    reached nearer than 0.4 cells with no wall between. Infos also report "path", the cells of the
    shortest path to the goal; "distance" is straight. Factors are x and y as fractions of the
    maze's side, in [0, 1], and the velocity as a fraction of the terminal speed, in [-1, 1]; mazes
    stay the seed's. Dynamics tests: full actions against a "wall", and where it is "open"."""

    body_name: ClassVar[str] = "A point mass (blue) with momentum"
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y", "velocity x", "velocity y")
    num_velocities: ClassVar[int] = 2
    action_dim: ClassVar[int] = 2
    goal_radius = dynamics.GOAL_RADIUS

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
        directed_fraction: float = 0.0,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> None:
        """Mazes of `size` by `size` cells are drawn, one for each episode, or, with a `maze_seed`,
        one for all: that of the first episode of `reset(seed=maze_seed)`. Exactly one path leads
        from each cell to each, but for `loop_prob`, the probability of any further wall to be open.
        `split` is "all", or "train" or "test", which share no maze; a single maze is in both. Or
        `map` is the name of a published maze: "u", "medium", "large", "four-rooms".

        `goal_distance` is along the path from the start: "short", 1 to 3 cells; "long", at least 60
        % of the longest path in the maze, and 4 cells where it has them; "medium", between them;
        "any". Pairs of cells in the band are drawn with equal probability; where it is empty, those
        that miss it by least.

        `obs_type` is "image" [3, S, S], walls, body, and body one step earlier; or, where there is
        one maze for all, "state" [4], position from -1 to 1 and velocity as in the factors. An
        episode has 6 steps for each cell of the longest path there can be. `directed_fraction` is
        how many of the behaviour policy's segments that aren't idle lead to a cell."""
        base.check_range("size", size, *SIZES)
        base.check_range("loop_prob", loop_prob, 0, MAX_LOOP_PROB)
        base.check_range("directed_fraction", directed_fraction, 0, 1)
        split = base.choose("split", split, {name: name for name in dynamics.SPLITS})
        self.directed_fraction = directed_fraction
        self.band = base.choose("goal_distance", goal_distance, dynamics.BANDS)
        drawing = base.choose("map", map, {RANDOM: None, **dynamics.MAPS})
        if drawing is not None and (maze_seed is not None or loop_prob):
            raise ValueError(
                f"map {map!r} is one maze; maze_seed and loop_prob are of map {RANDOM!r}"
            )
        self.mazes: dynamics.SampledMaze | dynamics.FixedMaze
        if drawing is not None:
            self.mazes = dynamics.FixedMaze(dynamics.read_map(drawing, torch.device(device)))
        elif maze_seed is not None:
            keys = keys_from_seeds([maze_seed], torch.device(device))
            self.mazes = dynamics.FixedMaze(dynamics.SampledMaze(size, loop_prob, "all")(keys))
        else:
            self.mazes = dynamics.SampledMaze(size, loop_prob, split)
        sampled = isinstance(self.mazes, dynamics.SampledMaze)
        mazes = "Every episode has a maze of its own" if sampled else "The maze is always the same"
        self.description = (
            f"{self.body_name} is to find its way between walls to a goal (green ring). {mazes}."
        )
        if obs_type == "state" and sampled:
            raise ValueError(
                "obs_type 'state' doesn't show the maze; choose one maze by maze_seed or map"
            )
        self.obs_type, self.physics = obs_type, self._physics()
        self.max_episode_steps = STEPS_PER_CELL * self.physics.step_scale * self.mazes.longest
        super().__init__(
            num_envs,
            base.choose("obs_type", obs_type, self._obs_spaces()),
            spaces.Box(-1, 1, (self.action_dim,)),
            device=device,
            **options,
        )

    def _obs_spaces(self) -> dict[str, spaces.Box]:
        """The space of observations of every `obs_type`."""
        pixels = image_size(self.mazes.size)
        image = spaces.Box(0, 255, (3, pixels, pixels), np.uint8)
        return {"image": image, "state": spaces.Box(-1, 1, (4,))}

    def _observe_body(self, walls: Tensor, body: Any) -> Tensor:
        """Walls [B, S, S] as images show them, bodies -> observations [B, *O]."""
        size = self.mazes.size
        if self.obs_type == "state":
            position = 2 * body.position / size - 1
            return torch.cat([position, body.velocity / dynamics.TERMINAL], -1).clamp(-1, 1)
        positions = to_image(torch.cat([body.position, body.previous_position]), size)
        now, before = draw.draw_dot(positions, walls.shape[-1], DOT_STD).chunk(2)
        return torch.stack([walls, now, before], 1)

    def _physics(self) -> Physics:
        """What moves bodies in these mazes."""
        return Physics(dynamics.step_points, dynamics.is_free, stopped_speed=0.0)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        maze, physics = self.mazes(keys), self.physics
        u, _ = uniform(splitmix64(keys ^ 6), 6)
        miss = dynamics.band_miss(maze, self.band)
        start = dynamics.sample_start(miss, u[:, 0])
        position = dynamics.sample_in_cell(start, maze.size, u[:, 1:3], physics.half_width)
        body = physics.place_at(position, torch.zeros_like(position))
        if "factors" in options:
            body = self._read_body(maze, "factors", options["factors"])
            start = dynamics.cell_of(body.position, maze.size)
        goal_cell = dynamics.sample_goal(miss, start, u[:, 3])
        goal = dynamics.sample_in_cell(goal_cell, maze.size, u[:, 4:], physics.half_width)
        if "goal_factors" in options:
            goal = self._read_body(maze, "goal_factors", options["goal_factors"]).position
        walls = draw_walls(maze)
        return State(
            body=body,
            goal=goal,
            maze=maze,
            behaviour=base.SegmentState.begin(body.position, splitmix64(keys ^ 1)),
            walls=walls,
            goal_obs=self._observe_body(walls, physics.place_at(goal, torch.zeros_like(goal))),
        )

    def _read_body(self, maze: Maze, name: str, factors: object) -> BodyState:
        """A user's factors [B, 4] -> bodies. Raises ValueError where no free body has them."""
        read = self._read_factors(name, factors, len(maze.solid))
        position, velocity = maze.size * read[:, :2], dynamics.TERMINAL * read[:, 2:]
        message = f"{name}: in environment {{i}} the body at cell {{row}} is inside a wall"
        base.check_rows(self.physics.is_free(maze, position), message, position)
        body: BodyState = self.physics.place_at(position, velocity)
        return body

    def _step_state(self, state: State, actions: Tensor) -> State:
        return state._replace(body=self.physics.step(state.maze, state.body, actions))

    def _observe(self, state: State) -> base.TensorObs:
        return self._observe_body(state.walls, state.body)

    def _factors(self, state: State) -> Tensor:
        """x, y as fractions of the maze, velocity as a fraction of the terminal speed, [B, 4]."""
        position, velocity = state.body.position, state.body.velocity
        return torch.cat([position / self.mazes.size, velocity / dynamics.TERMINAL], -1)

    def _goal_factors(self, state: State) -> Tensor:
        return self._factors(state._replace(body=dynamics.at_rest(state.goal)))

    def _success(self, state: State) -> Tensor:
        """Near the goal and on the same side of every wall."""
        return super()._success(state) & (state.path <= AROUND)

    def _info(self, state: State) -> dict[str, base.TensorObs]:
        return {**super()._info(state), "path": state.path}

    def _expert(self, state: State) -> Tensor:
        move = expert_action(state.maze, state.body, state.goal, self.physics.half_width)
        return self._to_actions(state, move)

    def _behave(self, state: State) -> tuple[base.SegmentState, Tensor]:
        behaviour, actions = behaviour_step(
            state.behaviour, state.maze, self.physics, state.body, self.directed_fraction
        )
        return behaviour, self._to_actions(state, actions)

    def _to_actions(self, state: State, point_actions: Tensor) -> Tensor:
        """What a point mass would do, [B, 2] -> actions [B, A] of this body."""
        return point_actions

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor | Policy]]:
        state, (u, _) = self._reset_state(keys, {}), uniform(splitmix64(keys ^ 8), 3)
        sides = candidate_sides(state.maze)
        return {name: self._push_test(state, sides[name], u) for name in sides}

    def _push_test(self, state: State, sides: Tensor, u: Tensor) -> tuple[State, Tensor | Policy]:
        """Five full actions from rest, before one of the sides [N, cells, 4] that may be chosen:
        from 0.05 of the terminal speed to all of it before where a wall would stop the body."""
        gap = dynamics.TERMINAL * (0.05 + 0.95 * u[:, 1:2])
        offset = 0.5 - self.physics.half_width - gap
        return self._before_side(state, sides, u, offset)

    def _before_side(
        self, state: State, sides: Tensor, u: Tensor, offset: Tensor
    ) -> tuple[State, Tensor]:
        """Bodies at rest, this far [N, 1] from a cell's centre towards one of the sides, and the
        direction [N, 2] to it."""
        width = self.physics.half_width
        side = dynamics.sample_index(sides.flatten(1).long(), u[:, 0])
        ahead = torch.tensor(DIRECTIONS, device=u.device)[side % 4]
        sideways = (1 - 2 * width) * (u[:, 2:] - 0.5) * (1 - ahead.abs())
        position = dynamics.centre_of(side // 4, state.maze.size) + ahead * offset + sideways
        body = self.physics.place_at(position, torch.zeros_like(position))
        return state._replace(body=body), ahead

    def _to_pixels(self, factors: Tensor) -> Tensor:
        size = self.mazes.size
        return draw.unit_to_pixels(size * factors[..., :2], draw.UNIT_SIDE / size)

    def _draw(self, state: State) -> Tensor:
        position, half_width = state.body.position, self.physics.half_width
        return draw_frames(state.maze, position, state.goal, self.goal_radius, half_width)


class MazeEnv(base.SingleEnv):
    vector_env = MazeVectorEnv
