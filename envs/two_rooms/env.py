"""The environment: its state, reset options, dynamics tests, and the Gymnasium classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..rng import keys_from_seeds, splitmix64, uniform
from ..single_env import SingleEnv
from ..vector_env import (
    NUM_TESTS,
    DynamicsTest,
    GoalVectorEnv,
    TensorObs,
    check_range,
    check_rows,
    choose,
    read_factors,
    repeated,
    rounded,
    run_test,
)
from .dynamics import (
    Arena,
    beside_door,
    in_door,
    is_free,
    right_room_fraction,
    sample_in_room,
    sample_layouts,
)
from .policies import BehaviourState, Scene, init_behaviour, next_waypoint
from .render import (
    Background,
    DistractorBackground,
    Distractors,
    NoBackground,
    draw_frames,
    draw_walls,
    observe,
    sample_distractors,
    step_distractors,
    to_pixels,
)
from .variants import VARIANTS, Variant, layout_table, wander

SPLITS = {name: name for name in ("all", "train", "test")}


class State(NamedTuple):
    """The state of B environments."""

    position: Tensor  # [B, 2] pixels
    goal: Tensor  # [B, 2]
    goal_radius: Tensor  # [B]
    layout: Tensor  # [B, 2] wall x, door y
    succeeded: Tensor  # [B] bool: the goal was reached in this episode
    behaviour: BehaviourState
    next_key: Tensor  # [B] int64: the random key of the next episode
    walls: Tensor  # [B, S, S] uint8
    goal_obs: Tensor  # [B, C, S, S] uint8, without the background
    distractors: Distractors

    @property
    def scene(self) -> Scene:
        return Scene(self.position, self.layout)

    @property
    def distance(self) -> Tensor:
        """[B] pixels from the point mass to its goal."""
        return (self.position - self.goal).norm(dim=-1)

    @property
    def at_goal(self) -> Tensor:
        """[B] bool."""
        return self.distance < self.goal_radius


class InitialConditions(NamedTuple):
    """How episodes begin, as drawn or as a user sets it."""

    position: Tensor  # [B, 2]
    goal: Tensor  # [B, 2]
    layout: Tensor  # [B, 2]


def sample_initial(variant: Variant, layouts: Tensor, keys: Tensor) -> InitialConditions:
    """Layouts [N, 2] to choose from, keys [B] -> layout, start and goal."""
    u, keys = uniform(keys, 4)
    layout = sample_layouts(layouts, u[:, 0])
    right = u[:, 1] < right_room_fraction(variant.arena, layout)
    start = sample_in_room(variant.arena, layout, right, u[:, 2:])
    return InitialConditions(start, variant.goal(variant, start, layout, keys), layout)


def reset_state(
    variant: Variant, initial: InitialConditions, keys: Tensor, num_distractors: int = 0
) -> State:
    """The first state of the episodes of keys [B]."""
    walls = draw_walls(variant.canvas, variant.arena, initial.layout)
    max_speed = variant.motion.full_step
    state = State(
        position=initial.position,
        goal=initial.goal,
        goal_radius=torch.full_like(initial.goal[:, 0], variant.goal_radius),
        layout=initial.layout,
        succeeded=torch.zeros_like(keys, dtype=torch.bool),
        behaviour=init_behaviour(initial.position, splitmix64(keys ^ 1)),
        next_key=splitmix64(keys ^ 2),
        walls=walls,
        goal_obs=observe(variant.canvas, walls, initial.goal),
        distractors=sample_distractors(
            variant.canvas, num_distractors, max_speed, splitmix64(keys ^ 4)
        ),
    )
    return state._replace(succeeded=state.at_goal)


def step_state(variant: Variant, state: State, actions: Tensor) -> State:
    """Actions [B, 2] in units of the action space -> the state one step later."""
    move = variant.motion.move(actions)
    position = variant.motion.contact(variant.arena, state.position, move, state.layout)
    distractors = step_distractors(variant.canvas, state.distractors)
    state = state._replace(position=position, distractors=distractors)
    return state._replace(succeeded=state.succeeded | state.at_goal)


def to_factors(arena: Arena, position: Tensor, layout: Tensor) -> Tensor:
    """Pixels [..., 2] and [..., 2] -> position, wall x, door y as fractions, [..., 4]."""
    return (torch.cat([position, layout], -1) - arena.low) / arena.side


def from_factors(arena: Arena, factors: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 4] fractions -> positions [..., 2] and layouts [..., 2], these in whole pixels."""
    pixels = (arena.low + factors * arena.side).clamp(arena.low, arena.high)
    return pixels[..., :2], pixels[..., 2:].round()


