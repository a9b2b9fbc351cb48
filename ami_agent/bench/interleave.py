"""Rates that are measured by turns, so that other load on the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from statistics import median

from modules.types import ConfigError

ROUNDS = 3
"""Measurements of each rate."""


def check_num_envs(num_envs: tuple[int, ...]) -> None:
    if not num_envs or min(num_envs) < 1:
        raise ConfigError(f"--num-envs is {num_envs}; it must be numbers of at least 1")


def measure_rates(fn: Callable[[], int], seconds: float) -> Generator[float]:
    """The sum of what `fn` returns, per second, over at least so many seconds and one call;
    measured again at every `next`."""
    for _ in range(3):
        fn()  # warm-up
    while True:
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            count += fn()
        yield count / (time.perf_counter() - start)


def interleave(generators: Mapping[str, Generator[float]]) -> dict[str, float]:
    """The median rate of each generator; closes all of them."""
    measured: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(ROUNDS):
        for name, generator in generators.items():
            measured[name].append(next(generator))
    for generator in generators.values():
        generator.close()
    return {name: median(rates) for name, rates in measured.items()}
