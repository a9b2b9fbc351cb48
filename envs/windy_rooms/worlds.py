"""Windy Rooms for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, pick, require
from .exams import exams
from .experts import round_pit
from .layouts import PASSES, STARTS, draw_pit
from .physics import LONGEST_GUST, Wind
from .rendering import draw_picture, to_picture
from .senses import SENSES
from .states import REACHED, State, advance, begin
from .walks import stroll

BUDGET = 60
CLEAR = 0.02  # what an expert leaves between the pit and where a gust can throw it


class WindyRoomsVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    A body in the unit square moves by 0.05 times its action, cut back to length 1. Then, now and
    then, a gust of wind throws it in any direction, on average nowhere. Walls stop bodies. Amid
    them is a pit, with a room on either side and a pass above and below: whoever crosses its border
    has fallen, and stays there for the rest of the episode, unless it can wade. Starts are in one
    room, goals in the other.

    Episodes end when the max_episode_steps is spent and never before. The reward is 1 for every step that ends
    nearer than 0.06 to the goal, else 0. Felt (`info["interoception"]`) is "fallen", 1 in the pit,
    else 0. Options of reset: "factors" [B, 2] puts bodies, "goal_factors" [B, 2] puts goals.
    """

    description = (
        "A body (blue) is to go from one room to a goal (green ring) in the other, past a pit "
        "(dark) between them. Gusts of wind throw it about; who falls into the pit stays there."
    )
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y")
    interoception_names: ClassVar[tuple[str, ...]] = ("fallen",)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        layout: int = 0,
        passes: str = "wide",
        wind: float = 0.2,
        gust: float = 0.1,
        wade: float = 0.0,
        starts: str = "rooms",
        senses: str = "state",
        max_episode_steps: int = BUDGET,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`layout` is the number that the pit, one for all, is drawn from. `passes` beside it are
        both "wide"; or the upper one is a "ledge", narrower than the default gust: the short way,
        as starts in rooms and goals then lie beside it, and a gamble. `wind` is the chance of a
        gust in a step and `gust` its length. `wade` is the share of a step that whoever is in the
        pit still moves by: 0, and nobody comes out. `starts` are in "rooms", or "anywhere" but in
        the pit. `senses` are the "state" [2], x and y from -1 to 1, or an "image" [2, 32, 32], body
        and pit.

        Raises ValueError for names that don't exist, and for numbers that make no sense.
        """
        require("layout", layout, 0, math.inf)
        require("wind", wind, 0, 1)
        require("gust", gust, 0, LONGEST_GUST)
        require("wade", wade, 0, 1)
        self.wade = wade
        self.wind, self.starts = Wind(wind, gust), pick("starts", starts, STARTS)
        self.passes = pick("passes", passes, PASSES)
        self.pit = draw_pit(layout, torch.device(device), self.passes)
        self.senses = pick("senses", senses, SENSES)(self.pit)
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
        """What one who knows the world would do, [B, 2]: no single gust is its downfall."""
        state = self.state
        return self._out(round_pit(self.pit, state.body, state.goal, self.wind.length + CLEAR))

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, which takes no notice of the pit, [B, 2]."""
        walk, actions = stroll(self.state.walk)
        self._state = self.state._replace(walk=walk)
        return self._out(actions)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes in the "open" and along the pit's "edge",
        while there is no wind."""
        asked = exams(self.pit, self.senses, seed)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: body blue, pit dark, goal a green ring of
        success."""
        pictures = draw_picture(self.pit, self.state.body, self.state.goal, REACHED)
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 2] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._out(to_picture(torch.as_tensor(factors, dtype=torch.float32)))

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        return begin(self.pit, self.starts, self.passes.bottom, self.senses, life, options)

    def _advance(self, state: State, actions: Tensor) -> State:
        return advance(self.pit, self.wind, self.wade, state, actions)

    def _observe(self, state: State) -> Tensor:
        return self.senses.sense(state.body)

    def _reward(self, state: State) -> Tensor:
        return state.there.float()

    def _tell(self, state: State) -> dict[str, Seen]:
        return {
            "interoception": state.fallen.float()[:, None],
            "goal": state.goal_obs,
            "factors": state.body,
            "goal_factors": state.goal,
            "distance": state.distance,
            "fallen": state.fallen,
            "success": state.ever,
            "final_success": state.there,
        }
