"""How fast worlds live: batched, and as Gymnasium steps the same world one by one or each in a
process of its own. Our single worlds are batches of one, with all that a batch costs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, Literal

import gymnasium
from rich.console import Console

from ami_agent.bench.turns import ROUNDS, check_counts, in_turns, per_second
from ami_agent.flags import rooted
from ami_agent.life import WorldConfig
from ami_agent.report import print_table, say
from ami_agent.vectors import Worlds
from modules.types import UnusableInput, require

WAYS: Mapping[str, Literal["auto", "sync", "async"]] = {
    "batched": "auto",
    "sync": "sync",
    "async": "async",
}
"""How worlds are stepped, and what the settings call it."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Steps per second with observations, batched beside Gymnasium's SyncVectorEnv and
    AsyncVectorEnv over the same physics."""

    env: WorldConfig = field(default_factory=lambda: WorldConfig(id=""))
    """One world; all of ours if none is named."""
    counts: tuple[int, ...] = (1, 16, 64)
    """How many worlds are lived in at once."""
    seconds: float = 2.0
    """Measured for each way of stepping."""
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        require(self, seconds=(0.0, 1e6), counts=(1, 1_000_000))
        check_counts(self.counts)

    def run(self, console: Console) -> dict[str, Any]:
        """By world and count, the steps per second of each way; None where it can't be had."""
        found: dict[str, dict[str, Any]] = {}
        for config in self._configs():
            name = f"{config.id} {config.variant}".strip()
            try:
                found[name] = {str(n): self._speeds(config, n, console) for n in self.counts}
            except UnusableInput as error:
                if self.env.id:
                    raise
                say(console, f"{name} is left out: {error}")
        if not found:
            raise UnusableInput("no world could be measured")
        print_table(console, "steps of single worlds per second", *_rows(found))
        return found

    def _configs(self) -> list[WorldConfig]:
        if self.env.id:
            return [rooted(self.env)]
        ours = sorted(name for name in gymnasium.registry if name.startswith("ami/"))
        return [replace(self.env, id=name) for name in ours]

    def _speeds(self, config: WorldConfig, count: int, console: Console) -> dict[str, float | None]:
        say(console, f"{config.id}, {count} at once")
        spec = gymnasium.registry.get(config.id)
        batched = spec is None or spec.vector_entry_point is not None
        living: dict[str, Generator[float]] = {}
        for way, kind in WAYS.items():
            if batched or way != "batched":
                world = replace(config, vector=kind).build(count)
                living[way] = _rates(world.envs, self.seconds / ROUNDS)
        found = in_turns(living)
        return {way: found.get(way) for way in WAYS}


def _rates(envs: Worlds, seconds: float) -> Generator[float]:
    """Steps of single worlds per second, again and again while life goes on."""
    with closing(envs):
        envs.action_space.seed(0)
        envs.reset(seed=0)
        actions = cycle([envs.action_space.sample() for _ in range(32)])

        def step() -> int:
            envs.step(next(actions))
            return envs.num_envs

        yield from per_second(step, seconds)


def _rows(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = ["world", "at once", "batched", "sync", "async", "to sync", "to async"]
    rows = [
        [name, count, *(_rate(rates[way]) for way in WAYS), *_ratios(rates)]
        for name, counts in found.items()
        for count, rates in counts.items()
    ]
    return columns, rows


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _ratios(rates: dict[str, float | None]) -> list[str]:
    own = rates["batched"]
    if own is None:
        return ["-", "-"]
    return [f"{own / rate:.1f} x" for rate in (rates["sync"], rates["async"]) if rate]
