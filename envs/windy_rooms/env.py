"""The environment: its state, what is observed and drawn, and the Gymnasium classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import draw
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
    check_unit_rows,
    choose,
    read_factors,
    repeated,
    rounded,
    run_test,
)
from .dynamics import (
    MARGIN,
    MAX_GUST,
    PIT_LAYOUTS,
    START_REGIONS,
    STEP,
    Box,
    move_and_fall,
    sample_goal,
    sample_gusts,
    sample_pit,
    sample_start,
    step_without_wind,
)
from .policies import EXPERT_GAP, BehaviourState, behaviour_step, expert_action, init_behaviour

GOAL_RADIUS = 0.06  # nearer to the goal than this, it counts as reached
TEST_GAPS = (0.01, 0.05)  # between the pit and paths of the dynamics test "edge"

IMAGE_SIZE = 32  # pixels on a side of an observation
BORDER = 1  # pixels of it around the arena
IMAGE_SCALE = IMAGE_SIZE - 1 - 2 * BORDER
DOT_STD = 1.0  # pixels, of the point mass
FRAME_MARGIN = 10  # pixels around the arena in a frame
ARENA_SIDE = draw.FRAME_SIZE - 2 * FRAME_MARGIN
WALL_WIDTH = 3  # pixels
PIT_COLOUR = (24, 26, 34)


class State(NamedTuple):
    """The state of B environments."""

    position: Tensor  # [B, 2]
    fallen: Tensor  # [B] bool: in the pit
    goal: Tensor  # [B, 2]
    succeeded: Tensor  # [B] bool: the goal was reached in this episode
    behaviour: BehaviourState
    wind_key: Tensor  # [B] int64: what gusts are drawn from, whatever the actions are
    next_key: Tensor  # [B] int64: the random key of the next episode
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] straight to the goal."""
        return (self.position - self.goal).norm(dim=-1)

    @property
    def at_goal(self) -> Tensor:
        """[B] bool."""
        return (self.distance < GOAL_RADIUS) & ~self.fallen


def to_pixels(position: Tensor) -> Tensor:
    """Positions [..., 2] -> `(x, y)` [..., 2] in the pixels of a frame."""
    return FRAME_MARGIN - 0.5 + ARENA_SIDE * position


def depth_in_box(pixels: Tensor, box: Box) -> Tensor:
    """How many pixels inside a box every pixel of a frame is, [1, N, N]."""
    low, high = to_pixels(box.low)[:, None], to_pixels(box.high)[:, None]
    across, down = torch.minimum(pixels - low, high - pixels)
    return torch.minimum(across, down[:, None])[None]


def draw_frames(pit: Box, position: Tensor, goal: Tensor) -> Tensor:
    """Positions and goals [B, 2] -> [B, 320, 320, 3] uint8."""
    pixels = draw.frame_pixels(position.device)
    frames = draw.white_frames(len(position), position.device)
    arena = depth_in_box(pixels, Box(torch.zeros_like(pit.low), torch.ones_like(pit.low)))
    frames = draw.blend(frames, arena + WALL_WIDTH, draw.WALL_COLOUR)
    frames = draw.blend(frames, arena, draw.WHITE)
    frames = draw.blend(frames, depth_in_box(pixels, pit), PIT_COLOUR)
    distance = draw.pixel_distance(pixels, to_pixels(goal))
    frames = draw.blend_ring(frames, distance, ARENA_SIDE * GOAL_RADIUS)
    distance = draw.pixel_distance(pixels, to_pixels(position))
    return draw.to_bytes(draw.blend_agent(frames, distance))


@dataclass(frozen=True)
class ImageObs:
    """The point mass and the pit, each a channel of an image."""

    pit: Box
    space: ClassVar[spaces.Box] = spaces.Box(0, 255, (2, IMAGE_SIZE, IMAGE_SIZE), np.uint8)

    def observe(self, position: Tensor) -> Tensor:
        """Positions [B, 2] -> [B, 2, S, S] uint8."""
        dot = draw.draw_dot(BORDER + IMAGE_SCALE * position, IMAGE_SIZE, DOT_STD)
        pixel = (torch.arange(IMAGE_SIZE, device=position.device) - BORDER) / IMAGE_SCALE
        pit = self.pit.contains(torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1))
        return torch.stack([dot, (255 * pit).to(torch.uint8).expand_as(dot)], 1)


