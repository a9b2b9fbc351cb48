"""The cue corridor for Gymnasium: many worlds stepped as one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..batched import Array, BatchedEnv, DynamicsTest, Seen, require
from ..plane import shrink_to_disk
from .corridor import SIZE, STEP, is_lit, slide
from .exams import exams
from .rendering import draw_picture, observe, to_picture
from .states import State, conceive, place
from .walks import next_waypoint, wander


class CueCorridorVectorEnv(BatchedEnv[State]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    An episode ends at the end of either arm; the reward is 1 if that is the cued arm. The cue is
    seen from the first fifth of the stem and, unless `visible`, from nowhere else. Actions beyond
    the unit disk are shortened to it. Option of reset: "factors" [B, 3] puts bodies and cues.
    """

    description = (
        "A body (blue) walks up a corridor that forks. A cue (amber) says which arm is the right "
        "one, and is seen near the start alone."
    )
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y", "cue")
    interoception_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int = 40,
        errands: float = 0.8,
        visible: bool = False,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`errands` is the chance that a walk goes, for a whole episode, into an arm of its own
        choice, and not nowhere.

        Raises ValueError for an output that doesn't exist, and for a number of worlds, a max_episode_steps
        or errands that make no sense.
        """
        super().__init__(
            num_envs,
            spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8),
            spaces.Box(-1, 1, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )
        require("errands", errands, 0, 1)
        self.errands, self.visible = errands, visible

    def expert_action(self) -> Array:
        """The longest allowed step up the stem or into the cued arm, [B, 2]."""
        state = self.state
        return self._towards(next_waypoint(state.position, state.cue) - state.position)

    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, which takes no notice of the cue, [B, 2]."""
        walk = wander(self.state.position, self.state.walk)
        self._state = self.state._replace(walk=walk)
        return self._towards(walk.last)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model: pushes to the right, against the "wall" of the
        stem and into the "open" arm."""
        asked = exams(seed, self.device, self.visible)
        return {name: self._asked(exam) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: body blue, cue amber and, where the body doesn't
        see it, pale; the right end green, the wrong one red."""
        state = self.state
        pictures = draw_picture(state.position, state.cue, self._seen(state))
        return tuple(pictures.cpu().numpy())

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., 3] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""
        return self._out(to_picture(torch.as_tensor(factors, dtype=torch.float32)))

    def _towards(self, move: Tensor) -> Array:
        return self._out(shrink_to_disk(move / STEP, 1.0))

    def _seen(self, state: State) -> Tensor:
        return is_lit(state.position) | self.visible

    def _begin(self, life: Tensor, options: dict[str, Any]) -> State:
        state = conceive(life, self.errands)
        return place(state, options["factors"]) if "factors" in options else state

    def _advance(self, state: State, actions: Tensor) -> State:
        moves = STEP * shrink_to_disk(actions, 1.0)
        return state._replace(position=slide(state.position, moves))

    def _observe(self, state: State) -> Tensor:
        return observe(state.position, state.cue, self._seen(state))

    def _reward(self, state: State) -> Tensor:
        return state.success.float()

    def _terminated(self, state: State) -> np.ndarray:
        return state.over.cpu().numpy()

    def _tell(self, state: State) -> dict[str, Seen]:
        return {
            "factors": state.factors,
            "success": state.success,
            "final_success": state.success,
            "score": state.success.float(),
        }
