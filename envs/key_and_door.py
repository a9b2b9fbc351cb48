"""Key and Door: two rooms of cells with a locked door between them; the key lies in the first, the
goal in the second. Positions are cells `(x, y)`, y down."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import base, draw
from .rng import uniform

SIDE = 4  # cells on a side of a room
WIDTH = 2 * SIDE + 1  # of both rooms and the wall between them
ROWS_ABOVE = (WIDTH - SIDE) // 2  # of a frame, above the rooms
MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up
DOOR_COLOUR, KEY_COLOUR = (150, 95, 45), (245, 165, 20)


class BehaviourState(NamedTuple):
    keys: Tensor  # [B] int64


class State(NamedTuple):
    position: Tensor  # [B, 2] int64
    key: Tensor  # [B, 2] int64
    has_key: Tensor  # [B] bool
    door: Tensor  # [B] int64: its row
    goal: Tensor  # [B, 2] int64
    behaviour: BehaviourState

    @property
    def success(self) -> Tensor:
        """[B] bool: at the goal."""
        return (self.position == self.goal).all(-1)


def sample_initial(keys: Tensor) -> State:
    """Random keys [B] -> first states: the agent and the key lie in the first room, in two cells,
    and the goal in the second."""
    u, keys = uniform(keys, 5)
    start, other, row, goal_x, goal_y = u.unbind(-1)
    cells = SIDE * SIDE
    first = (start * cells).long()
    second = (first + 1 + (other * (cells - 1)).long()) % cells
    goal = torch.stack([(goal_x * SIDE).long() + SIDE + 1, (goal_y * SIDE).long()], -1)
    position, key = (torch.stack([cell % SIDE, cell // SIDE], -1) for cell in (first, second))
    has_key = torch.zeros_like(first, dtype=torch.bool)
    return State(position, key, has_key, (row * SIDE).long(), goal, BehaviourState(keys))


def is_free(state: State, cell: Tensor) -> Tensor:
    """Cells [B, 2] that the agent can enter, [B] bool: those of the rooms, and the door with the
    key."""
    x, y = cell.unbind(-1)
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < SIDE)
    return inside & ((x != SIDE) | (state.has_key & (y == state.door)))


def next_state(state: State, actions: Tensor) -> State:
    """The state after moves [B] int64; into a wall or the locked door there is none."""
    moves = torch.tensor(MOVES, device=actions.device)[actions]
    ahead = state.position + moves
    position = torch.where(is_free(state, ahead)[:, None], ahead, state.position)
    return state._replace(
        position=position, has_key=state.has_key | (position == state.key).all(-1)
    )


def towards(state: State) -> Tensor:
    """The move [B] of a shortest path: to the key, through the door, to the goal."""
    x, y = state.position.unbind(-1)
    in_first, at_door = x < SIDE, x == SIDE
    to_door = in_first & state.has_key
    target_x = torch.where(state.has_key, state.goal[:, 0], state.key[:, 0])
    target_y = torch.where(state.has_key, state.goal[:, 1], state.key[:, 1])
    target_y = torch.where(to_door, state.door, target_y)  # first to its row, then through it
    target_y = torch.where(at_door, y, target_y)
    right, down = target_x - x, target_y - y
    vertical = torch.where(down > 0, 1, 3)
    horizontal = torch.where(right > 0, 0, 2)
    return torch.where(down != 0, vertical, horizontal)


class KeyAndDoorVectorEnv(base.TorchVectorEnv[State]):
    """B agents in two rooms of 4 by 4 cells, with a locked door in the wall between them.

    Actions are one of 4: right, down, left, up by one cell. A step onto the key takes it, and the
    agent with the key goes through the door. Observations [8] are the agent's cell, the key's at
    the start, whether the agent has it, the row of the door, and the goal's cell, all from 0 to 1.
    An episode ends at the goal, with the reward 1; all other rewards are 0. Places are drawn anew
    for every episode. Dynamics tests: to the right "with" the key and "without" it, at the
    door."""

    description = (
        "The agent (blue) needs the key (amber) to go through the door (brown) to the goal (green)."
    )
    max_episode_steps = 60
    factor_names: ClassVar[tuple[str, ...]] = (
        "x", "y", "key x", "key y", "has key", "door y", "goal x", "goal y",
    )  # fmt: skip
    test_steps: ClassVar[int] = 2

    def __init__(self, num_envs: int = 1, **options: Any) -> None:
        super().__init__(
            num_envs,
            spaces.Box(0, 1, (len(self.factor_names),), np.float32),
            spaces.Discrete(len(MOVES)),
            **options,
        )

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        state = sample_initial(keys)
        if "factors" in options:
            return self._place(state, self._read_factors("factors", options["factors"], len(keys)))
        return state

    def _place(self, state: State, factors: Tensor) -> State:
        """The state with a user's factors [B, F]. Raises ValueError where no episode can begin."""
        scale = factors.new_tensor([WIDTH - 1, SIDE - 1])
        position, key, goal = (
            (part * scale).round().long()
            for part in (factors[:, :2], factors[:, 2:4], factors[:, 6:])
        )
        state = State(
            position, key, factors[:, 4] > 0.5, (factors[:, 5] * (SIDE - 1)).round().long(), goal,
            state.behaviour,
        )  # fmt: skip
        for valid, reason in (
            (is_free(state, position), "the agent is in the wall"),
            ((key[:, 0] < SIDE) | state.has_key, "the key is not in the first room"),
            (goal[:, 0] > SIDE, "the goal is not in the second room"),
        ):
            base.check_rows(valid, f"factors: in environment {{i}} {reason}")
        return state

    def _step_state(self, state: State, actions: Tensor) -> State:
        return next_state(state, actions)

    def _observe(self, state: State) -> Tensor:
        return self._factors(state)

    def _success(self, state: State) -> Tensor:
        return state.success

    def _reward(self, state: State) -> Tensor:
        return state.success.float()

    def _terminated(self, state: State) -> np.ndarray:
        return state.success.cpu().numpy()

    def _factors(self, state: State) -> Tensor:
        scale = state.position.new_tensor([WIDTH - 1, SIDE - 1])
        return torch.cat(
            [
                state.position / scale,
                state.key / scale,
                state.has_key[:, None],
                state.door[:, None] / (SIDE - 1),
                state.goal / scale,
            ],
            -1,
        )

    def _info(self, state: State) -> dict[str, base.TensorObs]:
        return {"score": state.success.float()}

    def _expert(self, state: State) -> Tensor:
        return towards(state)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        u, keys = uniform(state.behaviour.keys, 1)
        return BehaviourState(keys), (len(MOVES) * u[:, 0]).long()

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Twice to the right from the cell before the door, with the key and without it."""
        state = sample_initial(keys)
        before = torch.stack([torch.full_like(state.door, SIDE - 1), state.door], -1)
        away = torch.where((before == state.key).all(-1, keepdim=True), state.position, state.key)
        state = state._replace(position=before, key=away)
        right = torch.zeros_like(state.door)
        with_key = state._replace(has_key=torch.ones_like(state.has_key))
        return {"with": (with_key, right), "without": (state, right)}

    def _to_pixels(self, factors: Tensor) -> Tensor:
        scale = factors.new_tensor([WIDTH - 1, SIDE - 1])
        return centres(factors[..., :2] * scale)

    def _draw(self, state: State) -> Tensor:
        index = draw.frame_pixels(self.device) * WIDTH // draw.FRAME_SIZE
        cells = torch.full((self.num_envs, WIDTH, WIDTH, 3), 255.0, device=self.device)
        x, y = torch.meshgrid(*(torch.arange(WIDTH, device=self.device),) * 2, indexing="xy")
        walls = (x == SIDE) | (y < ROWS_ABOVE) | (y >= ROWS_ABOVE + SIDE)
        cells[:, walls] = cells.new_tensor(draw.WALL_COLOUR)
        rows = torch.arange(self.num_envs, device=self.device)
        goal_x, goal_y = state.goal.unbind(-1)
        cells[rows, ROWS_ABOVE + state.door, SIDE] = cells.new_tensor(DOOR_COLOUR)
        cells[rows, ROWS_ABOVE + goal_y, goal_x] = cells.new_tensor(draw.GOAL_COLOUR)
        frames = draw.blend_agent(cells[:, index][:, :, index], centres(state.position))
        # the agent carries a key that it has taken
        key = torch.where(state.has_key[:, None], state.position, state.key)
        return draw.to_bytes(draw.blend_disk(frames, centres(key), 4.0, KEY_COLOUR))


def centres(cell: Tensor) -> Tensor:
    """Cells [..., 2] -> pixels [..., 2] of a frame."""
    offset = torch.tensor([0.5, 0.5 + ROWS_ABOVE], device=cell.device)
    return (cell + offset) * (draw.FRAME_SIZE / WIDTH) - 0.5


class KeyAndDoorEnv(base.SingleEnv):
    vector_env = KeyAndDoorVectorEnv
