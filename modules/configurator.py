"""Configurator: takes the task and sets every other box for it (LeCun 2022, 3.1.1): the goal, the
weights of the costs, limits on what may be felt, what perception attends to, the mode, the horizon
and the budget of thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from modules.types import (
    FRACTION,
    HORIZON,
    ITERATIONS,
    TO_GOAL,
    WEIGHT,
    Focus,
    Observation,
    UnusableInput,
    require,
)

FARTHEST, MOST_STEPS = 1000, 10_000
"""The longest horizon and the largest planning budget that a task may ask for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is wanted, in the user's words."""

    goal: Observation | None = None
    """`[B, *O]`: what the senses would deliver if it were done; None where drives say it all."""
    drives: Mapping[str, float] = field(default_factory=dict)
    """How much each drive matters, by name: now, and as far as its critic foresees."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """How much of a drive may be felt at any step, by name, in its unit."""
    attend: Mapping[str, float] = field(default_factory=dict)
    """Gains of the senses that differ from the agent's own, by name; 0 shuts one out."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Cost weights that differ from the agent's own, by name."""
    mode: str = "plan"
    """"react" (Mode-1), "plan" (Mode-2) or "auto" (Mode-2 where it is worth it)."""
    horizon: int = 0
    """Imagined steps; 0 leaves it to the planner."""
    steps: int = 0
    """Planning budget: improvements of a cold plan; 0 leaves it to the planner."""
    tail: float | None = None
    """The share of the worst futures that counts, where not all can be known: 1 is the mean of all,
    0 the worst alone; None leaves it to the agent."""

    def __post_init__(self) -> None:
        """Raises UnusableInput for what is no number where one is needed."""
        for what in ("drives", "limits", "attend", "weights"):
            given = getattr(self, what)
            if not isinstance(given, Mapping) or not all(isinstance(n, str) for n in given):
                raise UnusableInput(f"{what} are {given!r}; they must be a dict by name")
            for name, value in given.items():
                if not _is_number(value):
                    raise UnusableInput(f"{what} {name!r} is {value!r}; it must be a number")
        for what, most in (("horizon", HORIZON[1]), ("steps", ITERATIONS[1])):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise UnusableInput(f"{what} is {value!r}; it must be a whole number")
            if int(value) > most:
                raise UnusableInput(f"{what} is {value}; it must be at most {most}")
        if self.tail is not None and not _is_number(self.tail):
            raise UnusableInput(f"tail is {self.tail!r}; it must be a number from 0 to 1, or None")
        if not isinstance(self.mode, str):
            raise UnusableInput(f"mode is {self.mode!r}; it must be the name of one")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task by name, as a recipe knows it: `ami eval DIR --task NAME`."""

    aim: Literal["world", "here", "none"] = "none"
    """The goal: what the world names, where the agent is when it is told, or none."""
    drives: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    attend: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    horizon: int = 0
    tail: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment in which this task is evaluated."""

    def __post_init__(self) -> None:
        require(self, drives=WEIGHT, limits=(-1e12, 1e12), attend=WEIGHT, weights=WEIGHT)
        require(self, horizon=(0, HORIZON[1]))
        if self.tail is not None:
            require(self, tail=FRACTION)

    def task(self, goal: Observation | None, mode: str) -> Task:
        """In the user's words."""
        return Task(
            goal=goal, drives=self.drives, limits=self.limits, attend=self.attend,
            weights=self.weights, mode=mode, horizon=self.horizon, tail=self.tail,
        )  # fmt: skip


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
        attend: dict[str, float] = field(default_factory=dict)
        """Gains of the senses, by name; 1 where none is named."""
        tail: float = 1.0
        """The share of the worst futures that counts: 1 is the mean of all, 0 the worst alone."""
        told: tuple[str, ...] = ()
        """Costs whose weights the policy is told, so that it knows the task."""

        def __post_init__(self) -> None:
            require(self, reach=WEIGHT, effort=WEIGHT, critic=WEIGHT, attend=WEIGHT, tail=FRACTION)

        def build(
            self, horizon: int, steps: int, modes: tuple[str, ...], senses: Sequence[str],
            drives: Sequence[str], foreseen: Sequence[str],
        ) -> Configurator:  # fmt: skip
            return Configurator(self, horizon, steps, modes, senses, drives, foreseen)

    def __init__(
        self, config: Config, horizon: int, steps: int, modes: tuple[str, ...],
        senses: Sequence[str], drives: Sequence[str], foreseen: Sequence[str],
    ) -> None:  # fmt: skip
        self.weights = {name: getattr(config, name) for name in ("reach", "effort", "critic")}
        self.horizon, self.steps, self.modes = horizon, steps, modes
        self.senses, self.drives, self.foreseen = senses, drives, foreseen
        self.told, self.tail = config.told, config.tail
        _check("gain of the sense", config.attend, senses)
        self.gains = {**dict.fromkeys(senses, 1.0), **config.attend}

    def primed(self, task: Task) -> dict[str, float]:
        """Gains of the senses under this task, by name."""
        _check("gain of the sense", task.attend, self.senses)
        return {**self.gains, **task.attend}

    def weigh(self, task: Task) -> dict[str, float]:
        """Weights of the costs, by name: a drive's weight is also that of its critic."""
        _check("weight of the drive", task.drives, self.drives)
        own = {n: w for n, w in self.weights.items() if task.goal is not None or n not in TO_GOAL}
        ahead = {f"critic_{n}": w for n, w in task.drives.items() if n in self.foreseen}
        return {**own, **task.drives, **ahead, **task.weights}

    def check_pursued(self, task: Task) -> None:
        """Raises UnusableInput for a task that needs a goal and has none."""
        weights = self.weigh(task)
        if task.goal is not None:
            return
        for name in TO_GOAL:
            if weights.get(name):
                raise UnusableInput(f"the weight of {name!r} needs a goal, and the task has none")
        if any(weights.values()) and not any([*task.drives.values(), *task.weights.values()]):
            raise UnusableInput(
                "the task has no goal and weighs no drive: give it a goal, drives or weights"
            )

    def focus(self, task: Task, goal: Tensor) -> Focus:
        """The task and its goal as a state `[B, D]` (any one state where it has none) -> what every
        box needs to know."""
        if task.mode not in self.modes:
            raise UnusableInput(f"no mode {task.mode!r}; there are {', '.join(self.modes)}")
        if min(task.horizon, task.steps) < 0:
            raise UnusableInput(
                f"horizon {task.horizon} and steps {task.steps} must be 0 (the default) or more"
            )
        for name, most in task.limits.items():
            if name not in self.drives:
                raise UnusableInput(_unknown("limit of the drive", name, self.drives))
            if not isfinite(most):
                raise UnusableInput(f"the limit of {name!r} is {most}; it must be a finite number")
        tail = self.tail if task.tail is None else task.tail
        _check_tail(tail)
        weights = self.weigh(task)
        told = torch.tensor([float(weights.get(name, 0)) for name in self.told])
        return Focus(
            mode=task.mode,
            goal=goal,
            weights=weights,
            limits=dict(task.limits),
            gains=self.primed(task),
            condition=told.to(goal).expand(len(goal), -1),
            horizon=task.horizon or self.horizon,
            steps=task.steps or self.steps,
            tail=tail,
            lived=goal[:, None][:, :0],
            known=goal[:0],
            pace=goal.new_ones(len(goal)),
            hopes=goal[:, None, None][:, :0],
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    choices = f"there are {', '.join(known)}" if known else "this agent has none"
    return f"{what} {name!r}: {choices}"


def _check(what: str, numbers: Mapping[str, float], known: Sequence[str]) -> None:
    """Raises UnusableInput for a name that isn't known, and a number that is negative or NaN."""
    for name, value in numbers.items():
        if name not in known:
            raise UnusableInput(_unknown(what, name, known))
        if not 0 <= value < float("inf"):
            raise UnusableInput(f"the {what} {name!r} is {value}; it must be 0 or more")


def _check_tail(tail: float) -> None:
    if not 0 <= tail <= 1:
        raise UnusableInput(f"tail is {tail}; it must be from 0, the worst alone, to 1, the mean")
