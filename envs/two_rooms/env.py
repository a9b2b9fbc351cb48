"""The environment: its state, reset options, what is drawn, and the Gymnasium classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import base, draw
from ..geometry import direction
from ..rng import normal, splitmix64, uniform
from . import dynamics
from .dynamics import Arena, Motion
from .policies import (
    WALK_STEPS,
    BehaviourPolicy,
    BehaviourState,
    PublishedWalk,
    Scene,
    beside_wall,
    init_behaviour,
    next_waypoint,
)
from .variants import VARIANTS, Variant, layout_table, recorded_tasks, wander

SPLITS = {name: name for name in ("all", "train", "test")}
DISTRACTOR_COLOUR = (150, 70, 190)
DISTRACTOR_OPACITY = 0.35  # in a frame


class Distractors(NamedTuple):
    """N dots that drift in the background of B environments, whatever the agent does."""

    position: Tensor  # [B, N, 2] pixels
    velocity: Tensor  # [B, N, 2] pixels per step


class State(NamedTuple):
    position: Tensor  # [B, 2] pixels
    goal: Tensor  # [B, 2]
    layout: Tensor  # [B, 2] wall x, door y
    behaviour: BehaviourState
    walls: Tensor  # [B, S, S] uint8
    goal_obs: base.TensorObs  # [B, *O]
    distractors: Distractors
    keys: Tensor  # [B] int64, of contacts to come

    @property
    def distance(self) -> Tensor:
        """[B] pixels from the point mass to its goal."""
        return (self.position - self.goal).norm(dim=-1)


def sample_initial(
    variant: Variant, layouts: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Layouts [N, 2] to choose from, keys [B] -> start, goal and layout, [B, 2] each."""
    u, keys = uniform(keys, 4)
    layout = dynamics.sample_layouts(layouts, u[:, 0])
    if variant.goal_offset:
        tasks = recorded_tasks(variant, keys.device)
        start, goal = tasks[(u[:, 1] * len(tasks)).long()].unbind(1)
        return start, goal, layout
    start = variant.start(variant, layout, u[:, 1:])
    return start, variant.goal(variant, start, layout, keys), layout


