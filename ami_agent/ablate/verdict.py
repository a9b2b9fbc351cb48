"""What a study says: figures of a few seeds with intervals, and whether a difference is real.

After Agarwal et al. 2021 (Deep reinforcement learning at the edge of the statistical precipice):
interquartile means, bootstrap intervals over runs, and the probability of improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ami_agent.statistics import Estimate

POWER = 0.8
"""Chance that a difference is found where there is one."""


class Measure(NamedTuple):
    """What is compared: read from the figures of one mode of one run."""

    key: str
    unit: str
    scale: float
    told: str
    """What it is, for who never saw the world."""
    most: float = inf
    """How far two figures can be apart."""

    def of(self, marks: Mapping[str, Any]) -> float:
        return self.scale * marks[self.key]["mean"]


MEASURES = (
    Measure("score", "score", 1.0, "what the world counts in an episode"),
    Measure(
        "final_success",
        "points of success",
        100.0,
        "percent of the episodes at whose last step the task is fulfilled",
        100.0,
    ),
    Measure("return", "return", 1.0, "the sum of an episode's rewards"),
)
"""The first that a world tells of is what it is about."""


def measure_of(marks: Mapping[str, Any]) -> Measure:
    return next(measure for measure in MEASURES if marks[measure.key] is not None)


def interquartile(values: Sequence[float]) -> Estimate:
    """Runs `[N]` -> their interquartile mean, with a bootstrap interval from two runs on."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {"mean": None, "ci95": None}
    found = float(stats.trim_mean(numbers, 0.25))
    if len(numbers) == 1:
        return {"mean": found, "ci95": None}
    drawn = stats.trim_mean(_resampled(numbers, 0), 0.25, axis=1)
    return {"mean": found, "ci95": [float(end) for end in np.percentile(drawn, [2.5, 97.5])]}


def improvement(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The chance that a run of ours does better than one of theirs; ties count half."""
    one, other = (np.asarray(part, dtype=np.float64) for part in (ours, theirs))
    if not len(one) or not len(other):
        return {"mean": None, "ci95": None}
    found = float(_better(one[None], other[None])[0])
    if min(len(one), len(other)) == 1:
        return {"mean": found, "ci95": None}
    drawn = _better(_resampled(one, 0), _resampled(other, 1))
    return {"mean": found, "ci95": [float(end) for end in np.percentile(drawn, [2.5, 97.5])]}


def _better(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`[R, N]`, `[R, M]` -> `[R]`"""
    gap = one[:, :, None] - other[:, None]
    return ((gap > 0) + 0.5 * (gap == 0)).mean((1, 2))


def _resampled(values: np.ndarray, seed: int, times: int = 5000) -> np.ndarray:
    index = np.random.default_rng(seed).integers(len(values), size=(times, len(values)))
    return values[index]


class Difference(NamedTuple):
    """A variant beside the base, seed by seed."""

    seeds: int  # that both have
    mean: float | None
    ci95: tuple[float, float] | None  # Student's, of the paired differences; from two seeds on
    needed: int | None  # seeds that would tell a difference as large as this one

    @property
    def none(self) -> bool:
        """Whether no seed tells any difference."""
        return self.mean == 0 and self.ci95 in (None, (0.0, 0.0))

    @property
    def real(self) -> bool:
        """Whether the interval leaves chance out."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)

    @property
    def label(self) -> str:
        """What follows, in a word or two."""
        if self.ci95 is None:
            return "not known"
        if self.none:
            return "none"
        return "real" if self.real else "may be chance"


def difference(
    base: Mapping[int, float], variant: Mapping[int, float], most: float = inf
) -> Difference:
    """Figures by seed; only seeds that both have count. No two are further apart than `most`: what
    the interval would hold beyond that can't be."""
    both = sorted(set(base) & set(variant))
    gaps = np.array([variant[seed] - base[seed] for seed in both])
    if len(gaps) < 2:
        return Difference(len(gaps), float(gaps[0]) if len(gaps) else None, None, None)
    mean, spread = float(gaps.mean()), float(gaps.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * spread / len(gaps) ** 0.5
    needed = seeds_for(abs(mean) / spread) if spread > 0 and mean else None
    span = max(mean - half, -most), min(mean + half, most)
    return Difference(len(gaps), mean, span, needed)


def detectable(seeds: int) -> float:
    """The difference that so many seeds tell from chance, four times in five, in units of how much
    paired differences vary between seeds; infinite for one seed."""
    if seeds < 2:
        return float("inf")
    quantiles = stats.t.ppf([0.975, POWER], seeds - 1)
    return float(quantiles.sum() / seeds**0.5)


def seeds_for(effect: float) -> int:
    """Seeds that tell a difference of that size, in the same units."""
    normal = stats.norm.ppf([0.975, POWER]).sum()
    first = max(2, ceil((normal / effect) ** 2)) if effect > 0 else 10**6
    return next((n for n in range(first, first + 10) if detectable(n) <= effect), first + 10)


def words(name: str, gap: Difference, measure: Measure, base: str) -> str:
    """What a variant is worth beside the base, as one sentence."""
    if gap.mean is None:
        return f"{name}: no seed of both finished, so nothing can be said"
    if gap.none:
        return f"{name}: no different from {base} in any seed"
    size = f"{abs(gap.mean):.3g} {measure.unit} {'less' if gap.mean < 0 else 'more'} than {base}"
    size = size if gap.mean else f"no different from {base} on the mean"
    if gap.ci95 is None:
        return f"{name}: {size} with one seed, from which nothing follows"
    span = f"[{gap.ci95[0]:.3g}, {gap.ci95[1]:.3g}] over {gap.seeds} seeds"
    if gap.real:
        return f"{name}: {size} {span}: a real difference"
    more = f"; about {gap.needed} seeds would tell one of this size" if gap.needed else ""
    return f"{name}: {size} {span}: no more than chance may do{more}"
