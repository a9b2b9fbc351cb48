"""Cue Corridor: a T of two rectangles, the stem and the bar. A cue that is visible only near the
start says in which arm of the bar the goal is. Positions are `(x, y)` in pixels, y down."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import base, draw
from .geometry import direction, shrink_to_disk
from .rng import splitmix64, truncated_normal, uniform, von_mises

SIZE = 32  # pixels on a side of the image
LEFT, RIGHT = 12.5, 18.5  # the sides of the stem
ARM_LEFT, ARM_RIGHT = 0.5, 30.5  # the ends of the bar, whose halves are the arms
TOP, FORK, BOTTOM = 0.5, 6.5, 30.5  # the bar reaches from TOP to FORK, the stem to BOTTOM
END = 2.0  # how much of each arm is its end
CUE_LINE = BOTTOM - (BOTTOM - FORK) / 5  # the cue is visible below it, in a fifth of the stem
STEP = 2.0  # pixels, of a full action
START_MARGIN = 1.0  # pixels from a start to the sides of the stem
START_LOW, START_HIGH = BOTTOM - 3.5, BOTTOM - 0.5  # y of a start

CORNER_MARGIN = 0.5  # pixels between a policy's path and the corner that it bends around
KAPPA = 5.0  # of the heading's noise
MEAN, STD, LOW, HIGH = 0.7 * STEP, 0.4 * STEP, 0.05 * STEP, STEP  # lengths of steps

DOT_STD = 1.0  # pixels
CUE_ROWS = 3  # at the bottom of the image
FADED = 0.3  # opacity of the cue in a frame while the agent doesn't see it
ZOOM = draw.FRAME_SIZE / SIZE
WALL_COLOUR, CUE_COLOUR, WRONG_COLOUR = (196, 200, 208), (245, 165, 20), (205, 85, 75)


class BehaviourState(NamedTuple):
    last_move: Tensor  # [B, 2] pixels
    right: Tensor  # [B] bool: a directed policy goes into the right arm, else into the left
    directed: Tensor  # [B] bool
    keys: Tensor  # [B] int64


class State(NamedTuple):
    position: Tensor  # [B, 2] pixels
    cue: Tensor  # [B] bool: the goal is in the right arm
    behaviour: BehaviourState

    @property
    def done(self) -> Tensor:
        """[B] bool: at the end of either arm."""
        return at_left_end(self.position) | at_right_end(self.position)

    @property
    def success(self) -> Tensor:
        """[B] bool: at the end of the cued arm."""
        left, right = at_left_end(self.position), at_right_end(self.position)
        return torch.where(self.cue, right, left)


def in_bar(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    x, y = position.unbind(-1)
    return (x >= ARM_LEFT) & (x <= ARM_RIGHT) & (y >= TOP) & (y <= FORK)


def in_stem(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool; the stem goes on through the bar, up to its top."""
    x, y = position.unbind(-1)
    return (x >= LEFT) & (x <= RIGHT) & (y >= TOP) & (y <= BOTTOM)


