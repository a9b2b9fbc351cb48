"""Side by side with references, on this machine and in the same run: a page for each comparison.

A benchmark is a setting, as a lesson is; `run` measures, and says what it does while it does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.env_speed import EnvSpeed
from ami_agent.bench.planning_speed import PlanningSpeed


class Benchmark(Protocol):
    """Something to be compared; its fields are its flags."""

    @property
    def json(self) -> str: ...
    def measure(self, console: Console) -> dict[str, Any]: ...


BENCHMARKS: Mapping[str, Benchmark] = {
    "baselines": SB3Comparison(),
    "planning-speed": PlanningSpeed(),
    "env-speed": EnvSpeed(),
}
