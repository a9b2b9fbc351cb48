"""Ant Maze: the mazes of `maze`, with the quadruped of Gymnasium's `Ant-v5`, moved by MuJoCo."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import draw
from .base import SegmentState, SingleEnv
from .geometry import direction
from .maze import MazeVectorEnv
from .maze.dynamics import Maze, Physics
from .maze.env import Policy, State
from .maze.env import draw_frames as draw_maze_frames
from .mujoco import Simulator, import_mujoco
from .point_maze import WALL_HALF_WIDTH, ModelCache, WallBox, has_room, with_spares
from .rng import splitmix64, uniform

if TYPE_CHECKING:
    from mujoco import MjModel

STANDING = (0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
"""Height, a quaternion, and hip and ankle of each leg, anticlockwise from the front left."""
LEG_ANGLES = (0.25, 0.75, 1.25, 1.75)  # half turns: where legs are
BEND_SIGNS = (1.0, -1.0, -1.0, 1.0)  # the sign in which an ankle bends down
ACTION_JOINTS = (6, 7, 0, 1, 2, 3, 4, 5)  # the joint that each number of an action is for
HIP, UPPER, LOWER = 0.2 * math.sqrt(2), 0.2 * math.sqrt(2), 0.4 * math.sqrt(2)  # metres

# A trot: diagonal legs together, 2.5 times a second. Wider sweeps and faster beats are faster, but
# now and then turn an ant over.
BEAT = 1 / 8  # of a cycle, in a step
SWEEP, STRETCH, LIFT, BEND = 0.5, 0.3, 0.5, 1.0  # radians
STIFFNESS, DAMPING = 1.0, 0.1  # of the full torque, for a radian and for a radian a second
TORQUE_NOISE = 0.15  # of the full torque, the most that the behaviour policy adds

MODEL = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
CELL = 4.0  # metres to a cell, as in D4RL's AntMaze (arXiv 2004.07219)
WALL_HALF_HEIGHT = 0.5  # metres
STEP, SUBSTEPS = 0.05, 5  # seconds, as in Ant-v5
STOPPED_SPEED = 0.002  # cells a step
STEP_SCALE = 24  # a trot makes 0.3 cells in about as many steps
GOAL_RADIUS = 0.125  # cells: half a metre, as in D4RL
HALF_WIDTH = 0.21  # cells; a standing ant's feet are 0.7 metres from its middle, walls 0.12 thick
JOINT_SPEED_SCALE = 10.0  # radians a second; the unit of observed joint velocities

TEST_GAP = 0.1  # cells; the most that an ant of a dynamics test begins further from a side

TORSO = 0.25 / CELL  # cells
LEG_WIDTH = 2.0  # pixels of a frame, half the width


class AntState(NamedTuple):
    """Ants of B environments."""

    position: Tensor  # [B, 2] cells
    velocity: Tensor  # [B, 2] cells a step
    previous_position: Tensor  # [B, 2] one step earlier
    pose: Tensor  # [B, 13] height, quaternion, joints
    pose_velocity: Tensor  # [B, 12] of the pose: metres and radians a second
    clock: Tensor  # [B] steps since it stood


def place_at(position: Tensor, velocity: Tensor) -> AntState:
    """Ants that stand at positions and move with velocities [B, 2], all facing the same way."""
    pose = position.new_tensor(STANDING).expand(len(position), -1)
    pose_velocity, clock = pose.new_zeros(len(position), 12), 0 * position[:, 0]
    return AntState(position, velocity, position - velocity, pose, pose_velocity, clock)


def heading(pose: Tensor) -> Tensor:
    """Poses [B, 13] -> the direction that the torso faces, seen from above, [B] radians."""
    w, x, y, z = pose[:, 1:5].unbind(-1)
    return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def trot_controller(ant: AntState, move: Tensor) -> Tensor:
    """Moves [B, 2] of length 1 at most -> torques [B, 8] of a step of a trot in that direction,
    whatever way an ant faces: each leg sweeps back while it stands and forward while it is lifted,
    by its hip sideways of the move and by its ankle along it."""
    speed = move.norm(dim=-1, keepdim=True).clamp(max=1)
    to_move = torch.atan2(move[:, 1], move[:, 0]) - heading(ant.pose)
    from_leg = to_move[:, None] - math.pi * move.new_tensor(LEG_ANGLES)  # [B, 4]
    phase = BEAT * ant.clock[:, None] + move.new_tensor([0.0, 0.5, 0.0, 0.5])
    swing, lift = torch.cos(2 * math.pi * phase), torch.sin(2 * math.pi * phase).clamp(min=0)
    hip = -speed * SWEEP * from_leg.sin() * swing
    ankle = BEND + speed * (STRETCH * from_leg.cos() * swing - LIFT * lift)
    ankle = ankle.clamp(math.radians(30), math.radians(70)) * move.new_tensor(BEND_SIGNS)
    target = torch.stack([hip, ankle], -1).flatten(1)  # [B, 8], in the order of joints
    torque = STIFFNESS * (target - ant.pose[:, 5:]) - DAMPING * ant.pose_velocity[:, 4:]
    return torque.clamp(-1, 1)[:, list(ACTION_JOINTS)]


def knees_and_feet(pose: Tensor) -> Tensor:
    """Poses [B, 13] -> positions of knees and feet about the torso in metres, [B, 4, 2, 2]."""
    hip, ankle = pose[:, 5:].unflatten(-1, (4, 2)).unbind(-1)
    root = math.pi * pose.new_tensor(LEG_ANGLES)
    out = direction(root + hip)  # [B, 4, 2]
    knee = HIP * direction(root) + UPPER * out
    down = ankle * pose.new_tensor(BEND_SIGNS)
    foot = knee + LOWER * down.cos()[..., None] * out
    flat = torch.stack([knee, foot], 2)  # [B, 4, 2, 2]
    depth = torch.stack([0 * down, -LOWER * down.sin()], 2)
    w, x, y, z = pose[:, 1:5, None, None].unbind(1)
    a, b = flat.unbind(-1)
    return torch.stack([
        (1 - 2 * (y * y + z * z)) * a + 2 * (x * y - w * z) * b + 2 * (x * z + w * y) * depth,
        2 * (x * y + w * z) * a + (1 - 2 * (x * x + z * z)) * b + 2 * (y * z - w * x) * depth,
    ], -1)  # fmt: skip


def ant_model(size: int, boxes: list[WallBox]) -> MjModel:
    """An ant between walls. Raises ImportError where MuJoCo is missing."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(str(MODEL))
    for wall in with_spares(size, boxes):
        box = spec.worldbody.add_geom()
        box.type = mujoco.mjtGeom.mjGEOM_BOX
        box.pos = [CELL * wall.x, CELL * wall.y, WALL_HALF_HEIGHT + CELL * wall.z]
        box.size = [CELL * wall.half_x, CELL * wall.half_y, WALL_HALF_HEIGHT]
        box.contype, box.conaffinity = 0, 1  # walls don't touch each other
    return spec.compile()


