"""Speed of environments and of agents, in steps and actions per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import cycle, product
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import gymnasium
import tyro
from gymnasium.vector import VectorEnv
from rich.console import Console

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.agent import Agent
from ami_agent.cli.command_flags import CommandFlags, Mode, resolve_device, with_absolute_imports
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory
from ami_agent.logger import print_line, print_table
from ami_agent.storage import run_dir
from modules.types import ConfigError

ROUNDS = 3  # measurements of each rate


def measure_rates(counters: Mapping[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """The sum of what each function returns, per second, by name: the median of measurements by
    turns, so that other load slows all alike, which take at least so many seconds for each."""
    rates: dict[str, list[float]] = {name: [] for name in counters}
    for count in counters.values():
        for _ in range(3):
            count()  # warm-up
    for _ in range(ROUNDS):
        for name, count in counters.items():
            total, start = 0, time.perf_counter()
            while not total or time.perf_counter() - start < seconds / ROUNDS:
                total += count()
            rates[name].append(total / (time.perf_counter() - start))
    return {name: median(found) for name, found in rates.items()}


def _check(bench: EnvSpeed | PlanningSpeed) -> None:
    if not bench.num_envs:
        raise ConfigError("--num-envs is (); it must be numbers of at least 1")


VECTORIZATION_MODES: Mapping[str, Literal["auto", "sync", "async"]] = {
    "batched": "auto",
    "sync": "sync",
    "async": "async",
}
"""Ways to step environments -> the value of `EnvConfig.vectorization_mode`. Gymnasium's vector
environments step single ones one by one (sync) or each in a process (async). A single environment
of this project is a batch of one, with the overhead of a batch."""


@dataclass(frozen=True, kw_only=True)
class EnvSpeed(CommandFlags):
    """Environment steps per second with observations, batched beside Gymnasium's SyncVectorEnv and
    AsyncVectorEnv over the same physics."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(id=""))
    """One environment; by default all of this project."""
    num_envs: Annotated[tuple[int, ...], (1, 1_000_000)] = (1, 16, 64)
    """Numbers of environments that are stepped at once."""
    seconds: Annotated[float, (0.0, 1e6)] = 2.0
    """Seconds of measurement for each way of stepping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def measure(self, console: Console) -> dict[str, Any]:
        """By environment and number, the steps per second of each way; None where there is none."""
        rates: dict[str, dict[str, Any]] = {}
        env_ids = sorted(name for name in gymnasium.registry if name.startswith("ami/"))
        configs = [replace(self.env, id=name) for name in env_ids]
        for config in [with_absolute_imports(self.env)] if self.env.id else configs:
            name = f"{config.id} {config.variant}".strip()
            try:
                measured = {n: self.measure_modes(config, n, console) for n in self.num_envs}
                rates[name] = {str(n): by_mode for n, by_mode in measured.items()}
            except ConfigError as error:
                if self.env.id:
                    raise
                print_line(console, f"{name} is left out: {error}")
        if not rates:
            raise ConfigError("no environment could be measured")
        ratios = ["batched / sync", "batched / async"]
        columns = ["environment", "at once", *VECTORIZATION_MODES, *ratios]
        rows = [
            [name, num_envs, *_cells(by_mode)]
            for name, by_num_envs in rates.items()
            for num_envs, by_mode in by_num_envs.items()
        ]
        print_table(console, "environment steps per second", columns, rows)
        return rates

    def measure_modes(
        self, config: EnvConfig, num_envs: int, console: Console
    ) -> dict[str, float | None]:
        """Of so many environments, the steps per second of each way."""
        print_line(console, f"{config.id}, {num_envs} at once")
        spec = gymnasium.registry.get(config.id)
        batched = spec is None or spec.vector_entry_point is not None
        steps: dict[str, Callable[[], int]] = {}
        with ExitStack() as stack:
            for mode, vectorization in VECTORIZATION_MODES.items():
                if batched or mode != "batched":
                    env = replace(config, vectorization_mode=vectorization).build(num_envs)
                    steps[mode] = _stepper(stack.enter_context(closing(env.vector_env)))
            rates = measure_rates(steps, self.seconds)
        return {mode: rates.get(mode) for mode in VECTORIZATION_MODES}


def _stepper(envs: VectorEnv) -> Callable[[], int]:
    """A function that steps the environments with random actions, and returns their number."""
    envs.action_space.seed(0)
    envs.reset(seed=0)
    actions = cycle([envs.action_space.sample() for _ in range(32)])

    def step() -> int:
        envs.step(next(actions))
        return envs.num_envs

    return step


def _cells(rates: Mapping[str, float | None]) -> list[str]:
    """The rate of each way, and the ratios of the first to the others."""
    batched, *others = rates.values()
    ratios = [f"{batched / rate:.1f} x" if batched and rate else "-" for rate in others]
    return [*("-" if rate is None else f"{rate:,.0f}" for rate in rates.values()), *ratios]


@dataclass(frozen=True, kw_only=True)
class PlanningSpeed(CommandFlags):
    """Actions per second of a trained agent, from observation to action, in Mode-1 and Mode-2, on
    the CPU and, where there is one, on the GPU."""

    run: str = "runs/reference/two-rooms"
    """Run folder of the agent."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that register its environments."""
    trust: bool = False
    """Import all modules that the run folder names."""
    num_envs: Annotated[tuple[int, ...], (1, 1_000_000)] = (1, 64, 1024)
    """Numbers of environments that the agent acts in at once."""
    modes: tuple[Mode, ...] = ("react", "plan")
    seconds: Annotated[float, (0.0, 1e6)] = 2.0
    """Seconds of measurement for each mode, number and device."""
    compile: bool = False
    """Measure compiled plans as well, by turns with the others; compiling them takes a minute or
    more for each number of environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        if not self.modes:
            raise ConfigError("--modes is empty; choose from react, plan and auto")

    def measure(self, console: Console) -> dict[str, Any]:
        """By mode and number of environments, the actions per second on each device."""
        folder = Path(self.run)
        config = run_dir.config_of(folder, self.imports, self.trust)
        devices = dict.fromkeys(["cpu", resolve_device("auto")])
        agents = {name: run_dir.load(folder, name, config) for name in devices}
        if self.compile:
            print_line(console, "the first plans take a minute or more: the planner is compiled")
            for name in devices:
                agents[f"{name}, compiled"] = run_dir.load(folder, name, config, compile=True)
        rates: dict[str, Any] = {mode: {} for mode in self.modes}
        rows = []
        for mode, num_envs in product(self.modes, self.num_envs):
            print_line(console, f"{mode}, {num_envs} at once")
            acts = {}
            with ExitStack() as stack:
                for name, agent in agents.items():
                    env_config = config.eval_env
                    env = stack.enter_context(closing(env_config.build(num_envs, agent.device)))
                    acts[name] = _actor(agent, env, mode)
                found = measure_rates(acts, self.seconds)
            rates[mode][str(num_envs)] = found
            *_, last = found.values()
            texts = [f"{rate:,.0f}" for rate in found.values()]
            rows.append([mode, num_envs, *texts, f"{last / found['cpu']:.1f} x"])
        title = f"actions per second, {self.run}"
        print_table(console, title, ["mode", "at once", *agents, "speed-up"], rows)
        return rates


def _actor(agent: Agent, env: EnvAdapter, mode: str) -> Callable[[], int]:
    """A function that acts once in the environments, without a step, and returns their number."""
    obs, info = env.reset(FIRST_EVAL_SEED)
    make_policy = agent_policy_factory(agent, mode, agent.task_spec(""))
    act = make_policy(EpisodeStart(env, obs, info), FIRST_EVAL_SEED)

    def act_once() -> int:
        act(obs).cpu()  # waits for the device
        return env.num_envs

    return act_once
