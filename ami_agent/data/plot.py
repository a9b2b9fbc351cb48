"""A picture of recorded episodes: their lengths, and trajectories or frames of some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ami_agent.data.inspect import Inspection
from ami_agent.logger import one_line
from ami_agent.viewer.drawing import MUTED, PAST, PLANNED, TEXT, pixels, write_png

MAX_RATIO = 4
"""Of two ranges that are drawn to one scale, the longer in units of the shorter, at most."""


def draw_inspection(path: Path, found: Inspection) -> Path:
    """Writes the picture; a film strip of one episode below, where observations are pictures."""
    columns, rows = 1 + bool(found.paths), 1 + bool(found.frames)
    figure = Figure((5 * columns, 3.6 * rows), dpi=100, facecolor="white", layout="tight")
    figure.suptitle(
        one_line(found.recording.label), color=TEXT, x=0.01, y=0.995, ha="left", size=12,
        parse_math=False,
    )  # fmt: skip
    grid = figure.add_gridspec(rows, columns)
    axes = _plot(figure.add_subplot(grid[0, 0]), "steps of an episode")
    lengths = found.recording.lengths
    axes.hist(lengths, bins=np.linspace(0, 1.05 * lengths.max(), 43).tolist(), color=PLANNED)
    axes.set_ylabel("episodes", color=MUTED, size=8)
    if found.paths:
        axes = _plot(figure.add_subplot(grid[0, 1]), "first two numbers of observations")
        axes.set_xlabel("number 0", color=MUTED, size=8)
        axes.set_ylabel("number 1", color=MUTED, size=8)
        if has_one_scale(found.paths):
            axes.set_aspect("equal", adjustable="datalim")
        for points in found.paths:
            axes.plot(points[:, 0], points[:, 1], color=PAST, lw=0.8, alpha=0.6)
        starts = np.array([points[0] for points in found.paths])
        axes.plot(*starts.T, "o", color=PLANNED, ms=3, label="start of an episode")
        axes.legend(fontsize=8, frameon=False, labelcolor=MUTED)
    if found.frames:
        axes = _plot(figure.add_subplot(grid[1, :]), "frames of one episode, first to last")
        strip = np.concatenate(found.frames, 1)
        axes.imshow(_to_bytes(strip), cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    write_png(path, pixels(figure))
    return path


def has_one_scale(paths: Sequence[np.ndarray]) -> bool:
    """Whether both numbers of the paths, `[N, 2]` each, span alike ranges, as coordinates do; a
    position beside a velocity does not."""
    points = np.concatenate(paths)
    points = points[np.isfinite(points).all(1)]
    spans = np.ptp(points, 0) if len(points) else np.zeros(2)
    return bool(spans.max() <= MAX_RATIO * spans.min())


def _plot(axes: Axes, title: str) -> Axes:
    axes.set_title(title, size=10, color=TEXT)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """Numbers of any range as a picture."""
    if image.dtype == np.uint8:
        return image
    numbers = np.nan_to_num(image.astype(np.float64))
    low, span = numbers.min(), max(float(np.ptp(numbers)), 1e-12)
    return (255 * (numbers - low) / span).astype(np.uint8)
