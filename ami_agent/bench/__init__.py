"""Benchmarks: comparisons with references on the same machine. The fields of each are the flags of
`ami bench NAME`; `measure` runs it and prints its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.references import References
from ami_agent.bench.speed import EnvSpeed, PlanningSpeed
from ami_agent.bench.suites import SuiteComparison

Benchmark: TypeAlias = References | SB3Comparison | SuiteComparison | PlanningSpeed | EnvSpeed
BENCHMARKS: Mapping[str, Benchmark] = {
    "references": References(),
    "baselines": SB3Comparison(),
    "suites": SuiteComparison(),
    "planning-speed": PlanningSpeed(),
    "env-speed": EnvSpeed(),
}
