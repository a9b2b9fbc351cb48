"""Moments and episodes as images. matplotlib's objects only: no window, no global state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ami_agent.show.episodes import Episode, Moment
from ami_agent.show.landscape import Landscape

Corner: TypeAlias = Literal["upper center", "upper right"]

LIVED, CHOSEN, CONSIDERED, ARRIVED = "#1e5adc", "#f0591a", "#8a63d2", "#1e9646"
HOPED = "#0f8f83"
TEXT, FAINT = "#22262e", "#767d8a"
LEGEND = {"lived": LIVED, "chosen": CHOSEN, "considered": CONSIDERED, "subgoals": HOPED}
TERMS = ("#f0591a", "#e8a317", "#17a08c", "#8a63d2", "#1e5adc")
FADE = LinearSegmentedColormap.from_list("fade", ["#c9d8f8", LIVED])
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#fff8e6", "#ffdf9e", "#fdb374", "#ec7f78", "#b9568c", "#6d3f8c", "#2f2a63"]
)

FRAME, DPI = (4.8, 5.3), 100  # inches; 480 x 530 pixels
KEYS = 6  # frames on a sheet
PACE, REST = 110, 1800  # milliseconds a frame is shown, and the last


def film(episode: Episode) -> list[Image.Image]:
    """One frame for every step, 480 x 530 pixels in 128 colours."""
    frames = []
    for step in range(len(episode.moments)):
        figure = Figure(FRAME, dpi=DPI, facecolor="white")
        share = FRAME[0] / FRAME[1]
        draw_map(figure.add_axes((0, 1 - share, 1, share)), episode, step)
        figure.text(0.5, 0.065, caption(episode, step), ha="center", color=TEXT, size=11)
        _legend(figure, episode, (0.5, 0.05), "upper center", 9)
        frames.append(Image.fromarray(pixels(figure)).quantize(128, dither=Image.Dither.NONE))
    return frames


def sheet(episode: Episode, landscape: Landscape | None) -> np.ndarray:
    """Key frames, energy by term over time and, where there is one, the critic's landscape;
    uint8 [h, w, 3]."""
    figure = Figure((15, 7.6), dpi=110, facecolor="white")
    figure.text(0.02, 0.945, f"{episode.world}, mode {episode.mode}", size=17, color=TEXT)
    figure.text(0.02, 0.905, episode.verdict, size=13, color=FAINT)
    _legend(figure, episode, (0.99, 0.985), "upper right", 12.5)
    steps = key_steps(episode)
    for column, step in enumerate(steps):
        axes = figure.add_axes((0.014 + column * 0.1627, 0.525, 0.159, 0.3138))
        draw_map(axes, episode, step, scale=0.75)
        axes.set_title(caption(episode, step, brief=True), size=9.5, color=TEXT, pad=2)
    wide = 0.93 if landscape is None else 0.57
    draw_energy(figure.add_axes((0.04, 0.085, wide, 0.38)), episode, steps)
    if landscape is not None:
        draw_landscape(figure, figure.add_axes((0.685, 0.04, 0.2330, 0.46)), episode, landscape)
    return pixels(figure)


def key_steps(episode: Episode) -> list[int]:
    """Steps that tell the story: evenly spread, up to the arrival if it was for good."""
    last = len(episode.moments) - 1
    if episode.arrived is not None and episode.stayed:
        last = min(last, episode.arrived)
    return sorted({round(step) for step in np.linspace(0, last, KEYS)})


def caption(episode: Episode, step: int, *, brief: bool = False) -> str:
    """Step, energy of the chosen future, steps to go as the critic sees them, if there is one."""
    moment = episode.moments[step]
    energy = [f"energy {sum(moment.terms.values()):.3g}"] if moment.terms and not brief else []
    ahead = [f"{moment.to_go:.3g} {episode.unit}"] if episode.unit else []
    return " · ".join([f"step {step}", *energy, *ahead])


def draw_map(axes: Axes, episode: Episode, step: int, *, scale: float = 1.0) -> None:
    """The world's picture, what was lived, what was considered, and what was chosen."""
    moment = episode.moments[step]
    _background(axes, moment.picture)
    _draw_path(axes, episode.path[: step + 1], 2.6 * scale)
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