def from_factors(arena: Arena, factors: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 4] fractions -> positions [..., 2] and layouts [..., 2], these in whole pixels."""
    pixels = (arena.low + factors * arena.side).clamp(arena.low, arena.high)
    return pixels[..., :2], pixels[..., 2:].round()


class TwoRoomsVectorEnv(base.GoalVectorEnv[State]):
    """B point masses in arenas of two rooms, each with a goal, most often in the other room.

    The variants are published protocols and our own; see `VARIANTS`. Observations are images
    [C, S, S] uint8. The action [2] is a move, in pixels times the variant's scale; actions outside
    of what the variant allows are cut back. Walls stop the point mass; in the variants of PLDM and
    EB-JEPA it rebounds at random. Factors [B, 4] set positions and layouts. Dynamics
    tests: full steps against the "wall", and through the "door"."""

    factor_names: ClassVar[tuple[str, ...]] = ("dot x", "dot y", "wall x", "door y")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        variant: str = "fixed",
        split: str = "all",
        directed_fraction: float | None = None,
        max_step: float | None = None,
        num_distractors: int = 0,
        published_data: bool = False,
        **options: Any,
    ) -> None:
        """`split` is which layouts are drawn: "all", "train" or "test". `directed_fraction` (how
        often the behaviour policy goes into the other room) replaces the variant's own. With
        `max_step`, the behaviour policy takes steps up to so many pixels, more of them long than in
        the published data. With `num_distractors`, so many dots drift in the background;
        observations and goals are then "scene", the image as without them, and "background"
        [1, S, S]. With `published_data`, episodes are those of the variant's published data: each
        is a walk, whose actions `behaviour_action` gives; `directed_fraction` of the walks cross
        the door, and a move that would meet a wall does not happen."""
        self.variant = base.choose("variant", variant, VARIANTS)
        arena, canvas, self.motion = self.variant.arena, self.variant.canvas, self.variant.motion
        self.max_episode_steps = self.variant.max_episode_steps
        if directed_fraction is None:
            directed_fraction = self.variant.directed_fraction
        base.check_range("directed_fraction", directed_fraction, 0, 1)
        base.check_range("num_distractors", num_distractors, 0, math.inf)
        self.directed_fraction, self.num_distractors = directed_fraction, num_distractors
        self.behaviour: BehaviourPolicy = self.variant.behaviour
        self.goal_radius = self.variant.goal_radius
        if max_step is not None:
            base.check_range("max_step", max_step, 1e-3, arena.side)
            self.behaviour = wander(max_step)
        self._walk: PublishedWalk | None = None
        if published_data:
            self._walk, self.motion = self._published_data(max_step, options)
            self.behaviour, self.max_episode_steps = self._walk, WALK_STEPS
        fixed = len(self.variant.layouts) == 1
        self.description = (
            "A point mass (blue) is to go to a goal (green ring). Two rooms are joined by one door;"
            " wall and door are "
            + ("the same in every episode." if fixed else "in other places in every episode.")
        )
        space: spaces.Space = canvas.space
        if num_distractors:
            background = spaces.Box(0, 255, (1, canvas.size, canvas.size), np.uint8)
            space = spaces.Dict({"scene": space, "background": background})
        bound = self.motion.bound
        super().__init__(num_envs, space, spaces.Box(-bound, bound, (2,)), **options)
        layouts = layout_table(self.variant, base.choose("split", split, SPLITS))
        self._layouts = layouts.to(self.device)

    def _published_data(
        self, max_step: float | None, options: dict[str, Any]
    ) -> tuple[PublishedWalk, Motion]:
        """The walk and the motion of the published data. Raises ValueError where there is none, or
        where other settings contradict it."""
        walk = self.variant.published_walk
        if walk is None:
            names = ", ".join(n for n, v in VARIANTS.items() if v.published_walk is not None)
            raise ValueError(f"published_data needs a variant whose data are walks: {names}")
        if max_step is not None:
            raise ValueError("max_step cannot be set with published_data: its walks have their own")
        steps = options.get("max_episode_steps")
        if steps is not None:
            base.check_range("max_episode_steps with published_data", steps, 1, WALK_STEPS)
        motion = replace(self.variant.motion, contact=dynamics.refuse, random_contact=False)
        return walk, motion

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        variant, arena, canvas = self.variant, self.variant.arena, self.variant.canvas
        position, goal, layout = sample_initial(variant, self._layouts, keys)
        walk = None
        if self._walk is not None:
            position, walk = self._walk.sample(
                arena, layout, splitmix64(keys ^ 6), self.directed_fraction
            )
        if "factors" in options:
            factors = self._read_factors("factors", options["factors"], len(keys))
            position, layout = from_factors(arena, factors)
            room = arena.half_wall + 2 * arena.clearance
            gap = layout.new_tensor([room, arena.half_door])
            fits = (layout - gap >= arena.low) & (layout + gap <= arena.high)
            message = "factors: environment {i} has no room for wall x, door y at {row}"
            base.check_rows(fits.all(-1), message, layout)
            self._check_free("factors", position, layout)
            goal = variant.goal(variant, position, layout, splitmix64(keys ^ 3))
        if "goal_factors" in options:
            factors = self._read_factors("goal_factors", options["goal_factors"], len(keys))
            goal = from_factors(arena, factors)[0]
            if not variant.goals_in_wall:
                self._check_free("goal_factors", goal, layout)
        distractors, other_moment = self._sample_distractors(splitmix64(keys ^ 4))
        walls = canvas.draw_walls(layout)
        return State(
            position=position,
            goal=goal,
            layout=layout,
            behaviour=init_behaviour(position, splitmix64(keys ^ 1), walk),
            walls=walls,
            goal_obs=self._observe_at(walls, goal, other_moment),
            distractors=distractors,
            keys=splitmix64(keys ^ 5),
        )

    def _check_free(self, name: str, position: Tensor, layout: Tensor) -> None:
        """Raises ValueError about the first environment with a position [B, 2] inside its wall."""
        message = f"{name}: in environment {{i}} the point mass at {{row}} px is inside the wall"
        base.check_rows(dynamics.is_free(self.variant.arena, position, layout), message, position)

    def _sample_distractors(self, keys: Tensor) -> tuple[Distractors, Tensor]:
        """Keys [B] -> distractors, and their positions [B, N, 2] at another moment."""
        count, size = self.num_distractors, self.variant.canvas.size
        u, keys = uniform(keys, 2 * count)
        heading, speed = 2 * math.pi * u[:, :count], self.motion.full_step * u[:, count:]
        velocity = speed.unsqueeze(-1) * direction(heading)
        position, other = (
            uniform(moment, 2 * count)[0].unflatten(-1, (count, 2)) * (size - 1)
            for moment in (keys, splitmix64(keys ^ 1))
        )
        return Distractors(position, velocity), other

    def _step_state(self, state: State, actions: Tensor) -> State:
        if not self.motion.random_contact:
            return self._step_calmly(state, actions)
        u, keys = uniform(state.keys, 2)
        return self._move(state._replace(keys=keys), actions, normal(u))

    def _step_calmly(self, state: State, actions: Tensor) -> State:
        return self._move(state, actions, None)

    def _move(self, state: State, actions: Tensor, noise: Tensor | None) -> State:
        """The next state, with noise [B, 2] of contacts. Distractors bounce off the image's
        borders."""
        move, distractors = self.motion.move(actions), state.distractors
        position = self.motion.contact(
            self.variant.arena, state.position, move, state.layout, noise
        )
        ahead, far = distractors.position + distractors.velocity, self.variant.canvas.size - 1.0
        outside = (ahead < 0) | (ahead > far)
        velocity = torch.where(outside, -distractors.velocity, distractors.velocity)
        distractors = Distractors(far - (far - ahead.abs()).abs(), velocity)
        return state._replace(position=position, distractors=distractors)

    def _observe(self, state: State) -> base.TensorObs:
        return self._observe_at(state.walls, state.position, state.distractors.position)

    def _observe_at(self, walls: Tensor, position: Tensor, distractors: Tensor) -> base.TensorObs:
        """Point masses [B, 2] and distractors [B, N, 2] -> observations [B, *O]."""
        scene = self.variant.canvas.observe(walls, position)
        if not self.num_distractors:
            return scene
        return {"scene": scene, "background": self.variant.canvas.draw_dots(distractors)}

    def _factors(self, state: State) -> Tensor:
        """Position, wall x and door y as fractions of the arena, [B, 4]."""
        pixels = torch.cat([state.position, state.layout], -1)
        return (pixels - self.variant.arena.low) / self.variant.arena.side

    def _goal_factors(self, state: State) -> Tensor:
        return self._factors(state._replace(position=state.goal))

    def _terminated(self, state: State) -> np.ndarray:
        if not self.variant.ends_at_goal:
            return super()._terminated(state)
        return self._success(state).cpu().numpy()

    def _expert(self, state: State) -> Tensor:
        arena = self.variant.arena
        goal = beside_wall(arena, state.goal, state.layout)
        waypoint = next_waypoint(arena, state.position, goal, state.layout)
        return self.motion.to_action(waypoint - state.position)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        scene = Scene(state.position, state.goal, state.layout)
        behaviour = self.behaviour.step(
            self.variant.arena, scene, state.behaviour, self.directed_fraction
        )
        return behaviour, self.motion.to_action(behaviour.last_move)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right, from 0.2 to 2 of them before the wall, or the door."""
        arena, motion = self.variant.arena, self.motion
        u, _ = uniform(keys, 3)
        layout = dynamics.sample_layouts(self._layouts, u[:, 0])
        x = layout[:, 0] - arena.half_wall - motion.full_step * (0.2 + 1.8 * u[:, 1])
        action = u.new_tensor([motion.bound, 0.0]).expand(len(keys), -1)
        state = self._reset_state(keys, {})._replace(
            layout=layout,
            walls=self.variant.canvas.draw_walls(layout),
            distractors=self._sample_distractors(keys)[0],
        )
        return {
            name: (state._replace(position=torch.stack([x, y], -1)), action)
            for name, y in {
                "wall": dynamics.beside_door(arena, layout, u[:, 2]),
                "door": dynamics.in_door(arena, layout, u[:, 2]),
            }.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return self.variant.canvas.to_pixels(from_factors(self.variant.arena, factors)[0])

    def _draw(self, state: State) -> Tensor:
        canvas, pixels = self.variant.canvas, draw.frame_pixels(self.device)
        zoom = draw.FRAME_SIZE / canvas.size
        dot_radius = 1.2 * zoom * canvas.dot_std
        source = ((pixels + 0.5) / zoom).long().clamp(max=canvas.size - 1)
        frames = draw.white_frames(self.num_envs, self.device)
        for centre in state.distractors.position.unbind(1):
            depth = dot_radius - draw.pixel_distance(pixels, canvas.to_pixels(centre))
            depth = depth.clamp(max=DISTRACTOR_OPACITY - 0.5)
            frames = draw.blend(frames, depth, DISTRACTOR_COLOUR)
        wall_depth = state.walls[:, source][:, :, source].float() / 255 - 0.5
        frames = draw.blend(frames, wall_depth, draw.WALL_COLOUR)
        goal, position = canvas.to_pixels(state.goal), canvas.to_pixels(state.position)
        frames = draw.blend_ring(frames, goal, zoom * self.goal_radius)
        return draw.to_bytes(draw.blend_disk(frames, position, dot_radius, draw.AGENT_COLOUR))


class TwoRoomsEnv(base.SingleEnv):
    vector_env = TwoRoomsVectorEnv
