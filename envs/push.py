"""Push: a hand, moved by MuJoCo, pushes a block to a goal on a table, the unit square seen from
above; y grows downwards. Hand and block are disks. A rim stops the block and not the hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import base, draw
from .batch import pick, where
from .geometry import direction, shrink_to_disk, wrap_angle
from .mujoco import Simulator, compile_model
from .rng import between, integers, splitmix64, uniform

HAND_RADIUS, BLOCK_RADIUS = 0.04, 0.07
CONTACT = HAND_RADIUS + BLOCK_RADIUS  # distance of the centres where hand and block touch
RIM = BLOCK_RADIUS + 2 * HAND_RADIUS + 0.02  # least distance of a block's centre from the edge
GOAL_RADIUS = 0.06  # less than a block's radius; 3 cm where the table's side is half a metre
BLOCK_AREA = (0.2, 0.8)  # where blocks and their goals are, in both directions
MIN_START_GOAL = 0.2  # least distance from a block to its goal
MIN_GAP = 0.01  # least gap between hand and block as an episode begins
CANDIDATES = 8  # positions to choose from
TOLERANCE = 0.02  # how far bodies may overlap, or cross an edge, in a user's factors

STEP, SUBSTEPS = 0.1, 10  # seconds
TIMESTEP = STEP / SUBSTEPS
TERMINAL = 0.06  # a step; what a full action comes to where nothing is in the way
VELOCITY_SCALE = 0.08  # a step; bodies are hardly ever faster
HAND_MASS, BLOCK_MASS = 1.0, 0.3

GO_ROUND_GAP = 0.03  # between the block and an expert's hand that goes round it
GO_ROUND_ANGLE = 0.9  # radians to the expert's next waypoint round the block
PUSH_ANGLE = 0.4  # radians from behind the block, within which the expert pushes
CORRECTION = 2.5  # of the expert's sideways force for each radian
SLOW_DISTANCE, STOP_DISTANCE = 0.06, 0.01  # from the goal, where the expert slows down and stops

HOLD_STEPS = (4, 14)  # for which the behaviour policy holds a force or a target
SHARPNESS = 1.5  # above 1, so that some forces are full
TARGET_DISTANCE = (0.5, 3.0)  # of targets from the block, in units of CONTACT
ARRIVAL_DISTANCE = 0.08  # from a target, where the hand slows down

TEST_BLOCKS = (0.3, 0.6)  # where blocks of dynamics tests are, in both directions
TEST_OFFSET = 0.15  # how far below the block a hand of the test "open" passes

IMAGE_SIZE = 32  # pixels on a side of an observation
DOT_STDS = (1.0, 2.0)  # pixels, of hand and block
EDGE_WIDTH = 3.0  # pixels of a frame
RIM_COLOUR, BLOCK_COLOUR = (238, 240, 244), (222, 160, 60)


def damping(mass: float, kept: float) -> float:
    """The damping with which a mass keeps this fraction of its velocity from step to step."""
    return mass * (kept ** (-1 / SUBSTEPS) - 1) / TIMESTEP


HAND_DAMPING, BLOCK_DAMPING = damping(HAND_MASS, kept=0.6), damping(BLOCK_MASS, kept=0.1)

MJCF = f"""
<mujoco>
  <option timestep="{TIMESTEP}" gravity="0 0 0"/>
  <default>
    <geom type="sphere" condim="1" solref="{2 * TIMESTEP} 1.5"/>
    <joint type="slide" limited="true" solreflimit="{2 * TIMESTEP} 1.5"/>
  </default>
  <worldbody>
    <body>
      <joint name="x" axis="1 0 0" damping="{HAND_DAMPING}"
             range="{HAND_RADIUS} {1 - HAND_RADIUS}"/>
      <joint name="y" axis="0 1 0" damping="{HAND_DAMPING}"
             range="{HAND_RADIUS} {1 - HAND_RADIUS}"/>
      <geom size="{HAND_RADIUS}" mass="{HAND_MASS}"/>
    </body>
    <body>
      <joint name="block x" axis="1 0 0" damping="{BLOCK_DAMPING}" range="{RIM} {1 - RIM}"/>
      <joint name="block y" axis="0 1 0" damping="{BLOCK_DAMPING}" range="{RIM} {1 - RIM}"/>
      <geom size="{BLOCK_RADIUS}" mass="{BLOCK_MASS}"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{HAND_DAMPING * TERMINAL / STEP}"/>
    <motor joint="y" gear="{HAND_DAMPING * TERMINAL / STEP}"/>
  </actuator>
