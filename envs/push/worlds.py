"""Push for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, pick, require
from .exams import exams
from .experts import push
from .physics import Table
from .rendering import draw_picture, to_picture
from .senses import SENSES
from .states import REACHED, State, advance, begin, to_factors
from .walks import stroll

FACTOR_NAMES = (
    *("hand x", "hand y", "block x", "block y"),
    *("hand velocity x", "hand velocity y", "block velocity x", "block velocity y"),
)
BUDGET = 60


class PushVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    A table, the unit square, seen from above and moved by MuJoCo. A hand, a disk of radius 0.04,
    keeps 0.6 of its velocity from step to step, and its action, cut back to length 1, is a force on
    it: 0.06 a step is as fast as it gets. On the table is a block, a disk of radius 0.07, that
    slides where the hand pushes it and soon comes to rest. A rim keeps it so far from the table's
    edge that the hand fits behind it.

    The goal is a place for the block; where the hand is doesn't matter. What the goal tells is a
    moment in which the block has been pushed there by the straight way, the hand right behind it.
    Episodes end when the max_episode_steps is spent and never before. The reward is 1 for every step that ends
    with the block nearer to its goal than 0.06, which is less than its radius: 3 cm on a table of
    half a metre. Options of reset: "factors" [B, 8] puts things, "goal_factors" [B, 8] puts goals.
    """

    description = "A hand (blue) is to push a block (yellow) to a goal (green ring)."
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES

    def __init__(
        self,
        num_envs: int = 1,
        *,
        senses: str = "state",
        max_episode_steps: int = BUDGET,
        errands: float = 0.7,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`senses` are the "state" [8], places of hand and block and how fast they move, or an
        "image" [4, 32, 32], hand, block, and both one step earlier. `errands` is the share of
        stretches of `behaviour_action` that lead to some place round the block.

        Raises ValueError for names that don't exist, and for numbers that make no sense;
        ImportError where there is no MuJoCo.
        """
        require("errands", errands, 0, 1)
        self.errands, self.senses = errands, pick("senses", senses, SENSES)()
        self.table = Table()
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
        """What one who knows how to push would do, [B, 2]."""
        return self._out(push(self.state.things, self.state.goal.block))

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, 2]: forces held for a while, and errands to
        and through the block."""
        walk, actions = stroll(self.state.walk, self.state.things, self.errands)
        self._state = self.state._replace(walk=walk)
        return self._out(actions)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes against the "block", and in the "open"."""
        asked = exams(self.table, self.senses, seed, self.device)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: the hand blue, the block yellow, the goal a green
        ring of success about the place for its middle."""
        pictures = draw_picture(self.state.things, self.state.goal.block, REACHED)
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 8] -> the hand's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._out(to_picture(torch.as_tensor(factors, dtype=torch.float32)[..., :2]))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        return begin(self.senses, life, options)

    def _advance(self, state: State, actions: Tensor) -> State:
        return advance(self.table, state, actions)

    def _observe(self, state: State) -> Seen:
        return self.senses.sense(state.things)

    def _reward(self, state: State) -> Tensor:
        return state.there.float()

    def _tell(self, state: State) -> dict[str, Seen]:
        return {
            "goal": state.goal_obs,
            "factors": to_factors(state.things),
            "goal_factors": to_factors(state.goal),
            "distance": state.distance,
            "success": state.ever,
            "final_success": state.there,
        }