def read_fractions(name: str, factors: object, like: Tensor) -> Tensor:
    """A user's factors [B, 4]. Raises ValueError where they aren't fractions of the arena."""
    read = read_factors(name, factors, (len(like), 4), like.device)
    if not bool(((read >= 0) & (read <= 1)).all()):
        raise ValueError(f"{name} must be fractions of the arena, each in [0, 1]")
    return read


def check_free(arena: Arena, name: str, position: Tensor, layout: Tensor) -> None:
    """Raises ValueError about the first environment with a position [B, 2] inside its wall."""
    check_rows(
        is_free(arena, position, layout),
        lambda i: (
            f"{name}: in environment {i} the point mass at {rounded(position[i], 2)} px "
            "is inside the wall"
        ),
    )


def check_layout(arena: Arena, layout: Tensor) -> None:
    """Raises ValueError about the first environment whose layout [B, 2] leaves no two rooms and a
    door."""
    room = arena.half_wall + 2 * arena.clearance
    gap = torch.tensor([room, arena.half_door], device=layout.device)
    fits = (layout - gap >= arena.low) & (layout + gap <= arena.high)
    check_rows(
        fits.all(-1),
        lambda i: (
            f"factors: environment {i} has no room for wall x, door y at {layout[i].tolist()}"
        ),
    )


def with_options(
    variant: Variant, initial: InitialConditions, options: dict[str, Any], keys: Tensor
) -> InitialConditions:
    """The initial conditions with a user's reset options "factors" and "goal_factors"."""
    arena = variant.arena
    if "factors" in options:
        factors = read_fractions("factors", options["factors"], keys)
        position, layout = from_factors(arena, factors)
        check_layout(arena, layout)
        check_free(arena, "factors", position, layout)
        goal = variant.goal(variant, position, layout, splitmix64(keys ^ 3))
        initial = InitialConditions(position, goal, layout)
    if "goal_factors" in options:
        factors = read_fractions("goal_factors", options["goal_factors"], keys)
        initial = initial._replace(goal=from_factors(arena, factors)[0])
        check_free(arena, "goal_factors", initial.goal, initial.layout)
    return initial


def describe(variant: Variant) -> str:
    """What a person sees and what the agent is to do."""
    fixed = len(variant.layouts) == 1
    where = "the same in every episode" if fixed else "in other places in every episode"
    return (
        "A point mass (blue) is to go to a goal (green ring). Two rooms are joined by one door; "
        f"wall and door are {where}."
    )


