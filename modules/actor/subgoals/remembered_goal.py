"""A level above that takes the best remembered state as the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from modules.actor.subgoals.base import LevelInfo
from modules.types import WEIGHT, LatentRolloutFn, MapShape, QuasimetricFns, Settings, TaskContext


@dataclass(frozen=True, kw_only=True)
class RememberedGoalConfig(Settings):
    weight: Annotated[float, WEIGHT] = 5.0
    """Weight of the distance to the goal in representation space."""

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> RememberedGoal:
        return RememberedGoal(self)


class RememberedGoal:
    """The goal is the remembered state of least cost, the way there included (LeCun 2022, 4.7: a
    level above states subgoals; Pritzel et al. 2017: what it knows of them is in a memory of states
    and values). Where nothing is remembered that is better than nothing, there is no goal."""

    learned_levels: Sequence[LevelInfo] = ()
    description = (
        "The level above remembers states of earlier episodes and the cost that followed. The one "
        "of least cost is the goal of the level below."
    )

    def __init__(self, config: RememberedGoalConfig) -> None:
        self.config = config

    def initial_carry(self, seed: int) -> None:
        """The level carries nothing: what it knows is in lasting memory."""

    def __call__(self, state: Tensor, context: TaskContext, carry: Any) -> tuple[TaskContext, Any]:
        """`[B, D]` -> the context with the remembered state as its goal."""
        memory = context.remembered
        if memory is None:
            return context, carry
        energies = memory.energies(state[:, None])[:, 0, :-1]
        least, best = energies.min(1)
        has_goal = least < 0
        rows = torch.arange(len(state), device=state.device)
        found = memory.states[rows, best]
        goal = torch.where(has_goal[:, None], found, state)
        weights = {**context.weights, "goal_distance": self.config.weight}
        return context._replace(
            goal=goal, has_goal=has_goal, weights=weights, upper_plans=goal[:, None, None]
        ), carry
