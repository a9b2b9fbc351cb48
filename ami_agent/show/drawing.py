"""Episodes as images. matplotlib's objects only: no window, no global state."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ami_agent.show.charts import draw_came_true, draw_energy, draw_heat, draw_landscape
from ami_agent.show.landscape import Landscape
from ami_agent.show.paint import CHOSEN, CONSIDERED, FAINT, HOPED, LIVED, TEXT, background, fit
from ami_agent.show.scenes import Episode, Moment

Corner: TypeAlias = Literal["upper center", "upper right"]

LEGEND = {"lived": LIVED, "chosen": CHOSEN, "considered": CONSIDERED, "subgoals": HOPED}
FADE = LinearSegmentedColormap.from_list("fade", ["#c9d8f8", LIVED])

SIDE, DPI = 4.8, 100  # inches
PANEL = round(SIDE * DPI)  # pixels
SAID, NAMED = 0.25, 0.25  # inches below the panels, for the caption and for the legend
FILM = 100  # frames, at most
KEYS = 6  # frames on a sheet


def film(episode: Episode) -> list[Image.Image]:
    """A frame, 480 pixels wide or twice that, for every moment; in 128 colours. Of a long life only
    every n-th moment."""
    every = -(-len(episode.moments) // FILM)
    first = episode.moments[0].panels
    wide, high = SIDE * len(first), SIDE + SAID
    # what stays the same is drawn once, and pictures are not matplotlib's business: both cost most
    figure, below = Figure((wide, high), dpi=DPI, facecolor="none"), Figure((wide, NAMED), dpi=DPI)
    _legend(below, episode, (0.5, 0.9), "upper center", 9)
    named, said = pixels(below), figure.text(0.5, 0.015, "", ha="center", color=TEXT, size=11)
    over = {}
    for number, panel in enumerate(first):
        if panel.overlaid:
            place = (number * SIDE / wide, SAID / high, SIDE / wide, SIDE / high)
            over[number] = figure.add_axes(place)
            fit(over[number], panel.picture)
    frames = []
    for moment in episode.moments[::every]:
        said.set_text(caption(episode, moment))
        for axes in over.values():
            for old in [*axes.lines, *axes.collections]:
                old.remove()
            draw_states(axes, episode, moment)
        frame = Image.fromarray(np.vstack([_under(figure, moment), named]))
        frames.append(frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    return frames


def _under(figure: Figure, moment: Moment) -> np.ndarray:
    """The moment's pictures, side by side, under what is drawn in the figure; uint8 [h, w, 3]."""
    drawn = Image.fromarray(_rgba(figure))
    ground, side = Image.new("RGBA", drawn.size, "white"), PANEL
    for number, panel in enumerate(moment.panels):
        picture = Image.fromarray(panel.picture)
        share = side / max(picture.size)
        fitted = picture.resize([max(1, round(n * share)) for n in picture.size])
        inset = [(side - n) // 2 for n in fitted.size]
        ground.paste(fitted, (number * side + inset[0], inset[1]))
    return np.asarray(Image.alpha_composite(ground, drawn))[..., :3]


def sheet(episode: Episode, landscape: Landscape | None) -> np.ndarray:
    """Key frames, energy by term over time and, where there is one, the critic's landscape, or else
    how much came true of what was imagined; uint8 [h, w, 3]."""
    rows = len(episode.moments[0].panels)
    high = 5.0 + 2.6 * rows
    figure = Figure((15, high), dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.42 / high, episode.title, size=17, color=TEXT, parse_math=False)
    figure.text(0.02, 1 - 0.72 / high, episode.verdict, size=13, color=FAINT, parse_math=False)
    _legend(figure, episode, (0.99, 1 - 0.11 / high), "upper right", 12.5)
    moments = key_moments(episode)
    for column, moment in enumerate(moments):
        for row in range(rows):
            bottom = 1 - (3.61 + 2.55 * row) / high
            axes = figure.add_axes((0.014 + column * 0.1627, bottom, 0.159, 2.385 / high))
            draw_panel(axes, episode, moment, row, scale=0.75)
            if row == 0:
                told = caption(episode, moment, brief=True)
                axes.set_title(told, size=9.5, color=TEXT, pad=2)
    wide = 0.57 if landscape is not None or episode.imagines else 0.93
    steps = [moment.step for moment in moments]
    draw_energy(figure.add_axes((0.04, 0.65 / high, wide, 2.89 / high)), episode, steps)
    if landscape is not None:
        place = (0.685, 0.3 / high, 0.2330, 3.5 / high)
        draw_landscape(figure, figure.add_axes(place), episode, landscape)
    elif episode.imagines:
        draw_came_true(figure.add_axes((0.685, 0.65 / high, 0.29, 2.89 / high)), episode)
    return pixels(figure)


def shade(landscape: Landscape) -> np.ndarray:
    """The critic's landscape alone, to be laid over the world's picture; uint8 [h, w, 4]."""
    high, wide = landscape.picture.shape[:2]
    figure = Figure((wide / DPI, high / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_heat(axes, landscape)
    fit(axes, landscape.picture)
    return _rgba(figure)


def key_moments(episode: Episode) -> list[Moment]:
    """Moments that tell the story: evenly spread, up to the arrival if it was for good."""
    last, steps = len(episode.moments) - 1, episode.steps
    if episode.life.arrived is not None and episode.life.stayed:
        last = min(last, int(np.searchsorted(steps, episode.life.arrived)))
    chosen = sorted({round(number) for number in np.linspace(0, last, KEYS)})
    return [episode.moments[number] for number in chosen]


def caption(episode: Episode, moment: Moment, *, brief: bool = False) -> str:
    """Step, energy of the chosen future, steps to go as the critic sees them, if there is one."""
    energy = [f"energy {sum(moment.terms.values()):.3g}"] if moment.terms and not brief else []
    ahead = [f"{episode.unit} {moment.to_go:.3g}"] if episode.unit else []
    return " · ".join([f"step {moment.step}", *energy, *ahead])


def draw_panel(
    axes: Axes, episode: Episode, moment: Moment, number: int, *, scale: float = 1.0
) -> None:
    """One of a moment's panels: a picture, and over it, if it is to be overlaid, states."""
    panel = moment.panels[number]
    background(axes, panel.picture)
    if panel.overlaid:
        draw_states(axes, episode, moment, scale)


def draw_states(axes: Axes, episode: Episode, moment: Moment, scale: float = 1.0) -> None:
    """What was lived, what was considered, and what was chosen."""
    _draw_path(axes, episode.path[: moment.step + 1], 2.6 * scale)
    alpha = float(np.clip(2 / np.sqrt(len(moment.considered)), 0.1, 0.5))
    considered = LineCollection(list(moment.considered), colors=CONSIDERED, alpha=alpha,
                                linewidths=1.6 * scale, zorder=3)  # fmt: skip
    axes.add_collection(considered, autolim=False)
    _draw_chosen(axes, moment, scale)
    _draw_hopes(axes, moment, scale)


def _draw_path(axes: Axes, path: np.ndarray, width: float) -> None:
    """`[T, 2]`; long ago is faint."""
    pieces = np.stack([path[:-1], path[1:]], 1)  # [T - 1, 2, 2]
    colours = FADE(np.linspace(0, 1, len(pieces)))
    lived = LineCollection(list(pieces), colors=colours, linewidths=width, zorder=2,
                           capstyle="round")  # fmt: skip
    axes.add_collection(lived, autolim=False)
    axes.plot(*path[-1:].T, "o", color=LIVED, ms=1.7 * width, zorder=2)


def _draw_chosen(axes: Axes, moment: Moment, scale: float) -> None:
    """A line with a dot for every imagined step; the further ahead, the smaller."""
    x, y = moment.chosen.T
    axes.plot(x, y, color=CHOSEN, lw=2.4 * scale, zorder=4, solid_capstyle="round")
    sizes = np.linspace(46, 22, len(x) - 1) * scale**2
    axes.scatter(x[1:], y[1:], s=sizes, color=CHOSEN, edgecolors="white",
                 linewidths=0.9 * scale, zorder=5)  # fmt: skip


def _draw_hopes(axes: Axes, moment: Moment, scale: float) -> None:
    """Of each level above a dotted line of what it hopes for; a diamond is the subgoal."""
    for hopes in moment.hopes:
        x, y = np.concatenate([moment.place[None], hopes]).T
        axes.plot(x, y, color=HOPED, lw=1.6 * scale, ls=":", marker=".", ms=7 * scale, zorder=3)
        axes.scatter(x[1:2], y[1:2], s=110 * scale**2, marker="D", facecolors="none",
                     edgecolors=HOPED, linewidths=2 * scale, zorder=5)  # fmt: skip


def _legend(
    figure: Figure, episode: Episode, place: tuple[float, float], corner: Corner, size: float
) -> None:
    """The colours in use, by name."""
    handles = [
        Line2D([], [], color=colour, marker="o", ls="", label=name)
        for name, colour in LEGEND.items()
        if name == "lived" or (episode.hopes if name == "subgoals" else episode.imagines)
    ]
    figure.legend(
        handles=handles, loc=corner, bbox_to_anchor=place, borderaxespad=0, ncols=len(handles),
        frameon=False, fontsize=size, labelcolor="linecolor", handletextpad=0, columnspacing=1.2,
    )  # fmt: skip


def pixels(figure: Figure) -> np.ndarray:
    """uint8 [h, w, 3]"""
    return _rgba(figure)[..., :3].copy()


def _rgba(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
