"""Means over episodes with 95 % confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import scipy  # imports its parts where they are used, which are slow to import
from torch import Tensor

from modules.types import ConfigError

Values: TypeAlias = Tensor | np.ndarray | Sequence[float]  # one number per episode, `[N]`


class Estimate(TypedDict):
    """A mean and its 95 % interval; None where the values don't determine it."""

    mean: float | None
    ci95: list[float] | None


def rate(successes: Values) -> Estimate:
    """Outcomes `[N]`, each 0 or 1 -> their rate, a fraction, with Wilson's interval (1927)."""
    outcomes = _numbers(successes)
    if not np.isin(outcomes, (0.0, 1.0)).all():
        raise ConfigError("a success rate is taken over outcomes that are 0 or 1")
    if not outcomes.size:
        return {"mean": None, "ci95": None}
    test = scipy.stats.binomtest(int(outcomes.sum()), outcomes.size)
    interval = test.proportion_ci(confidence_level=0.95, method="wilson")
    return {"mean": float(outcomes.mean()), "ci95": [float(interval.low), float(interval.high)]}


def mean(values: Values) -> Estimate:
    """Numbers `[N]` -> their mean with a percentile bootstrap interval (Efron 1979), which needs at
    least two of them."""
    numbers = _numbers(values)
    if not numbers.size or not np.isfinite(numbers).all():
        return {"mean": None, "ci95": None}
    if numbers.size == 1:
        return {"mean": float(numbers[0]), "ci95": None}
    # not BCa, which is undefined where all values are equal
    interval = scipy.stats.bootstrap(
        (numbers,), np.mean, n_resamples=2000, batch=200, method="percentile", rng=0
    ).confidence_interval
    return {"mean": float(numbers.mean()), "ci95": [float(interval.low), float(interval.high)]}


def format_percent(estimate: Estimate) -> str:
    """A rate as a percentage with its interval."""
    if estimate["mean"] is None or estimate["ci95"] is None:
        return "-"
    low, high = estimate["ci95"]
    return f"{100 * estimate['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _numbers(values: Values) -> np.ndarray:
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(plain, dtype=np.float64).reshape(-1)
