"""The scorecard of a representation as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ami_agent.logger import one_line
from ami_agent.probing.scorecard import FactorSweep, Metrics, Scorecard
from ami_agent.viewer.drawing import MUTED, PAST, PLANNED, SUBGOAL, TEXT, pixels, write_png

SOURCE_COLORS = {"agent": PLANNED, "untrained": MUTED, "observation": PAST}
LEVEL_COLORS = (SUBGOAL, "#17a08c")  # of the levels above
NUM_COLUMNS = 5  # plots in a row


def draw_scorecard(path: Path, scorecard: Scorecard, title: str) -> Path:
    """Writes the metrics as bars, the open-loop error by steps ahead, the spectrum of the states,
    and the states along their two principal directions, coloured by each true factor."""
    center = scorecard.states.double().mean(0).numpy()
    centered = scorecard.states.double().numpy() - center
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    plane = directions[:2].T
    measures = dict.fromkeys(name.rpartition(": ")[2] for name in scorecard.perturbations)
    sweeps = scorecard.factor_sweeps
    num_plots = len(scorecard.metrics) + len(measures) + len(scorecard.names) + len(sweeps) + 3
    num_rows = -(-num_plots // NUM_COLUMNS)
    size = 3 * NUM_COLUMNS, 2.6 * num_rows + 0.6
    figure = Figure(size, dpi=100, facecolor="white", layout="tight")
    figure.suptitle(
        one_line(title), color=TEXT, x=0.01, y=0.995, ha="left", size=14, parse_math=False
    )
    numbers = count(1)

    def plot(name: str) -> Axes:
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, next(numbers))
        axes.set_title(name, size=10, color=TEXT, parse_math=False)
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    for name, heights in scorecard.metrics.items():
        axes = plot(name)
        axes.bar(list(heights), list(heights.values()), color=_colors(heights))
        axes.axhline(0, color=MUTED, lw=0.6)
    for measure in measures:
        by_perturbation = {
            name.removesuffix(f": {measure}"): heights
            for name, heights in scorecard.perturbations.items()
            if name.endswith(f": {measure}")
        }
        _draw_perturbations(plot(f"perturbed: {measure}"), by_perturbation)
    axes = plot("error by steps ahead")  # 1 is no better than predicting no change
    errors = scorecard.prediction_errors.values()
    for by_step, color in zip(errors, (PLANNED, *LEVEL_COLORS), strict=False):
        axes.plot(list(by_step), list(by_step.values()), "o-", color=color, ms=3)
    axes.axhline(1, color=MUTED, ls=":", lw=1)
    axes.set_ylim(bottom=0)
    fractions = np.square(values) / np.square(values).sum()  # of the variance, the largest first
    plot("spectrum").semilogy(np.maximum(fractions, 1e-8), color=PLANNED)
    for name, factor in zip(scorecard.names, scorecard.factors.numpy().T, strict=True):
        _scatter(plot(f"by {name}"), centered @ plane, factor, "viridis")
    for name, of_factor in sweeps.items():
        _draw_factor_sweeps(plot(f"{name} alone"), of_factor)
    clustered = scorecard.clustered.numpy()
    _scatter(plot("groups"), (clustered[:, :-1] - center) @ plane, clustered[:, -1], "tab10")
    write_png(path, pixels(figure))
    return path


def _colors(encoders: Iterable[str]) -> list[str]:
    return [SOURCE_COLORS.get(encoder, SUBGOAL) for encoder in encoders]


def _draw_perturbations(axes: Axes, by_perturbation: Metrics) -> None:
    """One measure of every perturbation, for all encoders; values below -1 are cut off."""
    encoders = list(next(iter(by_perturbation.values())))
    width = 0.8 / len(encoders)
    for number, (encoder, color) in enumerate(zip(encoders, _colors(encoders), strict=True)):
        positions = np.arange(len(by_perturbation)) + (number - (len(encoders) - 1) / 2) * width
        heights = [max(values[encoder], -1.0) for values in by_perturbation.values()]
        axes.bar(positions, heights, width, color=color)
    axes.set_xticks(range(len(by_perturbation)), list(by_perturbation))
    axes.axhline(0, color=MUTED, lw=0.6)


def _scatter(axes: Axes, positions: np.ndarray, colors: np.ndarray, cmap: str) -> None:
    """States at positions `[N, 2]`, or `[N, 1]`, coloured by numbers `[N]`."""
    axes.scatter(positions[:, 0], positions[:, -1], c=colors, s=4, cmap=cmap, linewidths=0)
    axes.set(xticks=[], yticks=[])


def _draw_factor_sweeps(axes: Axes, sweeps: Sequence[FactorSweep]) -> None:
    """States while one factor varies, in the plane of their largest variance: a factor that is a
    direction of the state gives straight and parallel lines."""
    paths = [states.double().numpy() for states, _ in sweeps]
    centered = np.concatenate([path - path.mean(0) for path in paths])
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    for (_, factor), path in zip(sweeps, paths, strict=True):
        flat = path @ directions[:2].T
        axes.plot(flat[:, 0], flat[:, -1], color=MUTED, lw=0.6, zorder=1)
        axes.scatter(flat[:, 0], flat[:, -1], c=factor.numpy(), s=8, cmap="viridis", zorder=2)
    axes.set(xticks=[], yticks=[])
