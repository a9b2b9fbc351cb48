"""Windy Rooms: a point mass goes round a pit, in gusts of wind, in the unit square, y down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import base, draw
from .batch import pick
from .geometry import direction, fraction_before, shrink_to_disk
from .rng import keys_from_seeds, splitmix64, uniform, von_mises

STEP = 0.05  # how far a full action moves the point mass
MAX_GUST = 0.15  # less than a wide pass, so that no gust there meets both wall and pit
FALL_DEPTH = 0.02  # how far inside the pit's border a fall ends
MARGIN = 0.05  # from starts and goals to the walls
START_GAP, GOAL_GAP = 0.05, 0.12  # from starts and goals to the pit
GOAL_RADIUS = 0.06  # nearer to the goal than this, it counts as reached
TEST_GAPS = (0.01, 0.05)  # between the pit and paths of the dynamics test "edge"

EXPERT_GAP = 0.02  # what the expert leaves between the pit and where a gust can blow it
BLOCKED = 1e3  # added to the length of a path that isn't open
NEAR_CORNER = 1e-3  # as near as this to a corner, the expert is there
ACROSS = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))  # corners with the pit between

KAPPA = 5.0  # of the drift of a heading, as published for Two Rooms (arXiv 2502.14819)
IDLE = 0.1  # fraction of the behaviour policy's steps without action
MIN_STRENGTH = 0.1  # of the full action

IMAGE_SIZE = 32  # pixels on a side of an observation
BORDER = 1  # pixels of it around the arena
IMAGE_SCALE = IMAGE_SIZE - 1 - 2 * BORDER
DOT_STD = 1.0  # pixels, of the point mass
WALL_WIDTH = 3  # pixels of a frame
PIT_COLOUR = (24, 26, 34)


class Box(NamedTuple):
    """Rectangles, their borders included."""

    low: Tensor  # [..., 2]
    high: Tensor  # [..., 2]

    def expanded(self, by: Tensor | float) -> Box:
        """Larger by so much, [..., 1], on every side."""
        return Box(self.low - by, self.high + by)

    def contains(self, position: Tensor) -> Tensor:
        """Positions [..., 2] -> [...] bool."""
        return ((position >= self.low) & (position <= self.high)).all(-1)

    def sample(self, u: Tensor) -> Tensor:
        """Uniform [..., 2] -> positions [..., 2] inside."""
        return self.low + u * (self.high - self.low)

    def select(self, index: Tensor) -> Box:
        """Of boxes [K, 2], those with the indices [B]."""
        return Box(self.low[index], self.high[index])

    def fraction_to(self, start: Tensor, end: Tensor) -> Tensor:
        """The fraction [...] of the paths between [..., 2] before the box; 1 for paths outside."""
        return fraction_before(self.low, self.high, start, end - start)


class PitLayout(NamedTuple):
    """What passes there are beside the pit."""

    bounds: tuple[tuple[float, float], ...]
    """Of the pit's width and height, and of its centre's x and y."""
    bottom: float
    """The largest y of starts and goals."""


PIT_LAYOUTS = {
    "wide": PitLayout(((0.16, 0.24), (0.40, 0.50), (0.47, 0.53), (0.44, 0.56)), bottom=1 - MARGIN),
    "ledge": PitLayout(((0.16, 0.24), (0.24, 0.24), (0.47, 0.53), (0.17, 0.19)), bottom=0.15),
}
"""Two passes of at least 0.19; or, above, a straight ledge of at most 0.07, and a wide detour."""


def sample_pit(seed: int, device: torch.device, layout: PitLayout = PIT_LAYOUTS["wide"]) -> Box:
    """The pit of a seed."""
    u, _ = uniform(splitmix64(keys_from_seeds([seed], device) ^ 5), 4)
    low, high = torch.tensor(layout.bounds, device=device).unbind(-1)
    size, centre = torch.lerp(low, high, u[0]).split(2)
    return Box(centre - size / 2, centre + size / 2)


def move_and_fall(pit: Box, position: Tensor, move: Tensor) -> Tensor:
    """Positions and moves [B, 2] -> positions. Walls stop the point mass; if it crosses the pit's
    border it falls, for good. Where a wall stops a move, the path is taken to be straight."""
    end = (position + move).clamp(0, 1)
    fraction = pit.fraction_to(position, end)
    inside = pit.expanded(-FALL_DEPTH)
    fallen = torch.lerp(position, end, fraction[:, None]).clamp(inside.low, inside.high)
    falls = (fraction < 1) | pit.contains(end)
    end = torch.where(falls[:, None], fallen, end)
    return torch.where(pit.contains(position)[:, None], position, end)


def step_without_wind(pit: Box, position: Tensor, actions: Tensor, mobility: float = 0.0) -> Tensor:
    """Positions and actions [B, 2] -> positions. In the pit a step is shorter by `mobility`."""
    move = STEP * shrink_to_disk(actions, 1.0)
    in_pit = (position + mobility * move).clamp(0, 1)
    fallen = pit.contains(position)[:, None]
    return torch.where(fallen, in_pit, move_and_fall(pit, position, move))


def rooms(pit: Box, gap: float, bottom: float) -> Box:
    """The left and the right room, [2], without a margin at the walls and a gap at the pit."""
    (left, _), (right, _) = pit.low.tolist(), pit.high.tolist()
    low = [[MARGIN, MARGIN], [right + gap, MARGIN]]
    high = [[left - gap, bottom], [1 - MARGIN, bottom]]
    return Box(pit.low.new_tensor(low), pit.low.new_tensor(high))


def start_in_rooms(pit: Box, bottom: float) -> tuple[Box, Tensor]:
    """Left or right with equal probability."""
    return rooms(pit, START_GAP, bottom), pit.low.new_ones(2)


def start_anywhere(pit: Box, _: float) -> tuple[Box, Tensor]:
    """Everywhere outside the pit: left and right of it, above and below it."""
    (left, top), (right, bottom) = pit.low.tolist(), pit.high.tolist()
    low = pit.low.new_tensor([[0, 0], [right, 0], [left, 0], [left, bottom]])
    high = pit.low.new_tensor([[left, 1], [1, 1], [right, top], [right, 1]])
    return Box(low, high), (high - low).prod(-1)


StartRegion: TypeAlias = Callable[[Box, float], tuple[Box, Tensor]]
"""The pit, and the largest y -> boxes `[K]` to start in, and the weight of each, `[K]`."""
START_REGIONS: dict[str, StartRegion] = {"rooms": start_in_rooms, "anywhere": start_anywhere}


def sample_start(pit: Box, region: StartRegion, bottom: float, u: Tensor) -> Tensor:
    """Uniform [B, 3] -> starts [B, 2]."""
    boxes, weight = region(pit, bottom)
    cumulative = weight.cumsum(0)
    which = torch.searchsorted(cumulative, cumulative[-1] * u[:, 0], right=True)
    return boxes.select(which.clamp(max=len(weight) - 1)).sample(u[:, 1:])


def next_corner(zone: Box, position: Tensor, goal: Tensor) -> Tensor:
    """Positions and goals [B, 2] -> the first corner [B, 2] on the shortest path round the zone."""
    (left, top), (right, bottom) = zone.low.unbind(-1), zone.high.unbind(-1)
    corners = torch.stack([left, top, left, bottom, right, top, right, bottom], -1)
    corners = corners.unflatten(-1, (4, 2))
    core = Box(*(side[:, None] for side in zone.expanded(-NEAR_CORNER)))
    here, there = position[:, None], goal[:, None]
    outside = ((corners < 0) | (corners > 1)).any(-1)  # the pass beside it is too narrow
    hidden = (core.fraction_to(corners, there) < 1) | outside
    to_goal = (corners - there).norm(dim=-1) + BLOCKED * hidden
    between_corners = torch.cdist(corners, corners) + BLOCKED * to_goal.new_tensor(ACROSS)
    to_corner = (corners - here).norm(dim=-1)
    unusable = (core.fraction_to(here, corners) < 1) | (to_corner < NEAR_CORNER)
    path = to_corner + BLOCKED * unusable + (between_corners + to_goal[:, None]).amin(-1)
    return pick(corners, path.argmin(-1))


def nearest_border(zone: Box, position: Tensor) -> Tensor:
    """Positions [B, 2] inside the zone -> the nearest ones [B, 2] on its border, in the arena."""
    border = torch.cat([zone.low, zone.high], -1)  # [B, 4]
    move = border - position.repeat(1, 2)
    nearest = (move.abs() + BLOCKED * ((border < 0) | (border > 1))).argmin(-1, keepdim=True)
    step = torch.zeros_like(move).scatter(-1, nearest, move.gather(-1, nearest))
    return position + step[:, :2] + step[:, 2:]


def expert_action(pit: Box, position: Tensor, goal: Tensor, gap: float) -> Tensor:
    """Positions and goals [B, 2] -> actions [B, 2] of the shorter path round the pit that keeps
    this gap to it, or a smaller one where the goal is nearer."""
    to_goal = torch.maximum(pit.low - goal, goal - pit.high).amax(-1, keepdim=True)
    zone = pit.expanded(to_goal.clamp(0, gap))
    core = zone.expanded(-NEAR_CORNER)
    straight = core.fraction_to(position, goal) >= 1
    target = torch.where(straight[:, None], goal, next_corner(zone, position, goal))
    target = torch.where(core.contains(position)[:, None], nearest_border(zone, position), target)
    return shrink_to_disk((target - position) / STEP, 1.0)


class BehaviourState(NamedTuple):
    heading: Tensor  # [B] radians
    keys: Tensor  # [B] int64


class State(NamedTuple):
    position: Tensor  # [B, 2]
    fallen: Tensor  # [B] bool: in the pit
    goal: Tensor  # [B, 2]
    behaviour: BehaviourState
    wind_key: Tensor  # [B] int64: what gusts are drawn from, whatever the actions are
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] straight to the goal."""
        return (self.position - self.goal).norm(dim=-1)


