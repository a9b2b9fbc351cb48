"""Reach: an arm of two links, moved by MuJoCo, brings its fingertip to a goal. Positions are
`(x, y)` in lengths of the arm from the shoulder, y down; a stretched elbow's angle is 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import pad

from . import base, draw
from .batch import pick, where
from .geometry import direction, wrap_angle
from .mujoco import Simulator, compile_model
from .rng import integers, splitmix64, uniform

LINK = 0.5  # the length of each of two links
MAX_BEND = 2.6  # radians; the elbow bends so far either way
MIN_REACH = 2 * LINK * math.cos(MAX_BEND / 2)  # the fingertip's least distance from the shoulder
GOAL_RADIUS = 0.05  # lengths of the arm; nearer to the goal than this, it counts as reached
GOAL_RING = (MIN_REACH + 0.03, 0.95)  # distances of goals from the shoulder
MIN_START_GOAL = 0.25  # least distance from the fingertip's start to its goal
CANDIDATES = 8  # goals to choose from
TOLERANCE = 0.01  # how far the positions of joints may be off in a user's factors

STEP = 0.1  # seconds
SUBSTEPS = 10
TERMINAL = 0.3  # radians a step that a full torque comes to, where nothing else turns a joint
VELOCITY_SCALE = 3 * TERMINAL  # radians a step; joints hardly ever turn faster
DAMPING = (1.5, 0.3)  # of shoulder and elbow: when stretched, about what bodies lose in Maze

STIFFNESS, EXPERT_DAMPING = 3.0, 1.0  # the expert's torque for a radian, and for a terminal speed
IDLE = 0.25  # probability of no torque: the arm coasts, or comes to rest
HOLD_STEPS = (3, 12)  # for which the behaviour policy holds a torque
SHARPNESS = 1.5  # above 1, so that some torques are full

IMAGE_SIZE = 32  # pixels on a side of an observation
EXTENT = 1.05  # lengths of the arm from the shoulder to the edge of an image
LINK_STD = 0.8  # pixels, how a link fades to its sides
LINK_WIDTH, JOINT_RADIUS = 5.0, 8.0  # pixels of a frame; half the width
JOINT_COLOUR = (120, 130, 145)

MJCF = f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{STEP / SUBSTEPS}" gravity="0 0 0"><flag contact="disable"/></option>
  <default><geom type="capsule" fromto="0 0 0 {LINK} 0 0" size="0.04" mass="1"/></default>
  <worldbody>
    <body>
      <joint name="shoulder" type="hinge" axis="0 0 1" damping="{DAMPING[0]}"/>
      <geom/>
      <body pos="{LINK} 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1" damping="{DAMPING[1]}"
               range="-{MAX_BEND} {MAX_BEND}"/>
        <geom/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder" gear="{DAMPING[0] * TERMINAL / STEP}"/>
    <motor joint="elbow" gear="{DAMPING[1] * TERMINAL / STEP}"/>
  </actuator>
</mujoco>
"""


class ArmState(NamedTuple):
    """Arms of B environments; angles are of shoulder and elbow."""

    angle: Tensor  # [B, 2] radians
    velocity: Tensor  # [B, 2] radians a step
    previous_angle: Tensor  # [B, 2] one step earlier


class BehaviourState(NamedTuple):
    torque: Tensor  # [B, 2]
    steps_left: Tensor  # [B] until the next torque is drawn
    keys: Tensor  # [B] int64


