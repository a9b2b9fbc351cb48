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

from ami_agent.evaluation.intervals import Estimate

POWER = 0.8
"""Chance that a difference is found where there is one."""


class Measure(NamedTuple):
    """What is compared: read from the figures of one mode of one run."""

    key: str
    unit: str
    scale: float
    description: str
    """What it is, for who never saw the world."""
    max_difference: float = inf
    """How far two figures can be apart."""

    def value(self, marks: Mapping[str, Any]) -> float:
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


def main_measure(marks: Mapping[str, Any]) -> Measure:
    return next(measure for measure in MEASURES if marks[measure.key] is not None)


def interquartile_mean(values: Sequence[float]) -> Estimate:
    """Runs `[N]` -> their interquartile mean, with a bootstrap interval from two runs on."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {"mean": None, "ci95": None}
    mean = float(stats.trim_mean(numbers, 0.25))
    if len(numbers) == 1:
        return {"mean": mean, "ci95": None}
    resampled_means = stats.trim_mean(_resampled(numbers, 0), 0.25, axis=1)
    return {
        "mean": mean,
        "ci95": [float(end) for end in np.percentile(resampled_means, [2.5, 97.5])],
    }


def probability_of_improvement(
    variant_values: Sequence[float], base_values: Sequence[float]
) -> Estimate:
    """The chance that a run of ours does better than one of theirs; ties count half."""
    variant, base = (
        np.asarray(values, dtype=np.float64) for values in (variant_values, base_values)
    )
    if not len(variant) or not len(base):
        return {"mean": None, "ci95": None}
    mean = float(_better(variant[None], base[None])[0])
    if min(len(variant), len(base)) == 1:
        return {"mean": mean, "ci95": None}
    resampled = _better(_resampled(variant, 0), _resampled(base, 1))
    return {"mean": mean, "ci95": [float(end) for end in np.percentile(resampled, [2.5, 97.5])]}


def _better(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`[R, N]`, `[R, M]` -> `[R]`"""
    differences = one[:, :, None] - other[:, None]
    return ((differences > 0) + 0.5 * (differences == 0)).mean((1, 2))


def _resampled(values: np.ndarray, seed: int, num_resamples: int = 5000) -> np.ndarray:
    index = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    return values[index]


class Difference(NamedTuple):
    """A variant beside the base, seed by seed."""

    seeds: int  # that both have
    mean: float | None
    ci95: tuple[float, float] | None  # Student's, of the paired differences; from two seeds on
    seeds_needed: int | None  # seeds that would tell a difference as large as this one

    @property
    def is_zero(self) -> bool:
        """Whether no seed tells any difference."""
        return self.mean == 0 and self.ci95 in (None, (0.0, 0.0))

    @property
    def significant(self) -> bool:
        """Whether the interval leaves chance out."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)

    @property
    def label(self) -> str:
        """What follows, in a word or two."""
        if self.ci95 is None:
            return "not known"
        if self.is_zero:
            return "none"
        return "real" if self.significant else "may be chance"


def paired_difference(
    base: Mapping[int, float], variant: Mapping[int, float], max_difference: float = inf
) -> Difference:
    """Figures by seed; only seeds that both have count. No two are further apart than `most`: what
    the interval would hold beyond that can't be."""
    shared_seeds = sorted(set(base) & set(variant))
    differences = np.array([variant[seed] - base[seed] for seed in shared_seeds])
    if len(differences) < 2:
        return Difference(
            len(differences), float(differences[0]) if len(differences) else None, None, None
        )
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    half_width = float(stats.t.ppf(0.975, len(differences) - 1)) * std / len(differences) ** 0.5
    needed = seeds_needed(abs(mean) / std) if std > 0 and mean else None
    interval = max(mean - half_width, -max_difference), min(mean + half_width, max_difference)
    return Difference(len(differences), mean, interval, needed)


def minimal_detectable_effect(seeds: int) -> float:
    """The difference that so many seeds tell from chance, four times in five, in units of how much
    paired differences vary between seeds; infinite for one seed."""
    if seeds < 2:
        return float("inf")
    quantiles = stats.t.ppf([0.975, POWER], seeds - 1)
    return float(quantiles.sum() / seeds**0.5)


def seeds_needed(effect: float) -> int:
    """Seeds that tell a difference of that size, in the same units."""
    normal = stats.norm.ppf([0.975, POWER]).sum()
    first = max(2, ceil((normal / effect) ** 2)) if effect > 0 else 10**6
    return next(
        (n for n in range(first, first + 10) if minimal_detectable_effect(n) <= effect), first + 10
    )


def effect_sentence(name: str, difference: Difference, measure: Measure, base: str) -> str:
    """What a variant is worth beside the base, as one sentence."""
    if difference.mean is None:
        return f"{name}: no seed of both finished, so nothing can be said"
    if difference.is_zero:
        return f"{name}: no different from {base} in any seed"
    size = f"{abs(difference.mean):.3g} {measure.unit} {'less' if difference.mean < 0 else 'more'} than {base}"
    size = size if difference.mean else f"no different from {base} on the mean"
    if difference.ci95 is None:
        return f"{name}: {size} with one seed, from which nothing follows"
    interval = f"[{difference.ci95[0]:.3g}, {difference.ci95[1]:.3g}] over {difference.seeds} seeds"
    if difference.significant:
        return f"{name}: {size} {interval}: a real difference"
    hint = (
        f"; about {difference.seeds_needed} seeds would tell one of this size"
        if difference.seeds_needed
        else ""
    )
    return f"{name}: {size} {interval}: no more than chance may do{hint}"
