"""Moments and episodes as images. matplotlib's objects only: no window, no global state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from PIL import Image

from ami_agent.show.episodes import Episode, Moment
from ami_agent.show.landscape import Landscape

LIVED, CHOSEN, CONSIDERED = "#1e5adc", "#f0591a", "#8a63d2"
TEXT, FAINT = "#22262e", "#767d8a"
LEGEND = {"lived": LIVED, "chosen": CHOSEN, "considered": CONSIDERED}
TERMS = ("#f0591a", "#e8a317", "#17a08c", "#8a63d2", "#1e5adc")
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
        draw_map(figure.add_axes((0, 1 - FRAME[0] / FRAME[1], 1, FRAME[0] / FRAME[1])),
                 episode, step)  # fmt: skip
        figure.text(0.5, 0.06, caption(episode, step), ha="center", color=TEXT, size=11)
        _legend(figure, 0.02)
        frames.append(Image.fromarray(pixels(figure)).quantize(128, dither=Image.Dither.NONE))
    return frames


def sheet(episode: Episode, landscape: Landscape | None) -> np.ndarray:
    """Key frames, energy by term over time and, where there is one, the critic's landscape;
    uint8 [h, w, 3]."""
    figure = Figure((15, 7.6), dpi=110, facecolor="white")
    figure.text(0.02, 0.945, f"{episode.world}, mode {episode.mode}", size=17, color=TEXT)
    figure.text(0.02, 0.905, episode.verdict, size=13, color=FAINT)
    _legend(figure, 0.945, right=0.98, size=12)
    steps = key_steps(episode)
    for column, step in enumerate(steps):
        axes = figure.add_axes((0.02 + column * 0.1613, 0.545, 0.1535, 0.303))
        draw_map(axes, episode, step, scale=0.62)
        axes.set_title(caption(episode, step, brief=True), size=9.5, color=TEXT, pad=5)
    wide = 0.92 if landscape is None else 0.56
    draw_energy(figure.add_axes((0.055, 0.08, wide, 0.37)), episode, steps)
    if landscape is not None:
        draw_landscape(figure, figure.add_axes((0.67, 0.05, 0.2229, 0.44)), episode, landscape)
    return pixels(figure)


def key_steps(episode: Episode) -> list[int]:
    """Steps that tell the story: evenly spread, up to the arrival if it was for good."""
    last = len(episode.moments) - 1
    if episode.arrived is not None and episode.stayed:
        last = min(last, episode.arrived)
    return sorted({round(step) for step in np.linspace(0, last, KEYS)})


def caption(episode: Episode, step: int, *, brief: bool = False) -> str:
    """Step, energy of the chosen future, steps to go as the critic sees them."""
    moment = episode.moments[step]
    energy = [f"energy {sum(moment.terms.values()):.3g}"] if moment.terms and not brief else []
    return "   ".join([f"step {step}", *energy, f"{moment.to_go:.0f} steps to go"])


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


def _draw_path(axes: Axes, path: np.ndarray, width: float, colour: str = LIVED) -> None:
    """`[T, 2]`; long ago is faint."""
    pieces = np.stack([path[:-1], path[1:]], 1)  # [T - 1, 2, 2]
    colours = [to_rgba(colour, alpha) for alpha in np.linspace(0.25, 0.9, len(pieces))]
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
    axes.scatter(*moment.subgoals.T, s=90 * scale**2, marker="D", facecolors="none",
                 edgecolors=CHOSEN, linewidths=2 * scale, zorder=5)  # fmt: skip


def draw_energy(axes: Axes, episode: Episode, steps: list[int]) -> None:
    """What the chosen future would cost, by term, and what the critic says of the present."""
    time = np.arange(len(episode.moments))
    names = list(episode.moments[0].terms)
    terms = [[moment.terms[name] for moment in episode.moments] for name in names]
    if names:
        axes.stackplot(time, terms, colors=TERMS, alpha=0.75, lw=0,
                       labels=[f"energy of the chosen future: {name}" for name in names])  # fmt: skip
    axes.plot(time, [moment.to_go for moment in episode.moments], color=TEXT, lw=1.6, ls=(0, (4, 2)),
              label="critic at the present place (steps to go)")  # fmt: skip
    if episode.arrived is not None:
        axes.axvline(episode.arrived, color="#1e9646", lw=1.4, label="first arrival")
    axes.plot(steps, np.zeros(len(steps)), "^", color=TEXT, ms=6, clip_on=False, zorder=9)
    axes.set(
        xlim=(0, max(len(time) - 1, 1)), ylim=(0, None), xlabel="step (marked: the frames above)"
    )
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9.5)
    axes.xaxis.label.set(color=FAINT, size=10)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)


def draw_landscape(figure: Figure, axes: Axes, episode: Episode, landscape: Landscape) -> None:
    """Steps to go as colours and contours, with the path that was lived through them."""
    picture = episode.moments[0].picture
    x, y = np.moveaxis(landscape.xy, -1, 0)
    to_go = np.ma.masked_invalid(landscape.to_go)
    top = max(float(to_go.max()), 1e-6)
    heat = axes.contourf(x, y, to_go, np.linspace(0, top, 25), cmap=HEAT, zorder=1)
    axes.contour(x, y, to_go, np.linspace(0, top, 13)[1:-1], colors="white", linewidths=0.5,
                 alpha=0.7, zorder=2)  # fmt: skip
    _background(axes, ink(picture), zorder=3)
    axes.plot(*episode.path.T, color="white", lw=4, zorder=4, solid_capstyle="round")
    axes.plot(*episode.path.T, color=LIVED, lw=2, zorder=5, solid_capstyle="round")
    axes.set_title("the critic's landscape: steps to go", size=10.5, color=TEXT, pad=6)
    left, bottom, width, height = axes.get_position().bounds
    bar = figure.colorbar(heat, cax=figure.add_axes((left + width + 0.012, bottom, 0.009, height)))
    bar.outline.set_visible(False)
    bar.set_ticks([tick for tick in bar.get_ticks() if tick <= top])
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


def _legend(figure: Figure, y: float, *, right: float = 0.74, size: float = 9) -> None:
    """The three colours by name, from right to left."""
    step = 1.15 * size / figure.get_size_inches()[0] / 12
    for name, colour in reversed(LEGEND.items()):
        figure.text(right, y, f"\u25cf {name}", ha="right", color=colour, size=size)
        right -= step * (len(name) + 4) / 10


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
