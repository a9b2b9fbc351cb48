"""The scorecard of a representation as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ami_agent.logger import one_line
from ami_agent.probing.energies import NOISE_LEVELS, NextStateEnergy
from ami_agent.probing.scorecard import FactorSweep, Measure, Metrics, Scorecard, measure_of
from ami_agent.viewer.drawing import MUTED, PAST, PLANNED, SUBGOAL, TEXT, pixels, write_png

SOURCE_COLORS = {"agent": PLANNED, "untrained": MUTED, "observation": PAST}
LEVEL_COLORS = (SUBGOAL, "#17a08c")  # of the levels above
NUM_COLUMNS = 5  # plots in a row
LOWEST = -1.0  # of the values under perturbations that are drawn
PLANE = "first principal direction", "second principal direction"


def draw_scorecard(path: Path, scorecard: Scorecard, title: str) -> Path:
    """Writes the metrics as bars, the open-loop error by steps ahead, the spectrum of the states,
    and the states along their two principal directions, coloured by each true factor."""
    center = scorecard.states.double().mean(0).numpy()
    centered = scorecard.states.double().numpy() - center
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    plane = directions[:2].T
    measures = dict.fromkeys(name.rpartition(": ")[2] for name in scorecard.perturbations)
    sweeps, encoders = scorecard.factor_sweeps, list(next(iter(scorecard.metrics.values())))
    num_plots = len(scorecard.metrics) + len(measures) + len(scorecard.names) + len(sweeps) + 4
    num_rows = -(-num_plots // NUM_COLUMNS)
    size = 3 * NUM_COLUMNS, 2.6 * num_rows + 0.6
    figure = Figure(size, dpi=100, facecolor="white", layout="tight")
    figure.suptitle(
        one_line(title), color=TEXT, x=0.01, y=0.995, ha="left", size=14, parse_math=False
    )
    handles = [
        Line2D([], [], color=color, marker="s", ls="", label=encoder)
        for encoder, color in zip(encoders, _colors(encoders), strict=True)
    ]
    figure.legend(handles=handles, ncols=len(handles), loc="upper right", frameon=False, fontsize=9)
    numbers = count(1)

    def plot(title: str, x_label: str = "", y_label: str = "") -> Axes:
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, next(numbers))
        axes.set_title(title, size=9, color=TEXT, parse_math=False)
        axes.set_xlabel(x_label, size=8, color=MUTED)
        axes.set_ylabel(y_label, size=8, color=MUTED)
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    for name, heights in scorecard.metrics.items():
        axes = plot(_title(measure_of(name)), "", measure_of(name).unit)
        axes.bar(list(heights), list(heights.values()), color=_colors(heights))
        axes.axhline(0, color=MUTED, lw=0.6)
    for measure in measures:
        by_perturbation = {
            name.removesuffix(f": {measure}"): heights
            for name, heights in scorecard.perturbations.items()
            if name.endswith(f": {measure}")
        }
        described = measure_of(measure)
        is_cut = any(min(heights.values()) < LOWEST for heights in by_perturbation.values())
        x_label = f"perturbation (cut off at {LOWEST:.0f})" if is_cut else "perturbation"
        _draw_perturbations(plot(_title(described), x_label, described.unit), by_perturbation)
    axes = plot("open-loop error (lower is better)", "steps ahead", "relative error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    errors = scorecard.prediction_errors.values()
    for by_step, color in zip(errors, (PLANNED, *LEVEL_COLORS), strict=False):
        axes.plot(list(by_step), list(by_step.values()), "o-", color=color, ms=3)
    axes.axhline(1, color=MUTED, ls=":", lw=1)
    axes.text(0.5, 0.97, "predicting no change", size=8, color=MUTED, va="top", ha="center",
              transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_ylim(bottom=0)
    _draw_energies(
        plot("energy of next states", "noise, in changes of a step", "relative energy"),
        scorecard.energies,
    )
    fractions = np.square(values) / np.square(values).sum()  # of the variance, the largest first
    axes = plot("spectrum of the states", "principal direction", "fraction of variance")
    axes.semilogy(np.arange(1, len(fractions) + 1), np.maximum(fractions, 1e-8), color=PLANNED)
    axes.tick_params(which="both", labelsize=8, colors=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name, factor in zip(scorecard.names, scorecard.factors.numpy().T, strict=True):
        axes = plot(f"states, coloured by {name}", *PLANE)
        _scatter(axes, centered @ plane, factor, "viridis")
    for name, of_factor in sweeps.items():
        _draw_factor_sweeps(plot(f"states as {name} varies alone", *PLANE), of_factor)
    clustered = scorecard.clustered.numpy()
    _scatter(
        plot("states, coloured by cluster", *PLANE),
        (clustered[:, :-1] - center) @ plane,
        clustered[:, -1],
        "tab10",
    )
    write_png(path, pixels(figure))
    return path


def _draw_energies(axes: Axes, energies: Mapping[str, NextStateEnergy]) -> None:
    """The energy of next states with growing noise as a curve, and of those of other times as
    dotted lines."""
    noisy = {NOISE_LEVELS[name]: e.energy for name, e in energies.items() if name in NOISE_LEVELS}
    axes.plot(list(noisy), list(noisy.values()), "o-", color=PLANNED, ms=3)
    for name, values in energies.items():
        if name not in NOISE_LEVELS:
            axes.axhline(values.energy, color=MUTED, ls=":", lw=1)
            axes.text(0.02, values.energy, name, size=7, color=MUTED, va="bottom",
                      transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yscale("log")


def _title(measure: Measure) -> str:
    return f"{measure.label} ({measure.direction})" if measure.better else measure.label


def _colors(encoders: Iterable[str]) -> list[str]:
    return [SOURCE_COLORS.get(encoder, SUBGOAL) for encoder in encoders]


def _draw_perturbations(axes: Axes, by_perturbation: Metrics) -> None:
    """One measure of every perturbation, for all encoders; values below LOWEST are cut off."""
    encoders = list(next(iter(by_perturbation.values())))
    width = 0.8 / len(encoders)
    for number, (encoder, color) in enumerate(zip(encoders, _colors(encoders), strict=True)):
        positions = np.arange(len(by_perturbation)) + (number - (len(encoders) - 1) / 2) * width
        heights = [max(values[encoder], LOWEST) for values in by_perturbation.values()]
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
