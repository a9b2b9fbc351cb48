"""Forage for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, pick, require
from .exams import exams
from .layouts import SPLITS
from .physics import FOODS
from .rendering import draw_picture, to_picture
from .states import State, advance, begin, feel, observe, read_factors, to_factors
from .tasks import TASKS, at_flag, cells
from .walks import stroll

FACTOR_NAMES = ("body x", "body y", "energy", *(f"food {i + 1}" for i in range(FOODS)))
BUDGET = 150


def _box(*low: float) -> spaces.Box:
    """From these bounds to 1."""
    return spaces.Box(np.array(low, np.float32), np.ones(len(low), np.float32))


def _obs_space() -> spaces.Dict:
    return spaces.Dict(
        {
            "body": _box(0, 0),
            "energy": _box(0),
            "food": spaces.Box(np.array([(-1, -1, 0)] * FOODS, np.float32), 1, dtype=np.float32),
            "hazard": _box(-1, -1, 0),
            "flag": _box(-1, -1),
        }
    )


class ForageVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    A body in the unit square moves by 0.05 times its action, cut back to length 1. It senses:
    "body" x, y; "energy"; "food" [2, 3] dx, dy, growth; "hazard" dx, dy, radius; "flag" dx, dy;
    dx and dy lead there from the body. Near a food it eats of what has grown the larger a share
    the nearer, and what it leaves grows on. Felt (`info["interoception"]`) are energy, which every
    step costs and food gives back, damage, which grows towards the hazard's centre, and the meal,
    how much was eaten in this step.

    The reward is 1 for every step that ends at the flag, else 0, whatever the task. Episodes end
    when the max_episode_steps is spent and never before. Option of reset: "factors" [B, 5] puts bodies,
    energies and growths; the layout stays the seed's.
    """

    description = (
        "A body (blue) lives on food (green), which grows back where it was eaten, and is hurt "
        "near the hazard (red). The bar below is its energy; the flag is a place to go to."
    )
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES
    interoception_names: ClassVar[tuple[str, ...]] = ("energy", "damage", "meal")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str = "eat",
        layouts: str = "all",
        max_episode_steps: int = BUDGET,
        errands: float = 0.6,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`task` says how an episode is judged ("score", "success") and changes nothing else.

        `layouts` are drawn without end; those of "train" and "test" come from two halves of all
        luck, told apart by one bit of it, and so are never the same. `errands` is the share of
        errands among the stretches of `behaviour_action` that aren't rest.

        Raises ValueError for a task, layouts or output that don't exist, and for a number of
        worlds, a max_episode_steps or errands that make no sense.
        """
        self.task, self.errands = pick("task", task, TASKS), errands
        self._split = pick("layouts", layouts, {name: name for name in SPLITS})
        require("errands", errands, 0, 1)
        super().__init__(
            num_envs,
            _obs_space(),
            spaces.Box(-1, 1, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def expert_action(self) -> Array:
        """What an expert in the task would do, [B, 2]. Only the flag's minds the hazard."""
        return self._out(self.task.expert(self.state))

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, 2]: drifting, on errands, at rest."""
        state = self.state
        walk, actions = stroll(state.walk, state.body, state.layout, self.errands)
        self._state = state._replace(walk=walk)
        return self._out(actions)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes against the "border", in the "open"."""
        asked = exams(self._split, seed, self.device)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: the body blue, the hazard red, food green,
        as full as it is grown, in a haze as far as a mouth reaches, the flag, and the energy below
        with a mark at one half."""
        return tuple(draw_picture(self.state).cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 5] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._out(to_picture(torch.as_tensor(factors, dtype=torch.float32)[..., :2]))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        given = options.get("factors")
        factors = None if given is None else read_factors(given, life)
        return self._judged(begin(life, self._split, factors))

    def _advance(self, state: State, actions: Tensor) -> State:
        return self._judged(advance(state, actions))

    def _judged(self, state: State) -> State:
        """The state that remembers whether its episode ever succeeded."""
        ever = state.record.ever | self.task.judge(state).success
        return state._replace(record=state.record._replace(ever=ever))

    def _observe(self, state: State) -> dict[str, Tensor]:
        return observe(state)

    def _reward(self, state: State) -> Tensor:
        return at_flag(state).float()

    def _tell(self, state: State) -> dict[str, Tensor]:
        verdict = self.task.judge(state)
        return {
            "interoception": feel(state),
            "factors": to_factors(state),
            "score": verdict.score,
            "success": state.record.ever,
            "final_success": verdict.success,
            "cells": cells(state),
            "damage": state.record.damage,
            "eaten": state.record.eaten,
        }