def draw_energy(axes: Axes, episode: Episode, steps: list[int]) -> None:
    """What the chosen future would cost, by term, and what the critic says of the present."""
    moments, time = episode.moments, np.arange(len(episode.moments))
    aim = ", to the goal" if episode.hopes else ""
    chosen = "to the subgoal" if episode.hopes else "chosen future"
    for name, colour, low, high in _layers(moments):
        axes.fill_between(time, low, high, color=colour, alpha=0.75, lw=0,
                          label=f"{chosen}: {name}")  # fmt: skip
    if episode.unit:
        axes.plot(time, [moment.to_go for moment in moments], color=TEXT, lw=1.6, ls=(0, (4, 2)),
                  label=f"critic now{aim}: {episode.unit}")  # fmt: skip
    if episode.arrived is not None:
        axes.axvline(episode.arrived, color=ARRIVED, lw=1.4, label="first arrival")
    axes.plot(steps, np.zeros(len(steps)), "^", color=TEXT, ms=6, clip_on=False, zorder=9,
              transform=axes.get_xaxis_transform())  # fmt: skip
    lowest = axes.dataLim.ymin
    axes.set(xlim=(0, len(time)), ylim=(min(0, 1.05 * lowest), None),
             xlabel="step (marked: the frames above)")  # fmt: skip
    _tidy(axes)


def _layers(moments: Sequence[Moment]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, colour, inner and outer edge [T] of every term of the energy, one on the other: what
    hurts above zero, what is welcome below."""
    above, below = np.zeros((2, len(moments)))
    for name, colour in zip(moments[0].terms, cycle(TERMS)):
        term = np.array([moment.terms[name] for moment in moments])
        inner = np.where(term > 0, above, below)
        yield name, colour, inner, inner + term
        above, below = above + term.clip(min=0), below + term.clip(max=0)


def _tidy(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, ncols=3, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1.6)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9.5)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    axes.xaxis.label.set(color=FAINT, size=10)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)


HIGHEST = 4.0
"""Top of the critic's scale, in medians of the landscape."""


def draw_landscape(figure: Figure, axes: Axes, episode: Episode, landscape: Landscape) -> None:
    """Steps to go as colours and contours, with the path that was lived through them."""
    picture = episode.moments[0].picture
    x, y = np.moveaxis(landscape.xy, -1, 0)
    to_go = np.ma.masked_invalid(landscape.to_go)
    # places from which nothing leads there would leave one colour for all others
    highest = min(to_go.max(), to_go.min() + HIGHEST * np.ma.median(to_go - to_go.min()))
    beyond = "max" if to_go.max() > highest else "neither"
    levels = np.linspace(to_go.min(), highest, 25)
    heat = axes.contourf(x, y, to_go, levels, cmap=HEAT, zorder=1, extend=beyond)
    axes.contour(x, y, to_go, levels[2:-1:2], colors="white", linewidths=0.5, alpha=0.7, zorder=2)
    _background(axes, ink(picture), zorder=3)
    axes.plot(*episode.path.T, color="white", lw=4, zorder=4, solid_capstyle="round")
    axes.plot(*episode.path.T, color=LIVED, lw=2, zorder=5, solid_capstyle="round")
    axes.set_title(f"the critic's landscape: {episode.unit}", size=10.5, color=TEXT, pad=0)
    left, bottom, width, height = axes.get_position().bounds
    place = (left + width + 0.005, bottom + 0.06 * height, 0.009, 0.88 * height)
    bar = figure.colorbar(heat, cax=figure.add_axes(place), ticks=MaxNLocator(6))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=FAINT, labelsize=9, length=0)


def ink(picture: np.ndarray) -> np.ndarray:
    """The picture as [h, w, 4], its most common colour transparent: what is drawn on the ground."""
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    far = np.abs(picture.astype(int) - colours[counts.argmax()]).max(-1)
    cover = np.clip(far * 2, 0, 255).astype(np.uint8)
    return np.dstack([picture, cover])


def _background(axes: Axes, picture: np.ndarray, zorder: int = 0) -> None:
    axes.imshow(picture, interpolation="bilinear", zorder=zorder)
    height, width = picture.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_axis_off()


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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_gif(path: Path, frames: list[Image.Image]) -> None:
    """Plays for ever, and rests on the last frame."""
    pace = [PACE] * (len(frames) - 1) + [REST]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pace, loop=0)


def write_png(path: Path, image: np.ndarray) -> None:
    """`image`: uint8 [h, w, 3]"""
    Image.fromarray(image).save(path)
