"""Benchmarks: comparisons with references on the same machine.

A benchmark is a dataclass whose fields are the flags of `ami bench NAME`; its `measure` runs it and
prints its progress.
"""

from __future__ import annotations

from collections.abc import Mapping

from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.speed import EnvSpeed, PlanningSpeed

BENCHMARKS: Mapping[str, SB3Comparison | PlanningSpeed | EnvSpeed] = {
    "baselines": SB3Comparison(),
    "planning-speed": PlanningSpeed(),
    "env-speed": EnvSpeed(),
}
