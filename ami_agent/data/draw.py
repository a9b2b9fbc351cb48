"""A picture of recorded episodes: their lengths, and trajectories or frames of some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ami_agent.data.inspect import Inspection
from ami_agent.logger import one_line
from ami_agent.viewer.drawing import MUTED, PAST, PLANNED, TEXT, pixels, write_png


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
        axes.set_aspect("equal", adjustable="datalim")
        for points in found.paths:
            axes.plot(points[:, 0], points[:, 1], color=PAST, lw=0.8, alpha=0.6)
            axes.plot(*points[0], "o", color=PLANNED, ms=3)
    if found.frames:
        axes = _plot(figure.add_subplot(grid[1, :]), "frames of one episode, first to last")
        strip = np.concatenate(found.frames, 1)
        axes.imshow(_to_bytes(strip), cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    write_png(path, pixels(figure))
    return path


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
