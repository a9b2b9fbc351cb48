"""The report card of a representation as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ami_agent.priors import Card
from ami_agent.report import one_line
from ami_agent.show.drawing import pixels
from ami_agent.show.files import write_png
from ami_agent.show.paint import CHOSEN, FAINT, HOPED, LIVED, TEXT

COLOURS = {"agent": CHOSEN, "untrained": FAINT, "seen": LIVED}
RUNGS = (HOPED, "#17a08c")
"""Of the levels above."""
ACROSS = 5
"""Small pictures beside each other."""


def draw(path: Path, card: Card, title: str) -> Path:
    """Each prior as bars, how far ahead is foreseen, the spectrum of the state, and the state along
    its two main directions, coloured by each true factor."""
    centre = card.states.double().mean(0).numpy()
    centred = card.states.double().numpy() - centre
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    drawings = [
        *((prior.name, lambda axes, p=prior: _bars(axes, p.marks)) for prior in card.priors),
        *((f"what is seen changes: {what}", lambda axes, w=what: _changes(axes, card, w))
          for what in dict.fromkeys(prior.name.rpartition(": ")[2] for prior in card.changes)),
        ("error by steps ahead", lambda axes: _ahead(axes, card)),
        ("spectrum", lambda axes: _spectrum(axes, values)),
        *((f"by {name}", lambda axes, n=n: _plane(axes, plane, card.factors[:, n]))
          for n, name in enumerate(card.names)),
        *((f"{name} alone", lambda axes, n=name: _alone(axes, card, n))
          for name in dict.fromkeys(line.name for line in card.alone)),
        ("groups", lambda axes: _groups(axes, card.grouped.numpy(), centre, directions)),
    ]  # fmt: skip
    down = -(-len(drawings) // ACROSS)
    figure = Figure((3 * ACROSS, 2.6 * down + 0.6), dpi=100, facecolor="white", layout="tight")
    figure.suptitle(one_line(title), color=TEXT, x=0.01, y=0.995, ha="left", size=14,
                    parse_math=False)  # fmt: skip
    for number, (name, drawn) in enumerate(drawings, 1):
        axes = figure.add_subplot(down, ACROSS, number)
        axes.set_title(name, size=10, color=TEXT, parse_math=False)
        axes.tick_params(labelsize=8, colors=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        drawn(axes)
    write_png(path, pixels(figure))
    return path


def _bars(axes: Axes, marks: dict[str, float]) -> None:
    axes.bar(list(marks), list(marks.values()), color=[COLOURS.get(who, HOPED) for who in marks])
    axes.axhline(0, color=FAINT, lw=0.6)


def _changes(axes: Axes, card: Card, what: str) -> None:
    """Of every change one of its figures, for all who see; what is far below zero is cut."""
    ends = f": {what}"
    priors = [prior for prior in card.changes if prior.name.endswith(ends)]
    who = list(priors[0].marks)
    for number, name in enumerate(who):
        places = np.arange(len(priors)) + (number - (len(who) - 1) / 2) * 0.8 / len(who)
        marks = [max(prior.marks[name], -1.0) for prior in priors]
        axes.bar(places, marks, 0.8 / len(who), color=COLOURS.get(name, HOPED))
    axes.set_xticks(range(len(priors)), [prior.name.removesuffix(ends) for prior in priors])
    axes.axhline(0, color=FAINT, lw=0.6)


def _ahead(axes: Axes, card: Card) -> None:
    """By level; 1 is no better than to imagine that nothing moves."""
    for errors, colour in zip(card.ahead.values(), (CHOSEN, *RUNGS), strict=False):
        axes.plot(list(errors), list(errors.values()), "o-", color=colour, ms=3)
    axes.axhline(1, color=FAINT, ls=":", lw=1)
    axes.set_ylim(bottom=0)


def _spectrum(axes: Axes, values: np.ndarray) -> None:
    """Share of the variance that each direction has, the largest first."""
    axes.semilogy(np.maximum(values**2 / np.square(values).sum(), 1e-8), color=CHOSEN)


def _plane(axes: Axes, plane: np.ndarray, factor: Tensor) -> None:
    """States `[N, 2]`, or `[N, 1]`, coloured by a factor `[N]`."""
    axes.scatter(plane[:, 0], plane[:, -1], c=factor.numpy(), s=4, cmap="viridis", linewidths=0)
    axes.set(xticks=[], yticks=[])


def _alone(axes: Axes, card: Card, name: str) -> None:
    """States along lines of places, in the plane in which those of a line differ most: a factor
    that is a direction of the state makes lines that are straight and parallel."""
    lines = [line for line in card.alone if line.name == name]
    paths = [line.states.double().numpy() for line in lines]
    _, _, directions = np.linalg.svd(
        np.concatenate([path - path.mean(0) for path in paths]), full_matrices=False
    )
    for line, path in zip(lines, paths, strict=True):
        flat = path @ directions[:2].T
        axes.plot(flat[:, 0], flat[:, -1], color=FAINT, lw=0.6, zorder=1)
        axes.scatter(flat[:, 0], flat[:, -1], c=line.places.numpy(), s=8, cmap="viridis", zorder=2)
    axes.set(xticks=[], yticks=[])


def _groups(axes: Axes, grouped: np.ndarray, centre: np.ndarray, directions: np.ndarray) -> None:
    """Some states `[n, D]` in the same plane as all, coloured by their group, the last column."""
    flat = (grouped[:, :-1] - centre) @ directions[:2].T
    axes.scatter(flat[:, 0], flat[:, -1], c=grouped[:, -1], s=4, cmap="tab10", linewidths=0)
    axes.set(xticks=[], yticks=[])