class AntPhysics:
    """MuJoCo moves ants in mazes of one size: the action is a torque on each joint."""

    def __init__(self, size: int) -> None:
        self.models = ModelCache(lambda boxes: ant_model(size, boxes))
        self.simulator = Simulator(self.models.build([]), SUBSTEPS)

    def __call__(self, maze: Maze, ant: AntState, actions: Tensor) -> AntState:
        """Actions [B, 8] -> ants one step later."""
        all_positions, all_velocities = self.simulator(
            self.models(maze),
            torch.cat([CELL * ant.position, ant.pose], -1),
            torch.cat([CELL / STEP * ant.velocity, ant.pose_velocity], -1),
            actions.clamp(-1, 1),
        )
        position, pose = all_positions.split([2, 13], -1)
        velocity, pose_velocity = all_velocities.split([2, 12], -1)
        return AntState(
            position=position / CELL,
            velocity=STEP / CELL * velocity,
            previous_position=ant.position,
            pose=pose,
            pose_velocity=pose_velocity,
            clock=ant.clock + 1,
        )


def is_free(maze: Maze, position: Tensor) -> Tensor:
    """Positions [B, 2] -> [B] bool: an ant may stand there."""
    return has_room(maze, position, HALF_WIDTH - WALL_HALF_WIDTH - 1e-4)


def ant_of(state: State) -> AntState:
    """The ants of a state."""
    assert isinstance(state.body, AntState)
    return state.body