</mujoco>
"""


class TableState(NamedTuple):
    """Hands and blocks of B environments: `(x, y)` of the hand, then of the block."""

    position: Tensor  # [B, 4]
    velocity: Tensor  # [B, 4] a step
    previous_position: Tensor  # [B, 4] one step earlier

    @property
    def hand(self) -> Tensor:
        """[B, 2] its position."""
        return self.position[:, :2]

    @property
    def block(self) -> Tensor:
        """[B, 2] its position."""
        return self.position[:, 2:]


class BehaviourState(NamedTuple):
    force: Tensor  # [B, 2] where it is undirected
    target: Tensor  # [B, 2] position that a directed hand goes to
    directed: Tensor  # [B] bool
    steps_left: Tensor  # [B] until the next force or target is drawn
    keys: Tensor  # [B] int64


class State(NamedTuple):
    table: TableState
    goal: TableState  # the block at its goal, and the hand where it would be by then
    behaviour: BehaviourState
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] from the block to its goal; the hand's position doesn't matter."""
        return (self.table.block - self.goal.block).norm(dim=-1)


def at_rest(hand: Tensor, block: Tensor) -> TableState:
    """Hands and blocks at rest at positions [B, 2]."""
    position = torch.cat([hand, block], -1)
    return TableState(position, torch.zeros_like(position), position)


class TablePhysics:
    """MuJoCo moves hands and blocks: the action is a force on the hand, friction slows both down,
    and where they touch the hand pushes the block."""

    def __init__(self) -> None:
        self.model = compile_model(MJCF)
        self.simulator = Simulator(self.model, SUBSTEPS)

    def __call__(self, table: TableState, actions: Tensor) -> TableState:
        """Actions [B, 2] -> hands and blocks one step later."""
        models, force = [self.model] * len(actions), shrink_to_disk(actions, 1.0)
        position, velocity = self.simulator(models, table.position, table.velocity / STEP, force)
        return TableState(position, STEP * velocity, table.position)


def sample_apart(bounds: tuple[float, float], other: Tensor, gap: float, u: Tensor) -> Tensor:
    """Uniform [B, 2 K] -> positions [B, 2] in a square, at least so far from the others [B, 2]."""
    candidates = between(u.unflatten(-1, (-1, 2)), bounds)
    far = (candidates - other[:, None]).norm(dim=-1) >= gap
    # the first; that none is far happens once in millions of episodes
    return pick(candidates, far.int().argmax(-1))


def depth_in_table(pixels: Tensor, margin: float) -> Tensor:
    """How many pixels inside the table, smaller by a margin, every pixel is, [1, N, N]."""
    inside = draw.UNIT_SIDE * (0.5 - margin) - (pixels - (draw.FRAME_SIZE - 1) / 2).abs()
    return torch.minimum(inside, inside[:, None])[None]


def observe_state(table: TableState) -> Tensor:
    """[B, 8]: the positions of hand and block from -1 to 1, and their velocities."""
    scaled = 2 * table.position - 1, table.velocity / VELOCITY_SCALE
    return torch.cat(scaled, -1).clamp(-1, 1)


def observe_image(table: TableState) -> Tensor:
    """[B, 4, S, S] uint8: hand, block, and both one step earlier, each a channel."""
    positions = torch.cat([table.position, table.previous_position], -1).split(2, dim=-1)
    dots = zip(positions, 2 * DOT_STDS, strict=True)
    return torch.stack([draw.draw_dot((IMAGE_SIZE - 1) * p, IMAGE_SIZE, std) for p, std in dots], 1)


OBS_TYPES: dict[str, tuple[spaces.Box, Callable[[TableState], Tensor]]] = {
    "state": (spaces.Box(-1, 1, (8,)), observe_state),
    "image": (spaces.Box(0, 255, (4, IMAGE_SIZE, IMAGE_SIZE), np.uint8), observe_image),
}