def is_free(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool: not in the wall."""
    return in_bar(position) | in_stem(position)


def at_left_end(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    return position[..., 0] <= ARM_LEFT + END


def at_right_end(position: Tensor) -> Tensor:
    """[..., 2] -> [...] bool."""
    return position[..., 0] >= ARM_RIGHT - END


def _move_x(start: Tensor, move: Tensor) -> Tensor:
    """Free positions and moves [..., 2] -> positions after the move's x, [..., 2]."""
    x, y = start.unbind(-1)
    end = x + move[..., 0]
    end = torch.where(y <= FORK, end.clamp(ARM_LEFT, ARM_RIGHT), end.clamp(LEFT, RIGHT))
    return torch.stack([end, y], -1)


def _move_y(start: Tensor, move: Tensor) -> Tensor:
    """Free positions and moves [..., 2] -> positions after the move's y, [..., 2]."""
    x, y = start.unbind(-1)
    end, in_line = y + move[..., 1], (x >= LEFT) & (x <= RIGHT)
    return torch.stack([x, torch.where(in_line, end.clamp(TOP, BOTTOM), end.clamp(TOP, FORK))], -1)


def _fraction_to(line: float, start: Tensor, move: Tensor) -> Tensor:
    """The fraction of a move [...] along one axis before a line; infinite where it isn't ahead."""
    fraction = (line - start) / move
    return torch.where(fraction >= 0, fraction, torch.inf)  # also where it is not a number


def slide(start: Tensor, move: Tensor) -> Tensor:
    """Free positions and moves [..., 2] -> positions after the move, [..., 2]. The point mass moves
    along one axis after the other, first along the one whose line through a corner of the fork the
    straight path crosses first. So no corner is cut, and a free path is straight."""
    x, y = start.unbind(-1)
    move_x, move_y = move.unbind(-1)
    to_side = torch.minimum(_fraction_to(LEFT, x, move_x), _fraction_to(RIGHT, x, move_x))
    x_first = to_side <= _fraction_to(FORK, y, move_y)
    return torch.where(
        x_first.unsqueeze(-1),
        _move_y(_move_x(start, move), move),
        _move_x(_move_y(start, move), move),
    )


def sample_initial(keys: Tensor, directed_fraction: float) -> State:
    """Keys [B] -> first states; the behaviour policy is directed for the whole episode, or not."""
    u, _ = uniform(keys, 3)
    x = LEFT + START_MARGIN + u[:, 0] * (RIGHT - LEFT - 2 * START_MARGIN)
    y = START_LOW + u[:, 1] * (START_HIGH - START_LOW)
    v, behaviour_keys = uniform(splitmix64(keys ^ 1), 3)
    heading, right, directed = direction(2 * math.pi * v[:, 0]), v[:, 1] < 0.5, v[:, 2]
    behaviour = BehaviourState(heading, right, directed < directed_fraction, behaviour_keys)
    return State(torch.stack([x, y], -1), u[:, 2] < 0.5, behaviour)


def place_at(state: State, factors: Tensor) -> State:
    """The state with a user's factors [B, 3]. Raises ValueError where no episode can begin."""
    cue = factors[:, 2] == 1
    if not bool((cue | (factors[:, 2] == 0)).all()):
        raise ValueError("factors: the cue must be 0 (left) or 1 (right)")
    state = state._replace(position=factors[:, :2] * SIZE - 0.5, cue=cue)
    for valid, reason in (
        (is_free(state.position), "is inside the wall"),
        (~state.done, "is at an arm's end, where episodes end"),
    ):
        message = f"factors: in environment {{i}} the point mass at {{row}} px {reason}"
        base.check_rows(valid, message, state.position)
    return state


def next_waypoint(position: Tensor, right: Tensor) -> Tensor:
    """Positions [B, 2], which arm [B] bool -> [B, 2]: the bend into that arm, or the arm's end."""
    side = torch.where(right, RIGHT - CORNER_MARGIN, LEFT + CORNER_MARGIN)
    bend = torch.stack([side, torch.full_like(side, FORK - CORNER_MARGIN)], -1)
    end = torch.stack([torch.where(right, ARM_RIGHT, ARM_LEFT), position[:, 1]], -1)
    return torch.where(in_bar(position).unsqueeze(-1), end, bend)


def to_action(move: Tensor) -> Tensor:
    """Moves [B, 2] in pixels -> the longest actions [B, 2] along them that don't overshoot."""
    return shrink_to_disk(move / STEP, 1.0)


class Layers(NamedTuple):
    """The parts of the image that never change."""

    walls: Tensor  # [S, S] bool
    cues: Tensor  # [2, S, S] bool: left, right
    ends: Tensor  # [2, S, S] bool: left, right


@lru_cache
def layers(device: torch.device) -> Layers:
    pixel = torch.arange(SIZE, device=device)
    row, column = torch.meshgrid(pixel, pixel, indexing="ij")
    position = torch.stack([column, row], -1)  # [S, S, 2]
    free, bottom, right = is_free(position), row >= SIZE - CUE_ROWS, 2 * column >= SIZE
    ends = torch.stack([free & at_left_end(position), free & at_right_end(position)])
    return Layers(~free, torch.stack([bottom & ~right, bottom & right]), ends)


def observe(state: State, cue_visible: Tensor) -> Tensor:
    """States and whether the cue is visible [B] bool -> [B, 3, S, S] uint8: the point mass, the
    walls, and the cue, a bar at the bottom of the cued side."""
    fixed = layers(state.position.device)
    walls = fixed.walls.expand(len(state.position), SIZE, SIZE)
    bar = fixed.cues[state.cue.long()] & cue_visible[:, None, None]
    plain = torch.stack([walls, bar], 1).to(torch.uint8) * 255
    return torch.cat([draw.draw_dot(state.position, SIZE, DOT_STD)[:, None], plain], 1)


class CueCorridorVectorEnv(base.TorchVectorEnv[State]):
    """B point masses in T-shaped corridors, each with a cue that says which arm holds the goal.

    Observations are images [3, 32, 32]: the point mass, the walls, and the cue. The cue is visible
    from the first fifth of the stem and, unless `visible`, from nowhere else. The action [2],
    shortened to length 1, moves the point mass by 2 pixels. An episode ends at the end of either
    arm; the reward is 1 if that is the cued arm, else 0. Dynamics tests: full steps to the right,
    against the "wall" of the stem and into the "open" arm."""

    description = (
        "A point mass (blue) goes up a corridor that forks. A cue (amber) says which arm is the "
        "right one, and is visible near the start alone."
    )
    max_episode_steps = 40
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y", "cue")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        directed_fraction: float = 0.8,
        visible: bool = False,
        **options: Any,
    ) -> None:
        """`directed_fraction` is the probability that the behaviour policy goes into an arm of its
        own choice for a whole episode; else it wanders."""
        super().__init__(
            num_envs,
            spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8),
            spaces.Box(-1, 1, (2,)),
            **options,
        )
        base.check_range("directed_fraction", directed_fraction, 0, 1)
        self.directed_fraction, self.visible = directed_fraction, visible

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        state = sample_initial(keys, self.directed_fraction)
        if "factors" in options:
            return place_at(state, self._read_factors("factors", options["factors"], len(keys)))
        return state

    def _step_state(self, state: State, actions: Tensor) -> State:
        moves = STEP * shrink_to_disk(actions, 1.0)
        return state._replace(position=slide(state.position, moves))

    def _observe(self, state: State) -> Tensor:
        return observe(state, self._cue_visible(state))

    def _cue_visible(self, state: State) -> Tensor:
        return (state.position[:, 1] > CUE_LINE) | self.visible

    def _success(self, state: State) -> Tensor:
        return state.success

    def _reward(self, state: State) -> Tensor:
        return state.success.float()

    def _terminated(self, state: State) -> np.ndarray:
        return state.done.cpu().numpy()

    def _factors(self, state: State) -> Tensor:
        """x and y as fractions of the image, and the cue, 0 for left and 1 for right, [B, 3]."""
        return torch.cat([(state.position + 0.5) / SIZE, state.cue[:, None].float()], -1)

    def _info(self, state: State) -> dict[str, base.TensorObs]:
        return {"score": state.success.float()}

    def _expert(self, state: State) -> Tensor:
        return to_action(next_waypoint(state.position, state.cue) - state.position)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        """The heading leads to the arm, or else drifts, with von Mises noise; lengths of steps are
        truncated normal. Source of the form: PLDM, arXiv 2502.14819."""
        behaviour = state.behaviour
        u, keys = uniform(behaviour.keys, 2)
        to_arm = next_waypoint(state.position, behaviour.right) - state.position
        ahead = torch.where(behaviour.directed.unsqueeze(-1), to_arm, behaviour.last_move)
        heading = torch.atan2(ahead[:, 1], ahead[:, 0]) + von_mises(u[:, 0], KAPPA)
        length = truncated_normal(u[:, 1:], mean=MEAN, std=STD, low=LOW, high=HIGH)
        behaviour = behaviour._replace(last_move=direction(heading) * length, keys=keys)
        return behaviour, to_action(behaviour.last_move)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right: in the middle half of the stem where the cue isn't visible, from
        0.2 to 1.5 steps before its right wall; and in the left half of the junction."""
        u, _ = uniform(keys, 2)
        state = sample_initial(keys, directed_fraction=0.0)
        wall_x = RIGHT - STEP * (0.2 + 1.3 * u[:, 0])
        wall_y = FORK + (CUE_LINE - FORK) * (0.25 + 0.5 * u[:, 1])
        open_x = LEFT + (RIGHT - LEFT) / 2 * u[:, 0]
        open_y = TOP + 1 + (FORK - TOP - 2) * u[:, 1]
        starts = {"wall": (wall_x, wall_y), "open": (open_x, open_y)}
        action = u.new_tensor([1.0, 0.0]).expand(len(keys), -1)
        return {
            name: (state._replace(position=torch.stack(start, -1)), action)
            for name, start in starts.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return factors[..., :2] * draw.FRAME_SIZE - 0.5

    def _draw(self, state: State) -> Tensor:
        side, fixed = state.cue.long(), layers(self.device)
        walls = fixed.walls.expand(len(side), SIZE, SIZE)
        opacity = torch.where(self._cue_visible(state), 1.0, FADED)[:, None, None]
        frames = torch.full((len(side), SIZE, SIZE, 3), 255.0, device=self.device)
        for mask, colour in (
            (walls, WALL_COLOUR),
            (fixed.ends[side], draw.GOAL_COLOUR),
            (fixed.ends[1 - side], WRONG_COLOUR),
            (fixed.cues[side] * opacity, CUE_COLOUR),
        ):
            frames = draw.blend(frames, mask.float() - 0.5, colour)
        frames = frames.repeat_interleave(int(ZOOM), 1).repeat_interleave(int(ZOOM), 2)
        centre = self._to_pixels((state.position + 0.5) / SIZE)
        radius = 1.2 * ZOOM * DOT_STD
        return draw.to_bytes(draw.blend_disk(frames, centre, radius, draw.AGENT_COLOUR))


class CueCorridorEnv(base.SingleEnv):
    vector_env = CueCorridorVectorEnv
