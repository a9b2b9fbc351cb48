"""Ways of doing the same thing, measured side by side: they take turns, so that what else the
machine does meanwhile slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from statistics import median

from modules.types import ConfigError

ROUNDS = 3
"""Turns that each way takes."""


def check_num_envs(num_envs: tuple[int, ...]) -> None:
    if not num_envs or min(num_envs) < 1:
        raise ConfigError(f"--num-envs {num_envs}: one or more numbers of at least 1")


def measure_rates(fn: Callable[[], int], seconds: float) -> Generator[float]:
    """How much `do` does in a second, each time over at least so many seconds and once at least;
    it says how much it did."""
    for _ in range(3):
        fn()  # whatever is done only once
    while True:
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            count += fn()
        yield count / (time.perf_counter() - start)


def interleave(generators: Mapping[str, Generator[float]]) -> dict[str, float]:
    """The median rate of each way; all are closed."""
    measured: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(ROUNDS):
        for name, generator in generators.items():
            measured[name].append(next(generator))
    for generator in generators.values():
        generator.close()
    return {name: median(rates) for name, rates in measured.items()}
