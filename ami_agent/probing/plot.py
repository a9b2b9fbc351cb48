"""The report card of a representation as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ami_agent.logger import one_line
from ami_agent.probing.scorecard import Scorecard
from ami_agent.viewer.colors import MUTED, PAST, PLANNED, SUBGOAL, TEXT
from ami_agent.viewer.drawing import pixels
from ami_agent.viewer.media import write_png

SOURCE_COLORS = {"agent": PLANNED, "untrained": MUTED, "observation": PAST}
LEVEL_COLORS = (SUBGOAL, "#17a08c")
"""Of the levels above."""
NUM_COLUMNS = 5
"""Small pictures beside each other."""


def draw_scorecard(path: Path, scorecard: Scorecard, title: str) -> Path:
    """Each prior as bars, how far ahead is foreseen, the spectrum of the state, and the state along
    its two main directions, coloured by each true factor."""
    center = scorecard.states.double().mean(0).numpy()
    centered = scorecard.states.double().numpy() - center
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    plane = centered @ directions[:2].T
    plots = [
        *((criterion.name, lambda axes, p=criterion: _bars(axes, p.values)) for criterion in scorecard.criteria),
        *((f"what is seen changes: {what}", lambda axes, w=what: _perturbations(axes, scorecard, w))
          for what in dict.fromkeys(criterion.name.rpartition(": ")[2] for criterion in scorecard.perturbations)),
        ("error by steps ahead", lambda axes: _open_loop_error(axes, scorecard)),
        ("spectrum", lambda axes: _spectrum(axes, values)),
        *((f"by {name}", lambda axes, n=n: _plane(axes, plane, scorecard.factors[:, n]))
          for n, name in enumerate(scorecard.names)),
        *((f"{name} alone", lambda axes, n=name: _factor_sweep(axes, scorecard, n))
          for name in dict.fromkeys(line.name for line in scorecard.factor_sweeps)),
        ("groups", lambda axes: _clusters(axes, scorecard.clustered.numpy(), center, directions)),
    ]  # fmt: skip
    num_rows = -(-len(plots) // NUM_COLUMNS)
    figure = Figure(
        (3 * NUM_COLUMNS, 2.6 * num_rows + 0.6), dpi=100, facecolor="white", layout="tight"
    )
    figure.suptitle(one_line(title), color=TEXT, x=0.01, y=0.995, ha="left", size=14,
                    parse_math=False)  # fmt: skip
    for number, (name, draw_plot) in enumerate(plots, 1):
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, number)
        axes.set_title(name, size=10, color=TEXT, parse_math=False)
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        draw_plot(axes)
    write_png(path, pixels(figure))
    return path


def _bars(axes: Axes, metrics: dict[str, float]) -> None:
    axes.bar(
        list(metrics),
        list(metrics.values()),
        color=[SOURCE_COLORS.get(sources, SUBGOAL) for sources in metrics],
    )
    axes.axhline(0, color=MUTED, lw=0.6)


def _perturbations(axes: Axes, scorecard: Scorecard, what: str) -> None:
    """Of every change one of its figures, for all who see; what is far below zero is cut."""
    ends = f": {what}"
    criteria = [criterion for criterion in scorecard.perturbations if criterion.name.endswith(ends)]
    sources = list(criteria[0].values)
    for number, name in enumerate(sources):
        positions = np.arange(len(criteria)) + (number - (len(sources) - 1) / 2) * 0.8 / len(
            sources
        )
        metrics = [max(criterion.values[name], -1.0) for criterion in criteria]
        axes.bar(positions, metrics, 0.8 / len(sources), color=SOURCE_COLORS.get(name, SUBGOAL))
    axes.set_xticks(
        range(len(criteria)), [criterion.name.removesuffix(ends) for criterion in criteria]
    )
    axes.axhline(0, color=MUTED, lw=0.6)


def _open_loop_error(axes: Axes, scorecard: Scorecard) -> None:
    """By level; 1 is no better than to imagine that nothing moves."""
    for errors, color in zip(
        scorecard.prediction_errors.values(), (PLANNED, *LEVEL_COLORS), strict=False
    ):
        axes.plot(list(errors), list(errors.values()), "o-", color=color, ms=3)
    axes.axhline(1, color=MUTED, ls=":", lw=1)
    axes.set_ylim(bottom=0)


def _spectrum(axes: Axes, values: np.ndarray) -> None:
    """Share of the variance that each direction has, the largest first."""
    axes.semilogy(np.maximum(values**2 / np.square(values).sum(), 1e-8), color=PLANNED)


def _plane(axes: Axes, plane: np.ndarray, factor: Tensor) -> None:
    """States `[N, 2]`, or `[N, 1]`, coloured by a factor `[N]`."""
    axes.scatter(plane[:, 0], plane[:, -1], c=factor.numpy(), s=4, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[])


def _factor_sweep(axes: Axes, scorecard: Scorecard, name: str) -> None:
    """States along lines of places, in the plane in which those of a line differ most: a factor
    that is a direction of the state makes lines that are straight and parallel."""
    lines = [line for line in scorecard.factor_sweeps if line.name == name]
    paths = [line.states.double().numpy() for line in lines]
    _, _, directions = np.linalg.svd(
        np.concatenate([path - path.mean(0) for path in paths]), full_matrices=False
    )
    for line, path in zip(lines, paths, strict=True):
        flat = path @ directions[:2].T
        axes.plot(flat[:, 0], flat[:, -1], color=MUTED, lw=0.6, zorder=1)
        axes.scatter(
            flat[:, 0], flat[:, -1], c=line.factor_values.numpy(), s=8, cmap="viridis", zorder=2
        )
    axes.set(xticks=[], yticks=[])


def _clusters(
    axes: Axes, clustered: np.ndarray, center: np.ndarray, directions: np.ndarray
) -> None:
    """Some states `[n, D]` in the same plane as all, coloured by their group, the last column."""
    flat = (clustered[:, :-1] - center) @ directions[:2].T
    axes.scatter(flat[:, 0], flat[:, -1], c=clustered[:, -1], s=4, cmap="tab10", linewidths=0)
    axes.set(xticks=[], yticks=[])
