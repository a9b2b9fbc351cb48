"""Two Rooms for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, pick, require
from ..chance import keys_of
from .background import Backdrop, Blobs, Nothing, set_adrift
from .exams import exams
from .policies import next_waypoint
from .rendering import draw_picture, observe, to_picture
from .states import State, begin, choose, conceive, from_factors, move, to_factors
from .variants import VARIANTS, Variant, table, wander

FACTOR_NAMES = ("dot x", "dot y", "wall x", "door y")
SPLITS = {name: name for name in ("all", "train", "test")}


def _scene_space(variant: Variant) -> spaces.Box:
    canvas = variant.canvas
    return spaces.Box(0, 255, (canvas.channels, canvas.size, canvas.size), np.uint8)


def _about(variant: Variant) -> str:
    same = len(variant.layouts) == 1
    where = "the same in every episode" if same else "elsewhere in every episode"
    return (
        "A dot (blue) is to go to a goal (green ring). Two rooms are joined by one door; wall and "
        f"door are {where}."
    )


def _action_space(variant: Variant) -> spaces.Box:
    bound = variant.motion.bound
    return spaces.Box(-bound, bound, (2,), np.float32)


class TwoRoomsVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    Lengths are pixels. Actions that reach beyond the space are cut back to what the variant allows.
    Options of reset: "factors" [B, 4] puts dots and layouts, "goal_factors" [B, 4] puts goals.
    """

    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES

    def __init__(
        self,
        num_envs: int = 1,
        *,
        variant: str = "fixed",
        layouts: str = "all",
        max_episode_steps: int | None = None,
        errands: float | None = None,
        stride: float | None = None,
        distraction: int = 0,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`max_episode_steps` and `errands` stand in for the variant's own; `stride` for the walk's longest
        step in pixels, with more long steps than in the published walks. With a `distraction`, so
        many blobs drift about in the background: observations and goals are then "scene", the
        image that is otherwise all, and "background" [B, 1, S, S].

        Raises ValueError for a variant, layouts or output that don't exist, and for a number of
        worlds, a max_episode_steps, errands, a stride or a distraction that make no sense.
        """
        self.variant = pick("variant", variant, VARIANTS)
        require("distraction", distraction, 0, math.inf)
        self.distraction = distraction
        self._backdrop: Backdrop = Blobs(self.variant.canvas) if distraction else Nothing()
        self.description = _about(self.variant)
        super().__init__(
            num_envs,
            self._backdrop.space(_scene_space(self.variant)),
            _action_space(self.variant),
            max_episode_steps=self.variant.max_episode_steps
            if max_episode_steps is None
            else max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )
        self.judged = self.variant.judged
        self.errands = self.variant.errands if errands is None else errands
        self.walker = self.variant.walker if stride is None else wander(stride)
        require("errands", self.errands, 0, 1)
        require("stride", 1.0 if stride is None else stride, 1e-3, self.variant.arena.side)
        self._rows = table(self.variant, pick("layouts", layouts, SPLITS)).to(self.device)

    def expert_action(self) -> Array:
        """The longest allowed step along the shortest way to the goal, [B, 2]."""
        state = self.state
        waypoint = next_waypoint(self.variant.arena, state.position, state.goal, state.layout)
        return self._out(self.variant.motion.towards(waypoint - state.position))

    def behaviour_action(self) -> Array:
        """One more step of each world's own aimless walk, [B, 2]."""
        state = self.state
        walk = self.walker(self.variant.arena, state.scene, state.walk, self.errands)
        self._state = state._replace(walk=walk)
        return self._out(self.variant.motion.towards(walk.last))

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes against the "wall", through the "door"."""
        asked = exams(self.variant, self._rows, seed)
        return {name: self._asked(self._behind(exam, seed)) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: dot blue, goal a green ring of success, blobs in
        the background pale violet."""
        state, variant = self.state, self.variant
        pictures = draw_picture(
            variant.canvas,
            state.walls,
            state.position,
            state.goal,
            variant.radius,
            state.blobs.place,
        )
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 4] -> the dot's `(x, y)` in the picture's pixels, [..., 2]."""
        read = torch.as_tensor(factors, dtype=torch.float32)
        position, _ = from_factors(self.variant.arena, read)
        return self._out(to_picture(self.variant.canvas, position))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        birth = choose(self.variant, conceive(self.variant, self._rows, life), options, life)
        return begin(self.variant, birth, life, self.distraction)

    def _advance(self, state: State, actions: Tensor) -> State:
        return move(self.variant, state, actions)

    def _reward(self, state: State) -> Tensor:
        return self._within(state).float()

    def _within(self, state: State) -> Tensor:
        return state.distance < self.variant.radius

    def _observe(self, state: State) -> Seen:
        scene = observe(self.variant.canvas, state.walls, state.position)
        return self._backdrop.view(scene, state.blobs)

    def _behind(self, exam: DynamicsTest, seed: int) -> DynamicsTest:
        """The exam with some background behind what is seen in it."""
        keys = keys_of(range(seed, seed + len(exam.obs)), self.device)
        canvas, fastest = self.variant.canvas, self.variant.motion.reach
        blobs = set_adrift(canvas, self.distraction, fastest, keys)
        return exam._replace(obs=self._backdrop.view(exam.obs, blobs))

    def _tell(self, state: State) -> dict[str, Seen]:
        arena = self.variant.arena
        return {
            "goal": self._backdrop.goal(state.goal_obs, state.blobs),
            "factors": to_factors(arena, state.position, state.layout),
            "goal_factors": to_factors(arena, state.goal, state.layout),
            "distance": state.distance,
            "success": state.ever,
            "final_success": self._within(state),
        }
