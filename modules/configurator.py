"""Configurator: turns a task into the settings of every other module (LeCun 2022, 6): goal, cost
weights, limits on drives, modality weights, mode, horizon and planning budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from modules.types import (
    COUNT,
    FRACTION,
    GOAL_COSTS,
    HORIZON,
    ITERATIONS,
    WEIGHT,
    ConfigError,
    Observation,
    Settings,
    TaskContext,
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task for an agent: a goal, cost weights and limits, and how to act."""

    goal: Observation | None = None
    """`[B, *O]`: an observation of the goal; None for a task that only has drives."""
    drives: Mapping[str, float] = field(default_factory=dict)
    """Weights of the drives, by name; each is also the weight of the drive's value critic."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Upper limits of drives at any step, by name, in the unit of the drive."""
    modality_weights: Mapping[str, float] = field(default_factory=dict)
    """Modality weights that differ from the agent's own, by name; 0 removes a modality."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Cost weights that differ from the agent's own, by name."""
    mode: str = "plan"
    """"react" (Mode-1), "plan" (Mode-2) or "auto" (Mode-2 where planning pays)."""
    horizon: int = 0
    """Planning horizon in steps; 0: the planner's own."""
    planner_iterations: int = 0
    """Iterations of the planner from a cold start; 0: the planner's own."""
    cvar_alpha: float | None = None
    """Fraction of worst futures that counts, under a world model with latent variables: 1 is the
    mean, 0 the worst alone; None: the agent's own."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values of the wrong type, and for sizes out of range."""
        for field_name in ("drives", "limits", "modality_weights", "weights"):
            values = getattr(self, field_name)
            if not isinstance(values, Mapping) or not all(isinstance(n, str) for n in values):
                raise ConfigError(f"{field_name} are {values!r}; they must be a dict by name")
            for name, value in values.items():
                if not _is_number(value):
                    raise ConfigError(f"{field_name} {name!r} is {value!r}; it must be a number")
        for field_name, maximum in (("horizon", HORIZON[1]), ("planner_iterations", ITERATIONS[1])):
            value = getattr(self, field_name)
            is_whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not is_whole or not 0 <= int(value) <= maximum:
                expected = f"a whole number from 0 (the planner's own) to {maximum}"
                raise ConfigError(f"{field_name} is {value!r}; it must be {expected}")
        alpha = self.cvar_alpha
        if alpha is not None and not (_is_number(alpha) and 0 <= alpha <= 1):
            raise ConfigError(f"cvar_alpha is {alpha!r}; it must be a number from 0 to 1, or None")
        if not isinstance(self.mode, str):
            raise ConfigError(f"mode is {self.mode!r}; it must be a string")