class TwoRoomsVectorEnv(GoalVectorEnv[State]):
    """B point masses in arenas of two rooms, each with a goal, most often in the other room.

    The variants are published protocols and our own; see `VARIANTS`. Observations are images
    [C, S, S] uint8. The action [2] is a move, in pixels times the variant's scale; actions outside
    of what the variant allows are cut back. The reward is 1 for every step that ends at the goal,
    else 0. Reset options: "factors" [B, 4] sets positions and layouts, "goal_factors" [B, 4] sets
    goals. Dynamics tests: full steps against the "wall", and through the "door".
    """

    factor_names: ClassVar[tuple[str, ...]] = ("dot x", "dot y", "wall x", "door y")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        variant: str = "fixed",
        split: str = "all",
        max_episode_steps: int | None = None,
        directed_fraction: float | None = None,
        max_step: float | None = None,
        num_distractors: int = 0,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`split` is which layouts are drawn: "all", "train" or "test". `max_episode_steps` and
        `directed_fraction` (how often the behaviour policy goes into the other room) replace the
        variant's own. With `max_step`, the behaviour policy takes steps up to so many pixels, more
        of them long than in the published data. With `num_distractors`, so many dots drift in the
        background; observations and goals are then "scene", the image as without them, and
        "background" [1, S, S].

        Raises ValueError for names that don't exist and for numbers out of range.
        """
        self.variant = choose("variant", variant, VARIANTS)
        check_range("num_distractors", num_distractors, 0, math.inf)
        self.num_distractors = num_distractors
        canvas, bound = self.variant.canvas, self.variant.motion.bound
        self._background: Background = (
            DistractorBackground(canvas) if num_distractors else NoBackground()
        )
        self.description = describe(self.variant)
        super().__init__(
            num_envs,
            self._background.space(canvas.space),
            spaces.Box(-bound, bound, (2,), np.float32),
            max_episode_steps=(
                self.variant.max_episode_steps if max_episode_steps is None else max_episode_steps
            ),
            device=device,
            output=output,
            render_mode=render_mode,
        )
        self.success_at = self.variant.success_at
        self.directed_fraction = (
            self.variant.directed_fraction if directed_fraction is None else directed_fraction
        )
        self.behaviour = self.variant.behaviour if max_step is None else wander(max_step)
        check_range("directed_fraction", self.directed_fraction, 0, 1)
        check_range(
            "max_step", 1.0 if max_step is None else max_step, 1e-3, self.variant.arena.side
        )
        layouts = layout_table(self.variant, choose("split", split, SPLITS))
        self._layouts = layouts.to(self.device)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        initial = sample_initial(self.variant, self._layouts, keys)
        initial = with_options(self.variant, initial, options, keys)
        return reset_state(self.variant, initial, keys, self.num_distractors)

    def _step_state(self, state: State, actions: Tensor) -> State:
        return step_state(self.variant, state, actions)

    def _observe(self, state: State) -> TensorObs:
        scene = observe(self.variant.canvas, state.walls, state.position)
        return self._background.observe(scene, state.distractors)

    def _factors(self, state: State) -> Tensor:
        return to_factors(self.variant.arena, state.position, state.layout)

    def _goal_factors(self, state: State) -> Tensor:
        return to_factors(self.variant.arena, state.goal, state.layout)

    def _info(self, state: State) -> dict[str, TensorObs]:
        goal = self._background.observe_goal(state.goal_obs, state.distractors)
        return {**super()._info(state), "goal": goal}

    def _expert(self, state: State) -> Tensor:
        waypoint = next_waypoint(self.variant.arena, state.position, state.goal, state.layout)
        return self.variant.motion.to_action(waypoint - state.position)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        behaviour = self.behaviour(
            self.variant.arena, state.scene, state.behaviour, self.directed_fraction
        )
        return behaviour, self.variant.motion.to_action(behaviour.last_move)

    def _dynamics_tests(self, seed: int) -> dict[str, DynamicsTest]:
        """Full steps to the right, from 0.2 to 2 of them before the wall, beside the door and in
        front of it."""
        arena, canvas, motion = self.variant.arena, self.variant.canvas, self.variant.motion
        keys = keys_from_seeds(range(seed, seed + NUM_TESTS), self.device)
        u, _ = uniform(keys, 3)
        layout = sample_layouts(self._layouts, u[:, 0])
        walls = draw_walls(canvas, arena, layout)
        x = layout[:, 0] - arena.half_wall - motion.full_step * (0.2 + 1.8 * u[:, 1])
        actions = repeated([motion.bound, 0.0], NUM_TESTS, self.device)
        distractors = sample_distractors(canvas, self.num_distractors, motion.full_step, keys)
        return {
            name: run_test(
                torch.stack([x, height(arena, layout, u[:, 2])], -1),
                actions,
                lambda start, action: motion.contact(arena, start, motion.move(action), layout),
                lambda position: self._background.observe(
                    observe(canvas, walls, position), distractors
                ),
                lambda position: to_factors(arena, position, layout),
            )
            for name, height in {"wall": beside_door, "door": in_door}.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(self.variant.canvas, from_factors(self.variant.arena, factors)[0])

    def _draw(self, state: State) -> Tensor:
        return draw_frames(
            self.variant.canvas,
            state.walls,
            state.position,
            state.goal,
            self.variant.goal_radius,
            state.distractors,
        )


class TwoRoomsEnv(SingleEnv[TwoRoomsVectorEnv]):
    """One environment of `TwoRoomsVectorEnv`."""

    vector_env = TwoRoomsVectorEnv

    @property
    def success_at(self) -> str:
        """Whether an episode succeeds at its "final" step or at any, "ever"."""
        return self._envs.success_at
