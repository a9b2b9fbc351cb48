"""Ways of doing the same thing, measured side by side: they take turns, so that what else the
machine does meanwhile slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from statistics import median

from modules.types import UnusableInput

ROUNDS = 3
"""Turns that each way takes."""


def check_counts(counts: tuple[int, ...]) -> None:
    if not counts or min(counts) < 1:
        raise UnusableInput(f"--counts {counts}: one or more numbers of at least 1")


def per_second(do: Callable[[], int], seconds: float) -> Generator[float]:
    """How much `do` does in a second, each time over at least so many seconds and once at least;
    it says how much it did."""
    for _ in range(3):
        do()  # whatever is done only once
    while True:
        done, began = 0, time.perf_counter()
        while not done or time.perf_counter() - began < seconds:
            done += do()
        yield done / (time.perf_counter() - began)


def in_turns(ways: Mapping[str, Generator[float]]) -> dict[str, float]:
    """The median rate of each way; all are closed."""
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, rate in ways.items():
            measured[way].append(next(rate))
    for rate in ways.values():
        rate.close()
    return {way: median(those) for way, those in measured.items()}