@dataclass(frozen=True, kw_only=True)
class TaskSpec(Settings):
    """A named task of a recipe: `ami eval DIR --task NAME`."""

    goal_source: Literal["env", "current", "none"] = "none"
    """The goal: the one that the environment gives, the observation at which the task is set, or
    none."""
    drives: Annotated[dict[str, float], WEIGHT] = field(default_factory=dict)
    limits: Annotated[dict[str, float], (-1e12, 1e12)] = field(default_factory=dict)
    modality_weights: Annotated[dict[str, float], WEIGHT] = field(default_factory=dict)
    weights: Annotated[dict[str, float], WEIGHT] = field(default_factory=dict)
    horizon: Annotated[int, (0, HORIZON[1])] = 0
    cvar_alpha: Annotated[float | None, FRACTION] = None
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment in which this task is evaluated."""
    reset_options: dict[str, Any] = field(default_factory=dict)
    """Options of every reset of that environment: `{"task_id": 3}`, where it has such tasks."""
    members: tuple[str, ...] = ()
    """Names of the tasks that stand for this one in an evaluation, which takes as many episodes of
    each and reports their success apart; none: the task itself."""
    episodes_per_lifetime: Annotated[int, COUNT] = 1
    """Consecutive episodes that an evaluation takes in each environment. Only the first begins with
    a seed, and lasting memory stays."""

    def to_task(self, goal: Observation | None, mode: str) -> Task:
        """The task with this goal, for an actor of this mode."""
        return Task(
            goal=goal,
            drives=self.drives,
            limits=self.limits,
            modality_weights=self.modality_weights,
            weights=self.weights,
            mode=mode,
            horizon=self.horizon,
            cvar_alpha=self.cvar_alpha,
        )


class PlannerSettings(Protocol):
    """What tasks may change of a planner's settings."""

    @property
    def horizon(self) -> int: ...
    @property
    def iterations(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class ConfiguratorConfig(Settings):
    goal_distance: Annotated[float, WEIGHT] = 0.0
    """Weight u of the squared distance to the goal in representation space."""
    goal_dims: Annotated[int, (0, 65_536)] = 0
    """Numbers of a state, from the first, in which that distance is measured: what the goal is
    about. 0: all."""
    control_cost: Annotated[float, WEIGHT] = 0.0
    """Weight u of the squared length of the actions."""
    critic: Annotated[float, WEIGHT] = 1.0
    """Weight v of the goal critic: the number of steps to the goal."""
    modality_weights: Annotated[dict[str, float], WEIGHT] = field(default_factory=dict)
    """Factor on the features of each modality, by name; 1 where a name is missing."""
    cvar_alpha: Annotated[float, FRACTION] = 1.0
    """Fraction of worst futures that counts: 1 is the mean, 0 the worst alone."""
    conditioned_on: tuple[str, ...] = ()
    """Costs whose weights are inputs of the policy, so that one policy serves several tasks."""

    def build(
        self, planner: PlannerSettings, modes: tuple[str, ...], modalities: Sequence[str],
        drives: Sequence[str], drives_with_critic: Sequence[str],
        intrinsic: Mapping[str, float] = MappingProxyType({}),
    ) -> Configurator:  # fmt: skip
        return Configurator(self, planner, modes, modalities, drives, drives_with_critic, intrinsic)


class Configurator:
    """Turns a `Task` into the `TaskContext` that every other module reads."""

    def __init__(
        self, config: ConfiguratorConfig, planner: PlannerSettings, modes: tuple[str, ...],
        modalities: Sequence[str], drives: Sequence[str], drives_with_critic: Sequence[str],
        intrinsic: Mapping[str, float],
    ) -> None:  # fmt: skip
        """`intrinsic`: weights of further intrinsic costs, by name."""
        self.weights = {
            name: getattr(config, name) for name in ("goal_distance", "control_cost", "critic")
        } | dict(intrinsic)
        self.horizon, self.iterations = planner.horizon, planner.iterations
        self.goal_dims = config.goal_dims
        self.modes, self.modalities, self.drives = modes, modalities, drives
        self.drives_with_critic = drives_with_critic
        self.conditioned_on, self.cvar_alpha = config.conditioned_on, config.cvar_alpha
        _check_named("modality weight", config.modality_weights, modalities)
        self.default_modality_weights = {n: config.modality_weights.get(n, 1.0) for n in modalities}

    def modality_weights(self, task: Task) -> dict[str, float]:
        """The weight of every modality under this task, by name."""
        _check_named("modality weight", task.modality_weights, self.modalities)
        return {**self.default_modality_weights, **task.modality_weights}

    def cost_weights(self, task: Task) -> dict[str, float]:
        """The weights of the costs by name; the weight of a drive is also that of its critic."""
        _check_named("weight of the drive", task.drives, self.drives)
        fixed = {
            n: w for n, w in self.weights.items() if task.goal is not None or n not in GOAL_COSTS
        }
        value_weights = {
            f"critic_{n}": w for n, w in task.drives.items() if n in self.drives_with_critic
        }
        return {**fixed, **task.drives, **value_weights, **task.weights}

    def check_goal(self, task: Task) -> None:
        """Raises ConfigError for a task without a goal that needs one."""
        weights = self.cost_weights(task)
        if task.goal is not None:
            return
        for name in GOAL_COSTS:
            if weights.get(name):
                raise ConfigError(f"the cost {name!r} needs a goal, and the task has none")
        pursued = {name: weight for name, weight in weights.items() if name != "control_cost"}
        if any(weights.values()) and not any([*pursued.values(), *task.weights.values()]):
            raise ConfigError(
                "the task has no goal and no drive has a weight: give it a goal, drives or weights"
            )

    def context(self, task: Task, goal: Tensor) -> TaskContext:
        """The task and its goal state `[B, D]` (any state if it has no goal) -> the context."""
        if task.mode not in self.modes:
            raise ConfigError(f"no mode {task.mode!r}; there are {', '.join(self.modes)}")
        for name, maximum in task.limits.items():
            if name not in self.drives:
                raise ConfigError(_unknown("limit of the drive", name, self.drives))
            if not isfinite(maximum):
                raise ConfigError(f"the limit of {name!r} is {maximum}; it must be a finite number")
        weights = self.cost_weights(task)
        task_vector, drive_weights = (
            torch.tensor([float(weights.get(name, 0)) for name in names]).to(goal)
            for names in (self.conditioned_on, self.drives)
        )
        return TaskContext(
            mode=task.mode,
            goal=goal,
            weights=weights,
            limits=dict(task.limits),
            modality_weights=self.modality_weights(task),
            task_vector=task_vector.expand(len(goal), -1),
            horizon=task.horizon or self.horizon,
            iterations=task.planner_iterations or self.iterations,
            cvar_alpha=self.cvar_alpha if task.cvar_alpha is None else task.cvar_alpha,
            episode_states=goal[:, None][:, :0],
            reference_states=goal[:0],
            step_scale=goal.new_ones(len(goal)),
            upper_plans=goal[:, None, None][:, :0],
            goal_dims=self.goal_dims,
            drive_weights=drive_weights,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    choices = f"there are {', '.join(known)}" if known else "this agent has none"
    return f"{what} {name!r}: {choices}"


def _check_named(what: str, numbers: Mapping[str, float], known: Sequence[str]) -> None:
    """Raises ConfigError for an unknown name, and for a number that is negative or not finite."""
    for name, value in numbers.items():
        if name not in known:
            raise ConfigError(_unknown(what, name, known))
        if not 0 <= value < float("inf"):
            raise ConfigError(f"the {what} {name!r} is {value}; it must be 0 or more")
