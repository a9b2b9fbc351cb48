"""Benchmarks: comparisons with references on the same machine, one module for each.

A benchmark is a dataclass of settings whose `measure` runs it and prints its progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.env_speed import EnvSpeed
from ami_agent.bench.planning_speed import PlanningSpeed


class Benchmark(Protocol):
    """A comparison; its fields are the flags of `ami bench NAME`."""

    @property
    def json(self) -> str: ...
    def measure(self, console: Console) -> dict[str, Any]: ...


BENCHMARKS: Mapping[str, Benchmark] = {
    "baselines": SB3Comparison(),
    "planning-speed": PlanningSpeed(),
    "env-speed": EnvSpeed(),
}
