"""The scorecard of a representation as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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
"""Colours of the levels above."""
NUM_COLUMNS = 5
"""Plots in a row."""


def draw_scorecard(path: Path, scorecard: Scorecard, title: str) -> Path:
    """Writes the metrics as bars, the open-loop error by steps ahead, the spectrum of the states,
    and the states along their two principal directions, coloured by each true factor."""
    center = scorecard.states.double().mean(0).numpy()
    centered = scorecard.states.double().numpy() - center
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    plane = centered @ directions[:2].T
    measures = dict.fromkeys(c.name.rpartition(": ")[2] for c in scorecard.perturbations)
    swept = dict.fromkeys(sweep.name for sweep in scorecard.factor_sweeps)
    clustered = scorecard.clustered.numpy()
    plots: list[tuple[str, Callable[[Axes], None]]] = [
        *((c.name, partial(_bars, metrics=c.values)) for c in scorecard.criteria),
        *(
            (f"perturbed: {m}", partial(_perturbations, card=scorecard, measure=m))
            for m in measures
        ),
        ("error by steps ahead", partial(_open_loop_error, errors=scorecard.prediction_errors)),
        ("spectrum", partial(_spectrum, values=values)),
        *(
            (f"by {name}", partial(_plane, plane=plane, factor=scorecard.factors[:, n]))
            for n, name in enumerate(scorecard.names)
        ),
        *((f"{n} alone", partial(_factor_sweep, scorecard=scorecard, name=n)) for n in swept),
        ("groups", partial(_clusters, clustered=clustered, center=center, directions=directions)),
    ]
    num_rows = -(-len(plots) // NUM_COLUMNS)
    figure = Figure(
        (3 * NUM_COLUMNS, 2.6 * num_rows + 0.6), dpi=100, facecolor="white", layout="tight"
    )
    figure.suptitle(
        one_line(title), color=TEXT, x=0.01, y=0.995, ha="left", size=14, parse_math=False
    )
    for number, (name, draw_plot) in enumerate(plots, 1):
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, number)
        axes.set_title(name, size=10, color=TEXT, parse_math=False)
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        draw_plot(axes)
    write_png(path, pixels(figure))
    return path


def _bars(axes: Axes, metrics: Mapping[str, float]) -> None:
    colors = [SOURCE_COLORS.get(encoder, SUBGOAL) for encoder in metrics]
    axes.bar(list(metrics), list(metrics.values()), color=colors)
    axes.axhline(0, color=MUTED, lw=0.6)


def _perturbations(axes: Axes, card: Scorecard, measure: str) -> None:
    """One measure of every perturbation, for all encoders; values below -1 are cut off."""
    suffix = f": {measure}"
    criteria = [c for c in card.perturbations if c.name.endswith(suffix)]
    encoders = list(criteria[0].values)
    width = 0.8 / len(encoders)
    for number, encoder in enumerate(encoders):
        positions = np.arange(len(criteria)) + (number - (len(encoders) - 1) / 2) * width
        heights = [max(c.values[encoder], -1.0) for c in criteria]
        axes.bar(positions, heights, width, color=SOURCE_COLORS.get(encoder, SUBGOAL))
    axes.set_xticks(range(len(criteria)), [c.name.removesuffix(suffix) for c in criteria])
    axes.axhline(0, color=MUTED, lw=0.6)


def _open_loop_error(axes: Axes, errors: Mapping[str, Mapping[int, float]]) -> None:
    """By level; an error of 1 is no better than predicting no change."""
    for by_step, color in zip(errors.values(), (PLANNED, *LEVEL_COLORS), strict=False):
        axes.plot(list(by_step), list(by_step.values()), "o-", color=color, ms=3)
    axes.axhline(1, color=MUTED, ls=":", lw=1)
    axes.set_ylim(bottom=0)


def _spectrum(axes: Axes, values: np.ndarray) -> None:
    """Fraction of the variance along each principal direction, the largest first."""
    axes.semilogy(np.maximum(values**2 / np.square(values).sum(), 1e-8), color=PLANNED)


def _plane(axes: Axes, plane: np.ndarray, factor: Tensor) -> None:
    """States `[N, 2]`, or `[N, 1]`, coloured by a factor `[N]`."""
    axes.scatter(plane[:, 0], plane[:, -1], c=factor.numpy(), s=4, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[])


def _factor_sweep(axes: Axes, scorecard: Scorecard, name: str) -> None:
    """States while one factor varies, in the plane of their largest variance: a factor that is a
    direction of the state gives straight and parallel lines."""
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
    """A subset of the states in the plane of all, coloured by their cluster, the last column of
    `[n, D + 1]`."""
    flat = (clustered[:, :-1] - center) @ directions[:2].T
    axes.scatter(flat[:, 0], flat[:, -1], c=clustered[:, -1], s=4, cmap="tab10", linewidths=0)
    axes.set(xticks=[], yticks=[])
