"""Side by side with references, on this machine and in the same run: a page for each comparison.

A benchmark is a setting, as a lesson is; `run` measures, and says what it does while it does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from ami_agent.bench.baselines import Baselines
from ami_agent.bench.thoughts import Thoughts
from ami_agent.bench.worlds import Speed


class Bench(Protocol):
    """Something to be compared; its fields are its flags."""

    @property
    def json(self) -> str: ...
    def run(self, console: Console) -> dict[str, Any]: ...


BENCHES: Mapping[str, Bench] = {
    "baselines": Baselines(),
    "thoughts": Thoughts(),
    "worlds": Speed(),
}
