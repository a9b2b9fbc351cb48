"""Configurator: takes the task and sets every other box for it (LeCun 2022, 3.1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from modules.types import Focus, Observation, UnusableInput, require


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is wanted, in the user's words."""

    goal: Observation
    """`[B, *O]`: what the senses would deliver if it were done."""
    mode: str = "plan"
    """"react" (Mode-1) or "plan" (Mode-2)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Cost weights that differ from the agent's own, by name."""
    horizon: int = 0
    """Imagined steps; 0 leaves it to the planner."""
    steps: int = 0
    """Planning budget: improvements of a cold plan; 0 leaves it to the planner."""


class Configurator:
    """Turns a task into a Focus. The goal is encoded once, when the task is given."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        reach: float = 0.0
        """u: weight of the latent distance to the goal."""
        effort: float = 0.0
        """u: weight of the squared length of the actions."""
        critic: float = 1.0
        """v: weight of the steps still to go."""

        def __post_init__(self) -> None:
            require(self, reach=0, effort=0, critic=0)

        def build(self, horizon: int, steps: int, modes: tuple[str, ...]) -> Configurator:
            return Configurator(self, horizon, steps, modes)

    def __init__(self, config: Config, horizon: int, steps: int, modes: tuple[str, ...]) -> None:
        self.weights = {
            "reach": config.reach,
            "effort": config.effort,
            "critic": config.critic,
        }
        self.horizon, self.steps, self.modes = horizon, steps, modes

    def focus(self, task: Task, goal: Tensor) -> Focus:
        """The task and its goal as a state `[B, D]` -> what every box needs to know."""
        if task.mode not in self.modes:
            raise UnusableInput(f"no mode {task.mode!r}; there are {', '.join(self.modes)}")
        if min(task.horizon, task.steps) < 0:
            raise UnusableInput(
                f"horizon {task.horizon} and steps {task.steps} must be 0 (the default) or more"
            )
        return Focus(
            mode=task.mode,
            goal=goal,
            weights={**self.weights, **task.weights},
            horizon=task.horizon or self.horizon,
            steps=task.steps or self.steps,
        )