def observe_state(_: Box, position: Tensor) -> Tensor:
    """Positions [B, 2] -> [B, 2], from -1 to 1."""
    return 2 * position - 1


def observe_image(pit: Box, position: Tensor) -> Tensor:
    """Positions [B, 2] -> [B, 2, S, S] uint8: the point mass and the pit, each a channel."""
    dot = draw.draw_dot(BORDER + IMAGE_SCALE * position, IMAGE_SIZE, DOT_STD)
    pixel = (torch.arange(IMAGE_SIZE, device=position.device) - BORDER) / IMAGE_SCALE
    in_pit = pit.contains(torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1))
    return torch.stack([dot, (255 * in_pit).to(torch.uint8).expand_as(dot)], 1)


OBS_TYPES: dict[str, tuple[spaces.Box, Callable[[Box, Tensor], Tensor]]] = {
    "state": (spaces.Box(-1, 1, (2,)), observe_state),
    "image": (spaces.Box(0, 255, (2, IMAGE_SIZE, IMAGE_SIZE), np.uint8), observe_image),
}


def depth_in_box(pixels: Tensor, box: Box) -> Tensor:
    """How many pixels inside a box every pixel of a frame is, [1, N, N]."""
    low, high = draw.unit_to_pixels(box.low)[:, None], draw.unit_to_pixels(box.high)[:, None]
    across, down = torch.minimum(pixels - low, high - pixels)
    return torch.minimum(across, down[:, None])[None]


