"""What may be changed of how an agent plans, and the agents that these changes make."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any, TypeAlias

from ami_agent.ablation.variants import removals, without
from ami_agent.agent import Agent
from ami_agent.config import Config, build, override
from ami_agent.config_io import component_choices, component_of
from modules.configurator import Task, TaskSpec
from modules.types import ConfigError, Observation, shorten

MAX_HORIZON, MAX_ITERATIONS, MAX_WEIGHT = 200, 500, 1e6
"""Of a plan: a larger one would keep the workbench busy for minutes."""
MAX_NAME = 100  # characters
MAX_VARIANTS = 8  # agents that are kept
PLANNER = "actor.planner"

Value: TypeAlias = "str | float | bool | None"


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How an agent plans; what is empty or 0 is as in its run."""

    mode: str = "plan"
    planner: str = ""
    horizon: int = 0
    iterations: int = 0
    cvar_alpha: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    drives: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def changed(self, setting: str, name: str, value: Value) -> PlanSettings:
        """These settings with another value of one of them; `name`: that of a weight, of a drive or
        of a part that is taken out. ConfigError for a value that does not fit."""
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ConfigError(f"a name has at most {MAX_NAME} characters")
        match setting:
            case "mode":
                return replace(self, mode=str(value))
            case "planner":  # its number of iterations means something else
                return replace(self, planner=str(value), iterations=0)
            case "horizon":
                return replace(self, horizon=_whole("the horizon", value, MAX_HORIZON))
            case "iterations":
                count = _whole("the number of iterations", value, MAX_ITERATIONS)
                return replace(self, iterations=count)
            case "cvar_alpha":
                return replace(self, cvar_alpha=_number("the level of risk", value, 1.0))
            case "weight":
                weight = _number(f"the weight of {name!r}", value, MAX_WEIGHT)
                return replace(self, weights={**self.weights, name: weight})
            case "drive":
                weight = _number(f"the weight of the drive {name!r}", value, MAX_WEIGHT)
                return replace(self, drives={**self.drives, name: weight})
            case "without":
                others = tuple(part for part in self.without if part != name)
                return replace(self, without=(*others, name) if value is True else others)
        raise ConfigError(f"there is no setting {shorten(setting)}")

    def to_task(self, task_spec: TaskSpec, goal: Observation | None) -> Task:
        """The task with this goal."""
        task = task_spec.to_task(goal, self.mode)
        return replace(
            task,
            weights={**task.weights, **self.weights},
            drives={**task.drives, **self.drives},
            horizon=self.horizon or task.horizon,
            planner_iterations=self.iterations,
            cvar_alpha=task.cvar_alpha if self.cvar_alpha is None else self.cvar_alpha,
        )


def _number(label: str, value: Value, maximum: float) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not (isfinite(number) and 0 <= number <= maximum):
        raise ConfigError(f"{label} is {shorten(value)}; it must be a number from 0 to {maximum:g}")
    return number


def _whole(label: str, value: Value, maximum: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= maximum:
        expected = f"a whole number from 1 to {maximum}"
        raise ConfigError(f"{label} is {shorten(value)}; it must be {expected}")
    return number


class Variants:
    """An agent, and the same weights with another planner or without some parts. `config`: the
    settings that the agent was built from; without them there is the agent alone."""

    def __init__(self, agent: Agent, config: Config | None) -> None:
        self.config = config
        # of its own, as the planner calls the callbacks of its evaluator; the weights are shared
        shared = {id(tensor): tensor for tensor in (*agent.parameters(), *agent.buffers())}
        self.base: Agent = deepcopy(agent, shared).eval()
        self._kept: dict[tuple[str, tuple[str, ...]], Agent] = {}

    @property
    def planner(self) -> str:
        """The name of the class that plans in the agent's run."""
        return type(self.base.planner).__name__

    @cached_property
    def planners(self) -> list[str]:
        """The planners that there are, the agent's own first."""
        others = [] if self.config is None else component_choices()[PLANNER]
        return list(dict.fromkeys([self.planner, *others]))

    @cached_property
    def removable(self) -> list[str]:
        """The parts that may be taken out: those that matter when the agent acts, each once."""
        if self.config is None:
            return []
        found: dict[str, Config] = {}
        by_size = sorted(removals(self.config).items(), key=lambda item: len(item[1]))
        for name, changes in by_size:
            acting = {k: v for k, v in changes.items() if not k.startswith("stages.")}
            changed = override(self.config, acting)
            if changed != self.config and changed not in found.values():
                found[name] = changed
        return sorted(found)

    def agent(self, settings: PlanSettings) -> Agent:
        """The agent of these settings. ConfigError where it can't be built, or where the weights of
        the rest don't fit."""
        planner = "" if settings.planner == self.planner else settings.planner
        key = planner, tuple(sorted(settings.without))
        if key == ("", ()):
            return self.base
        if key not in self._kept:
            if len(self._kept) >= MAX_VARIANTS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._build(*key)
        return self._kept[key]

    def _build(self, planner: str, parts: tuple[str, ...]) -> Agent:
        if self.config is None:
            raise ConfigError("the settings of this agent's run are not known: only its own fit")
        if planner and planner not in self.planners:
            choices = ", ".join(self.planners)
            raise ConfigError(f"no planner {shorten(planner)}; there are {choices}")
        config, base = self.config, self.base
        if planner:
            config = override(config, {PLANNER: component_of(PLANNER, planner)})
        for part in parts:
            if part not in self.removable:
                choices = ", ".join(self.removable) or "none"
                raise ConfigError(f"no part {shorten(part)} to take out; there are {choices}")
            config = without(config, part)
        agent, weights = build(config, base.spec), base.state_dict()
        for name, tensor in agent.state_dict().items():
            if name not in weights or weights[name].shape != tensor.shape:
                raise ConfigError(
                    f"without {' and '.join(parts)} the agent needs other weights ({name}): it "
                    "would have to be trained anew"
                )
        own: dict[str, Any] = {name: weights[name] for name in agent.state_dict()}
        agent.load_state_dict(own, assign=True)  # the weights are shared
        return agent.to(base.device).eval().requires_grad_(False)
