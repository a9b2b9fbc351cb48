"""Statistics of a study: results of a few seeds with intervals, and significance of differences.

After Agarwal et al. 2021 (Deep reinforcement learning at the edge of the statistical precipice):
interquartile means, bootstrap intervals over runs, and the probability of improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np
import scipy  # imports its parts where they are used, which are slow to import

from ami_agent.evaluation.intervals import Estimate

POWER = 0.8  # probability with which an existing difference is detected


class Measure(NamedTuple):
    """The metric that is compared, read from the results of one mode of one run."""

    key: str
    unit: str
    scale: float
    description: str
    """What the measure says, for readers who don't know the environment."""
    max_difference: float = inf
    """The largest possible difference of two values."""

    def value(self, metrics: Mapping[str, Any]) -> float:
        return self.scale * metrics[self.key]["mean"]


MEASURES = (
    Measure("score", "score", 1.0, "the environment's own score of an episode"),
    Measure(
        "final_success", "points of success", 100.0,
        "percent of the episodes that end in success", 100.0,
    ),
    Measure("return", "return", 1.0, "the sum of an episode's rewards"),
)  # fmt: skip
"""The first one that the environment reports is the main measure."""


def main_measure(metrics: Mapping[str, Any]) -> Measure:
    return next(measure for measure in MEASURES if metrics[measure.key] is not None)


def interquartile_mean(values: Sequence[float]) -> Estimate:
    """Values of N runs -> the interquartile mean, with a bootstrap interval from two runs on."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {"mean": None, "ci95": None}
    mean = float(scipy.stats.trim_mean(numbers, 0.25))
    if len(numbers) == 1:
        return {"mean": mean, "ci95": None}
    return {
        "mean": mean,
        "ci95": _interval(scipy.stats.trim_mean(_resampled(numbers, 0), 0.25, axis=1)),
    }


def probability_of_improvement(
    variant_values: Sequence[float], base_values: Sequence[float]
) -> Estimate:
    """The probability that a run of the variant is better than one of the base; ties count half."""
    variant = np.asarray(variant_values, dtype=np.float64)
    base = np.asarray(base_values, dtype=np.float64)
    if not len(variant) or not len(base):
        return {"mean": None, "ci95": None}
    mean = float(_better(variant[None], base[None])[0])
    if min(len(variant), len(base)) == 1:
        return {"mean": mean, "ci95": None}
    return {"mean": mean, "ci95": _interval(_better(_resampled(variant, 0), _resampled(base, 1)))}


def _better(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The fraction of pairs in which `one` is higher: `[R, N]`, `[R, M]` -> `[R]`."""
    differences = one[:, :, None] - other[:, None]
    return ((differences > 0) + 0.5 * (differences == 0)).mean((1, 2))


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    return values[np.random.default_rng(seed).integers(len(values), size=(5000, len(values)))]


def _interval(resampled: np.ndarray) -> list[float]:
    return [float(end) for end in np.percentile(resampled, [2.5, 97.5])]


def format_interval(interval: Sequence[float] | None) -> str:
    """`[low, high]`; empty where there is none."""
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""


class Difference(NamedTuple):
    """A variant minus the base, paired by seed."""

    seeds: int  # finished by both
    mean: float | None
    ci95: tuple[float, float] | None  # Student's, of the paired differences; from two seeds on
    seeds_needed: int | None  # seeds that would detect a difference of this size

    @property
    def is_zero(self) -> bool:
        """Whether the difference is zero for every seed."""
        return self.mean == 0 and self.ci95 in (None, (0.0, 0.0))

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)

    @property
    def label(self) -> str:
        """The significance in a word or two."""
        if self.ci95 is None:
            return "unknown"
        if self.is_zero:
            return "no difference"
        return "significant" if self.significant else "not significant"


def paired_difference(
    base: Mapping[int, float], variant: Mapping[int, float], max_difference: float = inf
) -> Difference:
    """Values by seed; only seeds of both count. The interval is cut off at `max_difference`."""
    shared_seeds = sorted(set(base) & set(variant))
    differences = np.array([variant[seed] - base[seed] for seed in shared_seeds])
    if len(differences) < 2:
        mean = float(differences[0]) if len(differences) else None
        return Difference(len(differences), mean, None, None)
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    half_width = (
        float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * std / len(differences) ** 0.5
    )
    needed = seeds_needed(abs(mean) / std) if std > 0 and mean else None
    interval = max(mean - half_width, -max_difference), min(mean + half_width, max_difference)
    return Difference(len(differences), mean, interval, needed)


def minimal_detectable_effect(seeds: int) -> float:
    """The difference that this number of seeds detects with probability `POWER`, in standard
    deviations of the paired differences; infinite for one seed."""
    if seeds < 2:
        return float("inf")
    quantiles = scipy.stats.t.ppf([0.975, POWER], seeds - 1)
    return float(quantiles.sum() / seeds**0.5)


def seeds_needed(effect: float) -> int:
    """The number of seeds that detects a difference of this size, in the same units."""
    normal = scipy.stats.norm.ppf([0.975, POWER]).sum()
    first = max(2, ceil((normal / effect) ** 2)) if effect > 0 else 10**6
    return next(
        (n for n in range(first, first + 10) if minimal_detectable_effect(n) <= effect), first + 10
    )


def effect_sentence(name: str, difference: Difference, measure: Measure, base: str) -> str:
    """The difference between a variant and the base, as one sentence."""
    if difference.mean is None:
        return f"{name}: no seed of both finished"
    if difference.is_zero:
        return f"{name}: no different from {base} in any seed"
    sign = "less" if difference.mean < 0 else "more"
    size = f"{abs(difference.mean):.3g} {measure.unit} {sign} than {base}"
    if difference.mean == 0:
        size = f"no different from {base} on average"
    if difference.ci95 is None:
        return f"{name}: {size} with one seed, which gives no interval"
    needed = "" if difference.significant else difference.seeds_needed
    hint = f"; about {needed} seeds would detect this difference" if needed else ""
    interval = f"{format_interval(difference.ci95)} over {difference.seeds} seeds"
    return f"{name}: {size} {interval}, {difference.label}{hint}"
