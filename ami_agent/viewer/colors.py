"""Colours, and helpers that all drawings share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes

from ami_agent.viewer.project import ProjectedStep

PAST, PLANNED, CANDIDATE, SUCCESS = "#1e5adc", "#f0591a", "#8a63d2", "#1e9646"
SUBGOAL = "#0f8f83"
TEXT, MUTED = "#22262e", "#767d8a"
TERM_COLORS = {"goal_distance": "#c2497f", "critic": "#e8a317"}
OTHER_COLORS = ("#17a08c", "#8a63d2", "#1e5adc", "#f0591a", "#7a8c2e")


def term_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each energy term by name; common terms have the same one in every picture."""
    other_colors = cycle(OTHER_COLORS)
    return {name: TERM_COLORS.get(name) or next(other_colors) for name in names}


def stacked_terms(
    projected_steps: Sequence[ProjectedStep],
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, colour, inner and outer edge [N] of every energy term, stacked: positive values above
    zero, negative values below."""
    above, below = np.zeros((2, len(projected_steps)))
    for name, color in term_colors(projected_steps[0].terms).items():
        term = np.array([projected_step.terms[name] for projected_step in projected_steps])
        inner = np.where(term > 0, above, below)
        yield name, color, inner, inner + term
        above, below = above + term.clip(min=0), below + term.clip(max=0)


def without_background(picture: np.ndarray) -> np.ndarray:
    """The picture as [h, w, 4], its most common colour transparent."""
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    contrast = np.abs(picture.astype(int) - colors[counts.argmax()]).max(-1)
    alpha = np.clip(contrast * 2, 0, 255).astype(np.uint8)
    return np.dstack([picture, alpha])


def draw_background(axes: Axes, picture: np.ndarray, zorder: int = 0) -> None:
    """Draws the picture `[h, w, 3 or 4]`, and fits the axes to its pixels."""
    axes.imshow(picture, interpolation="bilinear", zorder=zorder)
    fit_axes(axes, picture)


def fit_axes(axes: Axes, picture: np.ndarray) -> None:
    """Gives the axes the coordinates of the picture's pixels."""
    height, width = picture.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    axes.set_axis_off()
