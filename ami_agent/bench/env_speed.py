"""Speed of environments: batched, beside Gymnasium's vector environments over the same physics,
which step single environments one by one (sync) or each in a process (async). A single environment
of this project is a batch of one, with the overhead of a batch."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv
from rich.console import Console

from ami_agent.adapters.env import EnvConfig
from ami_agent.bench.interleave import ROUNDS, check_num_envs, interleave, measure_rates
from ami_agent.cli.args import with_absolute_imports
from ami_agent.logger import print_line, print_table
from modules.types import ConfigError, validate_ranges

VECTORIZATION_MODES: Mapping[str, Literal["auto", "sync", "async"]] = {
    "batched": "auto",
    "sync": "sync",
    "async": "async",
}
"""Ways to step environments -> the value of `EnvConfig.vectorization_mode`."""


@dataclass(frozen=True, kw_only=True)
class EnvSpeed:
    """Environment steps per second with observations, batched beside Gymnasium's SyncVectorEnv and
    AsyncVectorEnv over the same physics."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(id=""))
    """One environment; by default all of this project."""
    num_envs: tuple[int, ...] = (1, 16, 64)
    """Numbers of environments that are stepped at once."""
    seconds: float = 2.0
    """Of measurement for each way of stepping."""
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        validate_ranges(self, seconds=(0.0, 1e6), num_envs=(1, 1_000_000))
        check_num_envs(self.num_envs)

    def measure(self, console: Console) -> dict[str, Any]:
        """By environment and number, the steps per second of each way; None where it is not
        available."""
        rates: dict[str, dict[str, Any]] = {}
        for config in self._configs():
            name = f"{config.id} {config.variant}".strip()
            try:
                rates[name] = {
                    str(n): self._measure_modes(config, n, console) for n in self.num_envs
                }
            except ConfigError as error:
                if self.env.id:
                    raise
                print_line(console, f"{name} is left out: {error}")
        if not rates:
            raise ConfigError("no environment could be measured")
        print_table(console, "environment steps per second", *_rows(rates))
        return rates

    def _configs(self) -> list[EnvConfig]:
        if self.env.id:
            return [with_absolute_imports(self.env)]
        env_ids = sorted(name for name in gymnasium.registry if name.startswith("ami/"))
        return [replace(self.env, id=name) for name in env_ids]

    def _measure_modes(
        self, config: EnvConfig, num_envs: int, console: Console
    ) -> dict[str, float | None]:
        print_line(console, f"{config.id}, {num_envs} at once")
        spec = gymnasium.registry.get(config.id)
        batched = spec is None or spec.vector_entry_point is not None
        generators: dict[str, Generator[float]] = {}
        for mode, vectorization in VECTORIZATION_MODES.items():
            if batched or mode != "batched":
                env = replace(config, vectorization_mode=vectorization).build(num_envs)
                generators[mode] = _rates(env.vector_env, self.seconds / ROUNDS)
        rates = interleave(generators)
        return {mode: rates.get(mode) for mode in VECTORIZATION_MODES}


def _rates(envs: VectorEnv, seconds: float) -> Generator[float]:
    """Environment steps per second, measured again at every `next`."""
    with closing(envs):
        envs.action_space.seed(0)
        envs.reset(seed=0)
        actions = cycle([envs.action_space.sample() for _ in range(32)])

        def step() -> int:
            envs.step(next(actions))
            return envs.num_envs

        yield from measure_rates(step, seconds)


def _rows(rates_by_env: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = ["environment", "at once", *VECTORIZATION_MODES, "batched / sync", "batched / async"]
    rows = [
        [name, num_envs, *(_rate(rates[mode]) for mode in VECTORIZATION_MODES), *_ratios(rates)]
        for name, by_num_envs in rates_by_env.items()
        for num_envs, rates in by_num_envs.items()
    ]
    return columns, rows


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _ratios(rates: dict[str, float | None]) -> list[str]:
    batched = rates["batched"]
    if batched is None:
        return ["-", "-"]
    return [f"{batched / rate:.1f} x" for rate in (rates["sync"], rates["async"]) if rate]