class WindyRoomsVectorEnv(base.GoalVectorEnv[State]):
    """B point masses in the unit square, each with a goal on the other side of a pit.

    The action [2], shortened to length 1, moves the point mass by 0.05. Then, with some
    probability, a gust of wind moves it in any direction. Walls stop it. In the middle is a pit,
    with a room on either side and a pass above and below: the point mass that crosses the pit's
    border has fallen, and stays there until the episode ends, unless it can move in the pit. Starts
    are in one room, goals in the other. A goal is reached nearer than 0.06, outside the pit.
    `info["interoception"]` is "fallen", 1 in the pit, else 0. Dynamics tests, without wind: full
    steps in the "open", and along the pit's "edge"."""

    description = (
        "A point mass (blue) is to go from one room to a goal (green ring) in the other, past a "
        "pit (dark) between them. Gusts of wind move it; if it falls into the pit, it stays there."
    )
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y")
    interoception_names: ClassVar[tuple[str, ...]] = ("fallen",)
    max_episode_steps = 60
    goal_radius = GOAL_RADIUS

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
        **options: Any,
    ) -> None:
        """`layout_seed` is the seed of the pit, which is the same in all environments. With
        `pit_layout` "wide" both passes beside it are wide; with "ledge" the upper one is narrower
        than the default gust: starts and goals lie beside it, so it is short and risky. `gust_prob`
        is the probability of a gust in a step and `gust_length` its length. `pit_mobility` is the
        fraction of a step that the point mass moves in the pit; with 0 it never comes out.
        `start_region` is "rooms", or "anywhere" but in the pit. `obs_type` is "state" [2], x and y
        from -1 to 1, or "image" [2, 32, 32], point mass and pit."""
        base.check_range("layout_seed", layout_seed, 0, math.inf)
        base.check_range("gust_prob", gust_prob, 0, 1)
        base.check_range("gust_length", gust_length, 0, MAX_GUST)
        base.check_range("pit_mobility", pit_mobility, 0, 1)
        self.gust_prob, self.gust_length = gust_prob, gust_length
        self.pit_mobility = pit_mobility
        self.start_region = base.choose("start_region", start_region, START_REGIONS)
        self.pit_layout = base.choose("pit_layout", pit_layout, PIT_LAYOUTS)
        space, self._observe_at = base.choose("obs_type", obs_type, OBS_TYPES)
        super().__init__(num_envs, space, spaces.Box(-1, 1, (2,)), **options)
        self.pit = sample_pit(layout_seed, self.device, self.pit_layout)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        u, _ = uniform(splitmix64(keys ^ 6), 5)
        pit, bottom = self.pit, self.pit_layout.bottom
        position = sample_start(pit, self.start_region, bottom, u[:, :3])
        if "factors" in options:
            position = self._read_factors("factors", options["factors"], len(keys))
        other_room = (2 * position[:, 0] < pit.low[0] + pit.high[0]).long()
        goal = rooms(pit, GOAL_GAP, bottom).select(other_room).sample(u[:, 3:])
        if "goal_factors" in options:
            goal = self._read_factors("goal_factors", options["goal_factors"], len(keys))
            message = "goal_factors: in environment {i} the goal at {row} is in the pit"
            base.check_rows(~pit.contains(goal), message, goal)
        heading, behaviour_keys = uniform(splitmix64(keys ^ 1), 1)
        return State(
            position=position,
            fallen=pit.contains(position),
            goal=goal,
            behaviour=BehaviourState(2 * math.pi * heading[:, 0], behaviour_keys),
            wind_key=splitmix64(keys ^ 3),
            goal_obs=self._observe_at(pit, goal),
        )

    def _step_state(self, state: State, actions: Tensor) -> State:
        """First the point mass's own step, then the wind's."""
        u, wind_key = uniform(state.wind_key, 2)
        gust = self.gust_length * direction(2 * math.pi * u[:, 1]) * (u[:, :1] < self.gust_prob)
        position = step_without_wind(self.pit, state.position, actions, self.pit_mobility)
        position = move_and_fall(self.pit, position, gust)
        fallen = self.pit.contains(position)
        return state._replace(position=position, fallen=fallen, wind_key=wind_key)

    def _step_calmly(self, state: State, actions: Tensor) -> State:
        return state._replace(position=step_without_wind(self.pit, state.position, actions))

    def _observe(self, state: State) -> base.TensorObs:
        return self._observe_at(self.pit, state.position)

    def _factors(self, state: State) -> Tensor:
        return state.position

    def _goal_factors(self, state: State) -> Tensor:
        return state.goal

    def _success(self, state: State) -> Tensor:
        return super()._success(state) & ~state.fallen

    def _info(self, state: State) -> dict[str, base.TensorObs]:
        interoception = state.fallen.float()[:, None]
        return {"interoception": interoception, **super()._info(state), "fallen": state.fallen}

    def _expert(self, state: State) -> Tensor:
        return expert_action(self.pit, state.position, state.goal, self.gust_length + EXPERT_GAP)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        """The heading drifts and takes no notice of the pit. A third of the actions are full, the
        others have any strength down to a tenth, and some are zero."""
        u, keys = uniform(state.behaviour.keys, 3)
        heading = state.behaviour.heading + von_mises(u[:, 0], KAPPA)
        strength = (MIN_STRENGTH + 1.35 * u[:, 1:2]).clamp(max=1) * (u[:, 2:] >= IDLE)
        return BehaviourState(heading, keys), strength * direction(heading)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right, without wind: in a room, and along an end of the pit."""
        pit = self.pit
        u, _ = uniform(keys, 3)
        far = u[:, 0] < 0.5  # right, and below
        room_x = torch.where(far, (1 + pit.high[0]) / 2, pit.low[0] / 2)
        gap = Box(*u.new_tensor(TEST_GAPS)).sample(u[:, 1])
        edge_y = torch.where(far, pit.high[1] + gap, pit.low[1] - gap)
        room_y = Box(*u.new_tensor((MARGIN, 1 - MARGIN))).sample(u[:, 2])
        middle_x = ((pit.low[0] + pit.high[0]) / 2).expand_as(edge_y)
        action = u.new_tensor([1.0, 0.0]).expand(len(keys), -1)
        state, back = self._reset_state(keys, {}), self.test_steps / 2 * STEP * action
        return {
            name: (state._replace(position=torch.stack(halfway, -1) - back), action)
            for name, halfway in {"open": (room_x, room_y), "edge": (middle_x, edge_y)}.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return draw.unit_to_pixels(factors)

    def _draw(self, state: State) -> Tensor:
        pixels = draw.frame_pixels(self.device)
        frames = draw.white_frames(self.num_envs, self.device)
        unit_square = Box(torch.zeros_like(self.pit.low), torch.ones_like(self.pit.low))
        arena = depth_in_box(pixels, unit_square)
        frames = draw.blend(frames, arena + WALL_WIDTH, draw.WALL_COLOUR)
        frames = draw.blend(frames, arena, draw.WHITE)
        frames = draw.blend(frames, depth_in_box(pixels, self.pit), PIT_COLOUR)
        goal, position = map(draw.unit_to_pixels, (state.goal, state.position))
        frames = draw.blend_ring(frames, goal, draw.UNIT_SIDE * GOAL_RADIUS)
        return draw.to_bytes(draw.blend_agent(frames, position))


class WindyRoomsEnv(base.SingleEnv):
    vector_env = WindyRoomsVectorEnv