class State(NamedTuple):
    arm: ArmState
    goal: Tensor  # [B, 2] the angles of an arm whose fingertip is at the goal
    behaviour: BehaviourState
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] from the fingertip to its goal, in lengths of the arm."""
        return (fingertip(self.arm.angle) - fingertip(self.goal)).norm(dim=-1)


def at_rest(angle: Tensor) -> ArmState:
    """Arms at rest, angles [B, 2]."""
    return ArmState(angle, torch.zeros_like(angle), angle)


def joint_positions(angle: Tensor) -> Tensor:
    """Angles [..., 2] -> the positions of elbow and fingertip, [..., 2, 2]."""
    shoulder, elbow = angle.unbind(-1)
    upper_arm = LINK * direction(shoulder)
    return torch.stack([upper_arm, upper_arm + LINK * direction(shoulder + elbow)], -2)


def fingertip(angle: Tensor) -> Tensor:
    """Angles [..., 2] -> positions [..., 2]."""
    return joint_positions(angle)[..., 1, :]


def inverse_kinematics(position: Tensor, side: Tensor) -> Tensor:
    """Positions [B, 2] -> the angles [B, 2] that bring the fingertip there, or as near as the arm
    can; the elbow bends to the `side` [B], 1 or -1. The links are two equal sides of a triangle."""
    bend = 2 * (position.norm(dim=-1) / (2 * LINK)).clamp(max=1).acos()
    elbow = side * bend.clamp(max=MAX_BEND)
    x, y = position.unbind(-1)
    return torch.stack([wrap_angle(torch.atan2(y, x) - elbow / 2), elbow], -1)


def angles_from_points(elbow: Tensor, tip: Tensor) -> Tensor:
    """Positions of elbows and fingertips [B, 2] -> the angles [B, 2] that put them there."""
    upper, lower = (torch.atan2(link[:, 1], link[:, 0]) for link in (elbow, tip - elbow))
    return torch.stack([upper, wrap_angle(lower - upper)], -1)


class ArmPhysics:
    """MuJoCo moves arms: the action is a torque on each joint, which friction slows down."""

    def __init__(self) -> None:
        self.model = compile_model(MJCF)
        self.simulator = Simulator(self.model, SUBSTEPS)

    def __call__(self, arm: ArmState, actions: Tensor) -> ArmState:
        """Actions [B, 2] -> arms one step later."""
        models, torque = [self.model] * len(actions), actions.clamp(-1, 1)
        angle, velocity = self.simulator(models, arm.angle, arm.velocity / STEP, torque)
        shoulder, elbow = angle.unbind(-1)
        angle = torch.stack([wrap_angle(shoulder), elbow], -1)
        return ArmState(angle, STEP * velocity, arm.angle)


def sample_angles(u: Tensor) -> Tensor:
    """Uniform [B, 2] -> angles [B, 2], uniform within the joints' limits."""
    shoulder, elbow = (2 * u - 1).unbind(-1)
    return torch.stack([math.pi * shoulder, MAX_BEND * elbow], -1)


def sample_goal(tip: Tensor, u: Tensor) -> Tensor:
    """Fingertips [B, 2], uniform [B, 2 K + 1] -> angles [B, 2] that reach for a position in the
    ring, uniform by area, but not near the fingertip; the elbow bends to either side."""
    around, out = u[:, 1:].chunk(2, dim=-1)  # [B, K]
    low, high = (radius**2 for radius in GOAL_RING)
    candidates = (low + (high - low) * out).sqrt()[..., None] * direction(2 * math.pi * around)
    far = (candidates - tip[:, None]).norm(dim=-1) >= MIN_START_GOAL
    # the first; that none is far happens once in millions of episodes
    position = pick(candidates, far.int().argmax(-1))
    return inverse_kinematics(position, torch.where(u[:, 0] < 0.5, 1.0, -1.0))


def to_pixels(position: Tensor, size: int) -> Tensor:
    """Positions [..., 2] -> `(x, y)` [..., 2] in the pixels of a square around the arm's reach."""
    return (position / EXTENT + 1) / 2 * (size - 1)


def distance_to_links(angle: Tensor, size: int) -> Tensor:
    """Angles [B, 2] -> the distance of every pixel from the arm, [B, S, S]."""
    points = to_pixels(pad(joint_positions(angle), (0, 0, 1, 0)), size)  # from the shoulder on
    ends = torch.stack([points[:, :-1], points[:, 1:]], 2)
    return draw.distance_to_segments(torch.arange(size, device=angle.device), ends)


def observe_state(arm: ArmState) -> Tensor:
    """[B, 6]: the cosines of both angles, their sines, and their velocities."""
    velocity = (arm.velocity / VELOCITY_SCALE).clamp(-1, 1)
    return torch.cat([arm.angle.cos(), arm.angle.sin(), velocity], -1)


