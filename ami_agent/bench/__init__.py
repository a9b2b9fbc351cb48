"""Benchmarks: comparisons with references on the same machine. The fields of each are the flags of
`ami bench NAME`; `measure` runs it and prints its progress."""

from __future__ import annotations

from collections.abc import Mapping

from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.speed import EnvSpeed, PlanningSpeed
from ami_agent.bench.suites import SuiteComparison

BENCHMARKS: Mapping[str, SB3Comparison | SuiteComparison | PlanningSpeed | EnvSpeed] = {
    "baselines": SB3Comparison(),
    "suites": SuiteComparison(),
    "planning-speed": PlanningSpeed(),
    "env-speed": EnvSpeed(),
}