@dataclass(frozen=True)
class StateObs:
    """x and y from -1 to 1."""

    pit: Box
    space: ClassVar[spaces.Box] = spaces.Box(-1, 1, (2,), np.float32)

    def observe(self, position: Tensor) -> Tensor:
        """Positions [B, 2] -> [B, 2]."""
        return 2 * position - 1


ObsType: TypeAlias = ImageObs | StateObs
OBS_TYPES: dict[str, type[ImageObs] | type[StateObs]] = {"state": StateObs, "image": ImageObs}


class WindyRoomsVectorEnv(GoalVectorEnv[State]):
    """B point masses in the unit square, each with a goal on the other side of a pit.

    The action [2], shortened to length 1, moves the point mass by 0.05. Then, with some
    probability, a gust of wind moves it in any direction. Walls stop it. In the middle is a pit,
    with a room on either side and a pass above and below: the point mass that crosses the pit's
    border has fallen, and stays there until the episode ends, unless it can move in the pit. Starts
    are in one room, goals in the other.

    A goal is reached nearer than 0.06, outside the pit. Episodes end after `max_episode_steps` and
    never before. `info["interoception"]` is "fallen", 1 in the pit, else 0. Reset options:
    "factors" [B, 2] sets positions, "goal_factors" [B, 2] sets goals. Dynamics tests, without wind:
    full steps in the "open", and along the pit's "edge".
    """

    description = (
        "A point mass (blue) is to go from one room to a goal (green ring) in the other, past a "
        "pit (dark) between them. Gusts of wind move it; if it falls into the pit, it stays there."
    )
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y")
    interoception_names: ClassVar[tuple[str, ...]] = ("fallen",)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        layout_seed: int = 0,
        pit_layout: str = "wide",
        gust_prob: float = 0.2,
        gust_length: float = 0.1,
        pit_mobility: float = 0.0,
        start_region: str = "rooms",
        obs_type: str = "state",
        max_episode_steps: int = 60,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`layout_seed` is the seed of the pit, which is the same in all environments. With
        `pit_layout` "wide" both passes beside it are wide; with "ledge" the upper one is narrower
        than the default gust: starts and goals lie beside it, so it is short and risky. `gust_prob`
        is the probability of a gust in a step and `gust_length` its length. `pit_mobility` is the
        fraction of a step that the point mass moves in the pit; with 0 it never comes out.
        `start_region` is "rooms", or "anywhere" but in the pit. `obs_type` is "state" [2], x and y
        from -1 to 1, or "image" [2, 32, 32], point mass and pit.

        Raises ValueError for names that don't exist and for numbers out of range.
        """
        check_range("layout_seed", layout_seed, 0, math.inf)
        check_range("gust_prob", gust_prob, 0, 1)
        check_range("gust_length", gust_length, 0, MAX_GUST)
        check_range("pit_mobility", pit_mobility, 0, 1)
        self.gust_prob, self.gust_length = gust_prob, gust_length
        self.pit_mobility = pit_mobility
        self.start_region = choose("start_region", start_region, START_REGIONS)
        self.pit_layout = choose("pit_layout", pit_layout, PIT_LAYOUTS)
        self.pit = sample_pit(layout_seed, torch.device(device), self.pit_layout)
        self.obs_type: ObsType = choose("obs_type", obs_type, OBS_TYPES)(self.pit)
        super().__init__(
            num_envs,
            self.obs_type.space,
            spaces.Box(-1, 1, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        u, _ = uniform(splitmix64(keys ^ 6), 5)
        bottom = self.pit_layout.bottom
        position = sample_start(self.pit, self.start_region, bottom, u[:, :3])
        if "factors" in options:
            position = self._read_position("factors", options["factors"], len(keys))
        goal = sample_goal(self.pit, position, bottom, u[:, 3:])
        if "goal_factors" in options:
            goal = self._read_position("goal_factors", options["goal_factors"], len(keys))
            check_rows(
                ~self.pit.contains(goal),
                lambda i: (
                    f"goal_factors: in environment {i} the goal at {rounded(goal[i])} is in the pit"
                ),
            )
        state = State(
            position=position,
            fallen=self.pit.contains(position),
            goal=goal,
            succeeded=torch.zeros_like(keys, dtype=torch.bool),
            behaviour=init_behaviour(splitmix64(keys ^ 1)),
            wind_key=splitmix64(keys ^ 3),
            next_key=splitmix64(keys ^ 2),
            goal_obs=self.obs_type.observe(goal),
        )
        return state._replace(succeeded=state.at_goal)

    def _read_position(self, name: str, factors: object, count: int) -> Tensor:
        read = read_factors(name, factors, (count, 2), self.device)
        check_unit_rows(name, read)
        return read

    def _step_state(self, state: State, actions: Tensor) -> State:
        """First the point mass's own step, then the wind's."""
        gust, wind_key = sample_gusts(state.wind_key, self.gust_prob, self.gust_length)
        position = step_without_wind(self.pit, state.position, actions, self.pit_mobility)
        position = move_and_fall(self.pit, position, gust)
        fallen = self.pit.contains(position)
        state = state._replace(position=position, fallen=fallen, wind_key=wind_key)
        return state._replace(succeeded=state.succeeded | state.at_goal)

    def _observe(self, state: State) -> TensorObs:
        return self.obs_type.observe(state.position)

    def _factors(self, state: State) -> Tensor:
        return state.position

    def _goal_factors(self, state: State) -> Tensor:
        return state.goal

    def _info(self, state: State) -> dict[str, TensorObs]:
        interoception = state.fallen.float()[:, None]
        return {"interoception": interoception, **super()._info(state), "fallen": state.fallen}

    def _expert(self, state: State) -> Tensor:
        return expert_action(self.pit, state.position, state.goal, self.gust_length + EXPERT_GAP)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        return behaviour_step(state.behaviour)

    def _dynamics_tests(self, seed: int) -> dict[str, DynamicsTest]:
        """Full steps to the right, without wind: in the middle of a room, and along the upper or
        the lower end of the pit and beyond it."""
        pit = self.pit
        u, _ = uniform(keys_from_seeds(range(seed, seed + NUM_TESTS), self.device), 3)
        far = u[:, 0] < 0.5  # right, and below
        room_x = torch.where(far, (1 + pit.high[0]) / 2, pit.low[0] / 2)
        gap = Box(*u.new_tensor(TEST_GAPS)).sample(u[:, 1])
        edge_y = torch.where(far, pit.high[1] + gap, pit.low[1] - gap)
        room_y = Box(*u.new_tensor((MARGIN, 1 - MARGIN))).sample(u[:, 2])
        middle_x = ((pit.low[0] + pit.high[0]) / 2).expand_as(edge_y)
        actions = repeated([1.0, 0.0], NUM_TESTS, self.device)
        return {
            name: run_test(
                torch.stack(halfway, -1) - TEST_STEPS / 2 * STEP * actions[:, 0],
                actions,
                lambda position, action: step_without_wind(pit, position, action),
                self.obs_type.observe,
                lambda position: position,
            )
            for name, halfway in {"open": (room_x, room_y), "edge": (middle_x, edge_y)}.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(factors)

    def _draw(self, state: State) -> Tensor:
        return draw_frames(self.pit, state.position, state.goal)


class WindyRoomsEnv(SingleEnv[WindyRoomsVectorEnv]):
    """One environment of `WindyRoomsVectorEnv`."""

    vector_env = WindyRoomsVectorEnv
    interoception_names = WindyRoomsVectorEnv.interoception_names