class PushVectorEnv(base.GoalVectorEnv[State]):
    """B tables, the unit square, seen from above and moved by MuJoCo.

    The hand, a disk of radius 0.04, keeps 0.6 of its velocity from step to step. The action [2],
    shortened to length 1, is a force on it and comes to at most 0.06 a step. The block, a disk of
    radius 0.07, slides where the hand pushes it and soon comes to rest. A rim keeps the block so
    far from the table's edge that the hand fits behind it. The goal is a position of the block; its
    observation shows the block there and the hand right behind it, as after a straight push. It is
    reached nearer than 0.06: 3 cm on a table of half a metre. Dynamics tests: pushes against the
    "block", and in the "open"."""

    description = "A hand (blue) is to push a block (yellow) to a goal (green ring)."
    factor_names: ClassVar[tuple[str, ...]] = (
        *("hand x", "hand y", "block x", "block y"),
        *("hand velocity x", "hand velocity y", "block velocity x", "block velocity y"),
    )
    num_velocities: ClassVar[int] = 4
    max_episode_steps = 60
    goal_radius = GOAL_RADIUS

    def __init__(
        self,
        num_envs: int = 1,
        *,
        obs_type: str = "state",
        directed_fraction: float = 0.7,
        **options: Any,
    ) -> None:
        """`obs_type` is "state" [8], positions and velocities of hand and block, or "image"
        [4, 32, 32], hand, block, and both one step earlier. `directed_fraction` is how often the
        behaviour policy goes to a position about the block. Raises ImportError where MuJoCo is
        missing."""
        base.check_range("directed_fraction", directed_fraction, 0, 1)
        self.directed_fraction = directed_fraction
        space, self._observe_table = base.choose("obs_type", obs_type, OBS_TYPES)
        self.physics = TablePhysics()
        super().__init__(num_envs, space, spaces.Box(-1, 1, (2,)), **options)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        u, _ = uniform(splitmix64(keys ^ 6), 4 * CANDIDATES + 2)
        block = between(u[:, :2], BLOCK_AREA)
        for_hand, for_goal = u[:, 2:].chunk(2, dim=-1)
        on_table = (HAND_RADIUS, 1 - HAND_RADIUS)
        table = at_rest(sample_apart(on_table, block, CONTACT + MIN_GAP, for_hand), block)
        if "factors" in options:
            table = self._read_table("factors", options["factors"], len(keys))
        goal_block = sample_apart(BLOCK_AREA, table.block, MIN_START_GOAL, for_goal)
        # The block has been pushed straight to its goal, and the hand is right behind it.
        ahead = torch.nn.functional.normalize(goal_block - table.block, dim=-1)
        goal = at_rest(goal_block - (CONTACT + MIN_GAP / 2) * ahead, goal_block)
        if "goal_factors" in options:
            goal = self._read_table("goal_factors", options["goal_factors"], len(keys))
        none = torch.zeros_like(goal_block)
        return State(
            table=table,
            goal=goal,
            behaviour=BehaviourState(none, none, none[:, 0] > 0, none[:, 0], splitmix64(keys ^ 1)),
            goal_obs=self._observe_table(goal),
        )

    def _read_table(self, name: str, factors: object, count: int) -> TableState:
        """A user's factors [B, 8] -> hands and blocks. Raises ValueError where these can't be."""
        position, scaled = self._read_factors(name, factors, count).split(4, dim=-1)
        hand, block = position.split(2, dim=-1)
        on_table = ((hand - 0.5).abs() <= 0.5 - HAND_RADIUS + TOLERANCE).all(-1)
        within_rim = ((block - 0.5).abs() <= 0.5 - RIM + TOLERANCE).all(-1)
        apart = (hand - block).norm(dim=-1) >= CONTACT - TOLERANCE
        message = (
            f"{name}: in environment {{i}} the hand must be on the table, the block within the "
            f"rim, and both {CONTACT:.2f} apart; they are at {{row}}"
        )
        base.check_rows(on_table & within_rim & apart, message, position)
        velocity = VELOCITY_SCALE * scaled
        return TableState(position, velocity, position - velocity)

    def _step_state(self, state: State, actions: Tensor) -> State:
        return state._replace(table=self.physics(state.table, actions))

    def _observe(self, state: State) -> base.TensorObs:
        return self._observe_table(state.table)

    def _factors(self, state: State) -> Tensor:
        """Positions of hand and block, their velocities in units of `VELOCITY_SCALE`, [B, 8]."""
        return torch.cat([state.table.position, state.table.velocity / VELOCITY_SCALE], -1)

    def _goal_factors(self, state: State) -> Tensor:
        return self._factors(state._replace(table=state.goal))

    def _expert(self, state: State) -> Tensor:
        """The hand goes round the block, pushes it straight on, and keeps behind it."""
        table, goal = state.table, state.goal.block
        to_goal = goal - table.block
        ahead = torch.atan2(to_goal[:, 1], to_goal[:, 0])
        from_block = table.hand - table.block
        angle = torch.atan2(from_block[:, 1], from_block[:, 0])
        off = wrap_angle(angle - ahead - torch.pi)  # [B] radians from behind the block
        velocity = table.velocity[:, :2] / TERMINAL

        turned = off - off.clamp(-GO_ROUND_ANGLE, GO_ROUND_ANGLE)
        waypoint = table.block - (CONTACT + GO_ROUND_GAP) * direction(ahead + turned)
        go_round = (waypoint - table.hand) / TERMINAL - velocity

        forward, sideways = direction(ahead), direction(ahead + torch.pi / 2)
        distance = to_goal.norm(dim=-1)
        strength = (distance / SLOW_DISTANCE).clamp(max=1)[:, None]
        push = strength * forward + CORRECTION * off[:, None] * sideways
        stop = (distance < STOP_DISTANCE)[:, None]
        behind = (off.abs() < PUSH_ANGLE)[:, None]
        move = torch.where(behind, push, go_round)
        return shrink_to_disk(torch.where(stop, -velocity, move), 1.0)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        """Every 4 to 14 steps the policy draws another force or, with probability
        `directed_fraction`, a target about the block, to which the hand goes straight."""
        behaviour, table = state.behaviour, state.table
        u, keys = uniform(behaviour.keys, 6)
        force = (SHARPNESS * (2 * u[:, :2] - 1)).clamp(-1, 1)
        distance = CONTACT * between(u[:, 2:3], TARGET_DISTANCE)
        target = table.block + distance * direction(2 * math.pi * u[:, 3])
        steps_left, directed = integers(u[:, 4], HOLD_STEPS), u[:, 5] < self.directed_fraction
        drawn = BehaviourState(force, target, directed, steps_left, keys)
        behaviour = where(behaviour.steps_left <= 0, drawn, behaviour._replace(keys=keys))
        behaviour = behaviour._replace(steps_left=behaviour.steps_left - 1)
        to_target = shrink_to_disk((behaviour.target - table.hand) / ARRIVAL_DISTANCE, 1.0)
        return behaviour, torch.where(behaviour.directed[:, None], to_target, behaviour.force)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right of a hand against the block, and of one that passes below it."""
        block = between(uniform(splitmix64(keys ^ 8), 2)[0], TEST_BLOCKS)
        beside = block - block.new_tensor([CONTACT, 0.0])
        below = beside + block.new_tensor([0.0, TEST_OFFSET])
        action = block.new_tensor([1.0, 0.0]).expand(len(keys), -1)
        state = self._reset_state(keys, {})
        return {
            name: (state._replace(table=at_rest(hand, block)), action)
            for name, hand in {"block": beside, "open": below}.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return draw.unit_to_pixels(factors[..., :2])

    def _draw(self, state: State) -> Tensor:
        pixels = draw.frame_pixels(self.device)
        frames = draw.white_frames(self.num_envs, self.device)
        frames = draw.blend(frames, depth_in_table(pixels, 0) + EDGE_WIDTH, draw.WALL_COLOUR)
        frames = draw.blend(frames, depth_in_table(pixels, 0), RIM_COLOUR)
        frames = draw.blend(frames, depth_in_table(pixels, RIM - BLOCK_RADIUS), draw.WHITE)
        block = state.table.block, BLOCK_RADIUS, BLOCK_COLOUR
        hand = state.table.hand, HAND_RADIUS, draw.AGENT_COLOUR
        for position, radius, colour in (block, hand):
            centre = draw.unit_to_pixels(position)
            frames = draw.blend_disk(frames, centre, draw.UNIT_SIDE * radius, colour)
        goal = draw.unit_to_pixels(state.goal.block)
        frames = draw.blend_ring(frames, goal, draw.UNIT_SIDE * GOAL_RADIUS)
        return draw.to_bytes(draw.blend_disk(frames, goal, 2.5, draw.GOAL_COLOUR))


class PushEnv(base.SingleEnv):
    vector_env = PushVectorEnv