def observe_image(arm: ArmState) -> Tensor:
    """[B, 2, S, S] uint8: the arm, and the arm one step earlier, each a channel; edges are soft."""
    angles = arm.angle, arm.previous_angle
    distance = torch.stack([distance_to_links(angle, IMAGE_SIZE) for angle in angles], 1)
    bright = torch.exp(-0.5 * (distance / LINK_STD).square())
    return (255 * bright).round().to(torch.uint8)


OBS_TYPES: dict[str, tuple[spaces.Box, Callable[[ArmState], Tensor]]] = {
    "state": (spaces.Box(-1, 1, (6,)), observe_state),
    "image": (spaces.Box(0, 255, (2, IMAGE_SIZE, IMAGE_SIZE), np.uint8), observe_image),
}


class ReachVectorEnv(base.GoalVectorEnv[State]):
    """B arms of two equal links, seen from above and moved by MuJoCo.

    The action [2], clipped to [-1, 1], is a torque on shoulder and elbow, which friction slows
    down; each alone comes to 0.3 radians a step, and each link's motion moves the other. The
    shoulder turns all the way round, the elbow 2.6 radians either way. The goal is a position of
    the fingertip; its observation shows one arm at rest that is there, another may reach it with
    the elbow bent to the other side. It is reached nearer than 0.05 of the arm's length. Dynamics
    tests: a torque on the "shoulder", or on the "elbow"."""

    description = "An arm of two links is to bring its fingertip (blue) to a goal (green ring)."
    factor_names: ClassVar[tuple[str, ...]] = (
        *("fingertip x", "fingertip y", "elbow x", "elbow y"),
        *("shoulder velocity", "elbow velocity"),
    )
    num_velocities: ClassVar[int] = 2
    max_episode_steps = 40
    goal_radius = GOAL_RADIUS

    def __init__(self, num_envs: int = 1, *, obs_type: str = "state", **options: Any) -> None:
        """`obs_type` is "state" [6], the cosines of shoulder and elbow, their sines and velocities,
        or "image" [2, 32, 32], the arm and the arm one step earlier. Raises ImportError where
        MuJoCo is missing."""
        space, self._observe_arm = base.choose("obs_type", obs_type, OBS_TYPES)
        self.physics = ArmPhysics()
        super().__init__(num_envs, space, spaces.Box(-1, 1, (2,)), **options)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        u, _ = uniform(splitmix64(keys ^ 6), 2 * CANDIDATES + 3)
        arm = at_rest(sample_angles(u[:, :2]))
        if "factors" in options:
            arm = self._read_arm("factors", options["factors"], len(keys))
        goal = sample_goal(fingertip(arm.angle), u[:, 2:])
        if "goal_factors" in options:
            goal = self._read_arm("goal_factors", options["goal_factors"], len(keys)).angle
        none = torch.zeros_like(goal)
        return State(
            arm=arm,
            goal=goal,
            behaviour=BehaviourState(none, none[:, 0], splitmix64(keys ^ 1)),
            goal_obs=self._observe_arm(at_rest(goal)),
        )

    def _read_arm(self, name: str, factors: object, count: int) -> ArmState:
        """A user's factors [B, 6] -> arms. Raises ValueError where no arm has them."""
        read = self._read_factors(name, factors, count)
        tip, elbow = (2 * read[:, :4] - 1).split(2, dim=-1)
        angle, velocity = angles_from_points(elbow, tip), VELOCITY_SCALE * read[:, 4:]
        lengths = torch.stack([elbow.norm(dim=-1), (tip - elbow).norm(dim=-1)], -1)
        fits = ((lengths - LINK).abs() < TOLERANCE).all(-1)
        fits = fits & (angle[:, 1].abs() < MAX_BEND + TOLERANCE)
        message = f"{name}: in environment {{i}} no arm has its elbow and fingertip there"
        base.check_rows(fits, message)
        return ArmState(angle, velocity, angle - velocity)

    def _step_state(self, state: State, actions: Tensor) -> State:
        return state._replace(arm=self.physics(state.arm, actions))

    def _observe(self, state: State) -> base.TensorObs:
        return self._observe_arm(state.arm)

    def _factors(self, state: State) -> Tensor:
        """Fingertip and elbow as fractions of the reach, velocities in `VELOCITY_SCALE`, [B, 6]."""
        elbow, tip = joint_positions(state.arm.angle).unbind(1)
        return torch.cat([(tip + 1) / 2, (elbow + 1) / 2, state.arm.velocity / VELOCITY_SCALE], -1)

    def _goal_factors(self, state: State) -> Tensor:
        return self._factors(state._replace(arm=at_rest(state.goal)))

    def _expert(self, state: State) -> Tensor:
        """A spring and a damper at each joint, to the angles that put the fingertip at its goal,
        with the elbow bent to the side for which joints turn less."""
        goal = fingertip(state.goal)
        side = torch.ones_like(goal[:, 0])
        both = [inverse_kinematics(goal, side), inverse_kinematics(goal, -side)]
        turn = torch.stack(both, 1) - state.arm.angle[:, None]  # [B, 2 sides, 2 joints]
        turn = torch.stack([wrap_angle(turn[..., 0]), turn[..., 1]], -1)  # no elbow goes round
        turn = pick(turn, turn.abs().amax(-1).argmin(-1))
        return (STIFFNESS * turn - EXPERT_DAMPING * state.arm.velocity / TERMINAL).clamp(-1, 1)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        """Every 3 to 12 steps the policy draws another torque for each joint, a third of them full;
        a quarter of the time there is none."""
        behaviour = state.behaviour
        u, keys = uniform(behaviour.keys, 4)
        torque = (SHARPNESS * (2 * u[:, :2] - 1)).clamp(-1, 1) * (u[:, 2:3] >= IDLE)
        drawn = BehaviourState(torque, integers(u[:, 3], HOLD_STEPS), keys)
        behaviour = where(behaviour.steps_left <= 0, drawn, behaviour._replace(keys=keys))
        return behaviour._replace(steps_left=behaviour.steps_left - 1), behaviour.torque

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """A full torque on one joint of an arm at rest, which takes the fingertip to the right."""
        angle = sample_angles(uniform(splitmix64(keys ^ 8), 2)[0])
        height = fingertip(angle)[:, 1]  # what is below a joint goes left as its angle grows
        heights = {"shoulder": height, "elbow": height - joint_positions(angle)[:, 0, 1]}
        joints = torch.eye(2, device=self.device).bool()
        state = self._reset_state(keys, {})._replace(arm=at_rest(angle))
        return {
            name: (state, torch.where(joint, torch.where(below > 0, -1.0, 1.0)[:, None], 0.0))
            for joint, (name, below) in zip(joints, heights.items(), strict=True)
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(2 * factors[..., :2] - 1, draw.FRAME_SIZE)

    def _draw(self, state: State) -> Tensor:
        angle, size = state.arm.angle, draw.FRAME_SIZE
        frames = draw.white_frames(self.num_envs, self.device)
        frames = draw.blend(frames, LINK_WIDTH - distance_to_links(angle, size), draw.WALL_COLOUR)
        elbow, tip = to_pixels(joint_positions(angle), size).unbind(1)
        shoulder = to_pixels(torch.zeros_like(tip), size)
        frames = draw.blend_disk(frames, shoulder, JOINT_RADIUS, JOINT_COLOUR)
        frames = draw.blend_disk(frames, elbow, JOINT_RADIUS, JOINT_COLOUR)
        frames = draw.blend_disk(frames, tip, JOINT_RADIUS, draw.AGENT_COLOUR)
        goal, radius = fingertip(state.goal), GOAL_RADIUS / EXTENT * (size - 1) / 2
        return draw.to_bytes(draw.blend_ring(frames, to_pixels(goal, size), radius))


class ReachEnv(base.SingleEnv):
    vector_env = ReachVectorEnv
