"""Means over episodes with 95 % confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import TypeAlias, TypedDict

import numpy as np
import scipy  # imports its parts where they are used, which are slow to import
from torch import Tensor

from modules.types import ConfigError

Values: TypeAlias = Tensor | np.ndarray | Sequence[float]  # one number per episode, `[N]`


Z = NormalDist().inv_cdf(0.975)
"""The quantile of a 95 % interval."""


class Estimate(TypedDict):
    """A mean and its 95 % interval; None where the values don't determine it."""

    mean: float | None
    ci95: list[float] | None


def rate(successes: Values, groups: Values | None = None) -> Estimate:
    """Outcomes `[N]`, each 0 or 1 -> their rate, a fraction, with Wilson's interval (1927).
    Outcomes that depend on one another belong to one of `groups` `[N]`, whose number is then the n
    of the interval: it is wide enough for any dependence."""
    outcomes = _numbers(successes)
    if not np.isin(outcomes, (0.0, 1.0)).all():
        raise ConfigError("a success rate is taken over outcomes that are 0 or 1")
    if not outcomes.size:
        return {"mean": None, "ci95": None}
    found, count = float(outcomes.mean()), int(_group_index(outcomes, groups).max()) + 1
    return {
        "mean": found,
        "ci95": [_wilson_bound(found, count), 1 - _wilson_bound(1 - found, count)],
    }


def _wilson_bound(rate: float, count: int) -> float:
    """The lower end of Wilson's 95 % interval of a rate of so many outcomes."""
    shift = Z * Z / (2 * count)
    half = sqrt(Z * Z * rate * (1 - rate) / count + shift * shift)
    return (rate + shift - half) / (1 + 2 * shift)


def mean(values: Values, groups: Values | None = None) -> Estimate:
    """Numbers `[N]` -> their mean with a percentile bootstrap interval (Efron 1979), which needs at
    least two of them. Numbers that depend on one another belong to one of `groups` `[N]` and are
    resampled together."""
    numbers = _numbers(values)
    if not numbers.size or not np.isfinite(numbers).all():
        return {"mean": None, "ci95": None}
    index = _group_index(numbers, groups)
    sums, counts = np.bincount(index, numbers), np.bincount(index)
    if counts.size == 1:
        return {"mean": float(numbers.mean()), "ci95": None}
    # not BCa, which is undefined where all values are equal
    interval = scipy.stats.bootstrap(
        (sums, counts), lambda total, number, axis: total.sum(axis) / number.sum(axis),
        n_resamples=2000, batch=200, method="percentile", rng=0, paired=True,
    ).confidence_interval  # fmt: skip
    return {"mean": float(numbers.mean()), "ci95": [float(interval.low), float(interval.high)]}


def _group_index(numbers: np.ndarray, groups: Values | None) -> np.ndarray:
    """The groups as indices `[N]` from 0; without any, each number is one by itself."""
    if groups is None:
        return np.arange(numbers.size)
    return np.unique(_numbers(groups), return_inverse=True)[1]


def format_percent(estimate: Estimate) -> str:
    """A rate as a percentage with its interval."""
    if estimate["mean"] is None or estimate["ci95"] is None:
        return "-"
    low, high = estimate["ci95"]
    return f"{100 * estimate['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _numbers(values: Values) -> np.ndarray:
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(plain, dtype=np.float64).reshape(-1)
