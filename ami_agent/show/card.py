"""The report card of a representation as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ami_agent.priors import Card
from ami_agent.show.drawing import pixels
from ami_agent.show.files import write_png
from ami_agent.show.paint import CHOSEN, FAINT, LIVED, TEXT

COLOURS = {"agent": CHOSEN, "untrained": FAINT, "seen": LIVED}
ACROSS = 5
"""Small pictures beside each other."""


def draw(path: Path, card: Card, title: str) -> Path:
    """Each prior as bars, how far ahead is foreseen, the spectrum of the state, and the state along
    its two main directions, coloured by each true factor."""
    centred = (card.states - card.states.mean(0)).double().numpy()
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    drawings = [
        *((prior.name, lambda axes, p=prior: _bars(axes, p.marks)) for prior in card.priors),
        ("error by steps ahead", lambda axes: _ahead(axes, card)),
        ("spectrum", lambda axes: _spectrum(axes, values)),
        *((f"by {name}", lambda axes, n=n: _plane(axes, plane, card.factors[:, n]))
          for n, name in enumerate(card.names)),
    ]  # fmt: skip
    down = -(-len(drawings) // ACROSS)
    figure = Figure((3 * ACROSS, 2.6 * down + 0.5), dpi=100, facecolor="white", layout="tight")
    figure.suptitle(title, color=TEXT, x=0.01, ha="left", size=14)
    for number, (name, drawn) in enumerate(drawings, 1):
        axes = figure.add_subplot(down, ACROSS, number)
        axes.set_title(name, size=10, color=TEXT)
        axes.tick_params(labelsize=8, colors=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        drawn(axes)
    write_png(path, pixels(figure))
    return path


def _bars(axes: Axes, marks: dict[str, float]) -> None:
    axes.bar(list(marks), list(marks.values()), color=[COLOURS[who] for who in marks])
    axes.axhline(0, color=FAINT, lw=0.6)


def _ahead(axes: Axes, card: Card) -> None:
    """1 is no better than to imagine that nothing moves."""
    axes.plot(range(1, len(card.ahead) + 1), card.ahead, "o-", color=CHOSEN, ms=3)
    axes.axhline(1, color=FAINT, ls=":", lw=1)
    axes.set_ylim(bottom=0)


def _spectrum(axes: Axes, values: np.ndarray) -> None:
    """Share of the variance that each direction has, the largest first."""
    axes.semilogy(np.maximum(values**2 / np.square(values).sum(), 1e-8), color=CHOSEN)


def _plane(axes: Axes, plane: np.ndarray, factor: Tensor) -> None:
    """States `[N, 2]`, or `[N, 1]`, coloured by a factor `[N]`."""
    axes.scatter(plane[:, 0], plane[:, -1], c=factor.numpy(), s=4, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[])
