"""Colours, and what every drawing begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes

from ami_agent.show.scenes import Moment

LIVED, CHOSEN, CONSIDERED, ARRIVED = "#1e5adc", "#f0591a", "#8a63d2", "#1e9646"
HOPED = "#0f8f83"
TEXT, FAINT = "#22262e", "#767d8a"
TERMS = {"reach": "#c2497f", "critic": "#e8a317"}
OTHERS = ("#17a08c", "#8a63d2", "#1e5adc", "#f0591a", "#7a8c2e")


def colours(names: Iterable[str]) -> dict[str, str]:
    """Of terms by name: those that most agents have are the same wherever they are shown."""
    others = cycle(OTHERS)
    return {name: TERMS.get(name) or next(others) for name in names}


def layers(moments: Sequence[Moment]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, colour, inner and outer edge [N] of every term of the energy, one on the other: what
    hurts above zero, what is welcome below."""
    above, below = np.zeros((2, len(moments)))
    for name, colour in colours(moments[0].terms).items():
        term = np.array([moment.terms[name] for moment in moments])
        inner = np.where(term > 0, above, below)
        yield name, colour, inner, inner + term
        above, below = above + term.clip(min=0), below + term.clip(max=0)


def ink(picture: np.ndarray) -> np.ndarray:
    """The picture as [h, w, 4], its most common colour transparent: what is drawn on the ground."""
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    far = np.abs(picture.astype(int) - colours[counts.argmax()]).max(-1)
    cover = np.clip(far * 2, 0, 255).astype(np.uint8)
    return np.dstack([picture, cover])


def background(axes: Axes, picture: np.ndarray, zorder: int = 0) -> None:
    """The picture `[h, w, 3 or 4]`, pixel for pixel under what is drawn on it."""
    axes.imshow(picture, interpolation="bilinear", zorder=zorder)
    fit(axes, picture)


def fit(axes: Axes, picture: np.ndarray) -> None:
    """Axes in the pixels of a picture."""
    height, width = picture.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    axes.set_axis_off()
