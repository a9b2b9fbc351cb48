"""Reach for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, pick
from ..picture import PICTURE
from .arms import fingertip, resting
from .exams import exams
from .experts import bring
from .physics import Arms
from .rendering import draw_picture, to_pixels
from .senses import SENSES
from .states import REACHED, State, advance, begin, to_factors
from .walks import stroll

FACTOR_NAMES = (
    *("fingertip x", "fingertip y", "elbow x", "elbow y"),
    *("shoulder velocity", "elbow velocity"),
)
BUDGET = 40


class ReachVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    An arm of two equal links, seen from above and moved by MuJoCo. The action, cut back to [-1, 1],
    is a torque on shoulder and elbow, which friction slows down; each by itself comes to 0.3
    radians a step, and one throws the other about. The shoulder turns all the way round, the elbow
    2.6 radians either way.

    The goal is a place for the fingertip, and what it tells is an arm at rest whose fingertip is
    there; another arm may reach it too, its elbow bent to the other side. Episodes end when the
    max_episode_steps is spent and never before. The reward is 1 for every step that ends nearer to the goal
    than 0.05 of the arm's length. Options of reset: "factors" [B, 6] puts arms, "goal_factors"
    [B, 6] puts goals.
    """

    description = "An arm of two links is to bring its fingertip (blue) to a goal (green ring)."
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES

    def __init__(
        self,
        num_envs: int = 1,
        *,
        senses: str = "state",
        max_episode_steps: int = BUDGET,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`senses` are the "state" [6], cosines of shoulder and elbow, their sines and how fast
        they turn, or an "image" [2, 32, 32], the arm and the arm one step earlier.

        Raises ValueError for names that don't exist, and for numbers that make no sense;
        ImportError where there is no MuJoCo.
        """
        self.senses = pick("senses", senses, SENSES)()
        self.arms = Arms()
        super().__init__(
            num_envs,
            self.senses.space(),
            spaces.Box(-1, 1, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def expert_action(self) -> Array:
        """What one who knows the arm would do, [B, 2]."""
        return self._out(bring(self.state.arm, fingertip(self.state.goal)))

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, 2]: torques held for a while, and rest."""
        walk, actions = stroll(self.state.walk)
        self._state = self.state._replace(walk=walk)
        return self._out(actions)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: a torque on the "shoulder", or on the "elbow"."""
        asked = exams(self.arms, self.senses, seed, self.device)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: the fingertip blue, the goal a green ring of
        success."""
        pictures = draw_picture(self.state.arm.angle, fingertip(self.state.goal), REACHED)
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 6] -> the fingertip's `(x, y)` in the picture's pixels, [..., 2]."""
        read = torch.as_tensor(factors, dtype=torch.float32)
        return self._out(to_pixels(2 * read[..., :2] - 1, PICTURE))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        return begin(self.senses, life, options)

    def _advance(self, state: State, actions: Tensor) -> State:
        return advance(self.arms, state, actions)

    def _observe(self, state: State) -> Seen:
        return self.senses.sense(state.arm)

    def _reward(self, state: State) -> Tensor:
        return state.there.float()

    def _tell(self, state: State) -> dict[str, Seen]:
        return {
            "goal": state.goal_obs,
            "factors": to_factors(state.arm),
            "goal_factors": to_factors(resting(state.goal)),
            "distance": state.distance,
            "success": state.ever,
            "final_success": state.there,
        }