class AntMazeVectorEnv(MazeVectorEnv):
    """The mazes of `MazeVectorEnv`, with its keyword arguments and infos, and the quadruped of
    Gymnasium's `Ant-v5`, 4 metres to a cell.

    The action [8] is a torque on each joint, in the order of `Ant-v5`; a step is a twentieth of a
    second. The goal is reached nearer than half a metre; its observation shows an ant that stands
    there. Expert and behaviour policy trot from cell to cell, 0.4 to 0.9 metres a second; the
    behaviour policy adds noise. An ant that falls on its back stays there until the episode ends.
    The constructor raises ImportError where MuJoCo is missing. Dynamics tests: two seconds of a
    trot against a "wall", and where it is "open"."""

    body_name: ClassVar[str] = "An ant, a body on four legs (blue),"
    action_dim: ClassVar[int] = 8
    test_steps: ClassVar[int] = 40
    goal_radius = GOAL_RADIUS

    def __init__(
        self, num_envs: int = 1, *, map: str = "u", obs_type: str = "state", **options: Any
    ) -> None:
        """`obs_type` is "state" [29]: position from -1 to 1, height, orientation and joints, and
        the velocities of these. An episode has 144 steps for each cell of the longest path."""
        super().__init__(num_envs, map=map, obs_type=obs_type, **options)

    def _physics(self) -> Physics:
        return Physics(
            step=AntPhysics(self.mazes.size),
            is_free=is_free,
            stopped_speed=STOPPED_SPEED,
            place_at=place_at,
            step_scale=STEP_SCALE,
            half_width=HALF_WIDTH,
        )

    def _obs_spaces(self) -> dict[str, spaces.Box]:
        return {"state": spaces.Box(-np.inf, np.inf, (29,))}

    def _observe_body(self, walls: Tensor, body: AntState) -> Tensor:
        """Position from -1 to 1 across the maze, pose, and velocities: of the torso in metres a
        second, of turning and of joints in tens of radians a second, [B, 29]."""
        position, velocity = 2 * body.position / self.mazes.size - 1, CELL / STEP * body.velocity
        vertical, turning = body.pose_velocity.split([1, 11], -1)
        parts = [position, body.pose, velocity, vertical, turning / JOINT_SPEED_SCALE]
        return torch.cat(parts, -1)

    def _to_actions(self, state: State, point_actions: Tensor) -> Tensor:
        # An idle ant begins its next trot with the same legs, so the pose says what comes next.
        ant = ant_of(state)
        ant = ant._replace(clock=torch.where(point_actions.any(-1), ant.clock, -1.0))
        self._state = state._replace(body=ant)
        return trot_controller(ant, point_actions)

    def _behave(self, state: State) -> tuple[SegmentState, Tensor]:
        """As in a maze, at a trot, with noise on the torques."""
        behaviour, torque = super()._behave(state)
        u, _ = uniform(splitmix64(behaviour.keys ^ 1), self.action_dim)
        return behaviour, (torque + TORQUE_NOISE * (2 * u - 1)).clamp(-1, 1)

    def _push_test(self, state: State, sides: Tensor, u: Tensor) -> tuple[State, Tensor | Policy]:
        """Two seconds of a trot, before one of the sides [N, cells, 4] that may be chosen."""
        offset = 0.5 - (HALF_WIDTH + TEST_GAP * u[:, 1:2])
        state, ahead = self._before_side(state, sides, u, offset)
        return state, lambda state: trot_controller(ant_of(state), ahead)

    def _draw(self, state: State) -> Tensor:
        ant, maze = ant_of(state), state.maze
        frames = draw_maze_frames(maze, ant.position, state.goal, GOAL_RADIUS, TORSO).float()
        to_legs = heading(ant.pose)[:, None] + torch.pi * ant.pose.new_tensor(LEG_ANGLES)
        hips = HIP * direction(to_legs)  # where legs begin about the torso, in metres
        joints = torch.cat([hips[:, :, None], knees_and_feet(ant.pose)], 2)
        points = ant.position[:, None, None] + joints / CELL  # [B, 4, 3, 2]
        points = draw.unit_to_pixels(points, draw.UNIT_SIDE / maze.size)
        ends = torch.stack([points[:, :, :-1], points[:, :, 1:]], 3).flatten(1, 2)
        distance = draw.distance_to_segments(draw.frame_pixels(self.device), ends)
        return draw.to_bytes(draw.blend(frames, LEG_WIDTH - distance, draw.AGENT_COLOUR))


class AntMazeEnv(SingleEnv):
    vector_env = AntMazeVectorEnv
