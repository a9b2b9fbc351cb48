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

from ami_agent.viewer.charts import (
    draw_critic_map,
    draw_critic_values,
    draw_energy,
    draw_prediction_error,
)
from ami_agent.viewer.colors import (
    CANDIDATE,
    MUTED,
    PAST,
    PLANNED,
    SUBGOAL,
    TEXT,
    draw_background,
    fit_axes,
)
from ami_agent.viewer.critic_map import CriticMap
from ami_agent.viewer.project import ProjectedEpisode, ProjectedStep

Corner: TypeAlias = Literal["upper center", "upper right"]

LEGEND = {"past": PAST, "planned": PLANNED, "candidates": CANDIDATE, "subgoals": SUBGOAL}
FADE = LinearSegmentedColormap.from_list("fade", ["#c9d8f8", PAST])

PANEL_INCHES, DPI = 4.8, 100  # inches
PANEL = round(PANEL_INCHES * DPI)  # pixels
CAPTION_HEIGHT, LEGEND_HEIGHT = (
    0.25,
    0.25,
)  # inches below the panels, for the caption and for the legend
MAX_FRAMES = 100  # frames, at most
NUM_KEY_FRAMES = 6  # frames on a sheet


def film(episode: ProjectedEpisode) -> list[Image.Image]:
    """A frame, 480 pixels wide or twice that, for every moment; in 128 colours. Of a long life only
    every n-th moment."""
    interval = -(-len(episode.projected_steps) // MAX_FRAMES)
    first = episode.projected_steps[0].panels
    width, height = PANEL_INCHES * len(first), PANEL_INCHES + CAPTION_HEIGHT
    # what stays the same is drawn once, and pictures are not matplotlib's business: both cost most
    figure, legend_figure = (
        Figure((width, height), dpi=DPI, facecolor="none"),
        Figure((width, LEGEND_HEIGHT), dpi=DPI),
    )
    _legend(legend_figure, episode, (0.5, 0.9), "upper center", 9)
    legend, caption_text = (
        pixels(legend_figure),
        figure.text(0.5, 0.015, "", ha="center", color=TEXT, size=11),
    )
    axes_by_panel = {}
    for number, panel in enumerate(first):
        if panel.overlaid:
            rect = (
                number * PANEL_INCHES / width,
                CAPTION_HEIGHT / height,
                PANEL_INCHES / width,
                PANEL_INCHES / height,
            )
            axes_by_panel[number] = figure.add_axes(rect)
            fit_axes(axes_by_panel[number], panel.picture)
    frames = []
    for projected_step in episode.projected_steps[::interval]:
        caption_text.set_text(caption(episode, projected_step))
        for axes in axes_by_panel.values():
            for artist in [*axes.lines, *axes.collections]:
                artist.remove()
            draw_states(axes, episode, projected_step)
        frame = Image.fromarray(np.vstack([_compose(figure, projected_step), legend]))
        frames.append(frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    return frames


def _compose(figure: Figure, projected_step: ProjectedStep) -> np.ndarray:
    """The moment's pictures, side by side, under what is drawn in the figure; uint8 [h, w, 3]."""
    overlay = Image.fromarray(_rgba(figure))
    canvas, side = Image.new("RGBA", overlay.size, "white"), PANEL
    for number, panel in enumerate(projected_step.panels):
        picture = Image.fromarray(panel.picture)
        scale = side / max(picture.size)
        resized = picture.resize([max(1, round(n * scale)) for n in picture.size])
        inset = [(side - n) // 2 for n in resized.size]
        canvas.paste(resized, (number * side + inset[0], inset[1]))
    return np.asarray(Image.alpha_composite(canvas, overlay))[..., :3]


def sheet(episode: ProjectedEpisode, critic_map: CriticMap | None) -> np.ndarray:
    """Key frames, energy by term over time and, where there is one, the critic's landscape, or else
    how much came true of what was imagined; uint8 [h, w, 3]."""
    rows = len(episode.projected_steps[0].panels)
    height = 5.0 + 2.6 * rows
    figure = Figure((15, height), dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.42 / height, episode.title, size=17, color=TEXT, parse_math=False)
    figure.text(0.02, 1 - 0.72 / height, episode.summary, size=13, color=MUTED, parse_math=False)
    _legend(figure, episode, (0.99, 1 - 0.11 / height), "upper right", 12.5)
    key_frames = key_steps(episode)
    for column, key_frame in enumerate(key_frames):
        for row in range(rows):
            bottom = 1 - (3.61 + 2.55 * row) / height
            axes = figure.add_axes((0.014 + column * 0.1627, bottom, 0.159, 2.385 / height))
            draw_panel(axes, episode, key_frame, row, scale=0.75)
            if row == 0:
                title = caption(episode, key_frame, brief=True)
                axes.set_title(title, size=9.5, color=TEXT, pad=2)
    width = 0.57 if critic_map is not None or episode.imagines else 0.93
    steps = [key_frame.step for key_frame in key_frames]
    draw_energy(figure.add_axes((0.04, 0.65 / height, width, 2.89 / height)), episode, steps)
    if critic_map is not None:
        rect = (0.685, 0.3 / height, 0.2330, 3.5 / height)
        draw_critic_map(figure, figure.add_axes(rect), episode, critic_map)
    elif episode.imagines:
        draw_prediction_error(figure.add_axes((0.685, 0.65 / height, 0.29, 2.89 / height)), episode)
    return pixels(figure)


def critic_overlay(critic_map: CriticMap) -> np.ndarray:
    """The critic's landscape alone, to be laid over the world's picture; uint8 [h, w, 4]."""
    height, width = critic_map.picture.shape[:2]
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_critic_values(axes, critic_map)
    fit_axes(axes, critic_map.picture)
    return _rgba(figure)


def key_steps(episode: ProjectedEpisode) -> list[ProjectedStep]:
    """Moments that tell the story: evenly spread, up to the arrival if it was for good."""
    last, steps = len(episode.projected_steps) - 1, episode.steps
    if episode.recorded.success_step is not None and episode.recorded.final_success:
        last = min(last, int(np.searchsorted(steps, episode.recorded.success_step)))
    numbers = sorted({round(number) for number in np.linspace(0, last, NUM_KEY_FRAMES)})
    return [episode.projected_steps[number] for number in numbers]


def caption(
    episode: ProjectedEpisode, projected_step: ProjectedStep, *, brief: bool = False
) -> str:
    """Step, energy of the chosen future, steps to go as the critic sees them, if there is one."""
    energy_text = (
        [f"energy {sum(projected_step.terms.values()):.3g}"]
        if projected_step.terms and not brief
        else []
    )
    critic_text = [f"{episode.unit} {projected_step.critic_value:.3g}"] if episode.unit else []
    return " · ".join([f"step {projected_step.step}", *energy_text, *critic_text])


def draw_panel(
    axes: Axes,
    episode: ProjectedEpisode,
    projected_step: ProjectedStep,
    number: int,
    *,
    scale: float = 1.0,
) -> None:
    """One of a moment's panels: a picture, and over it, if it is to be overlaid, states."""
    panel = projected_step.panels[number]
    draw_background(axes, panel.picture)
    if panel.overlaid:
        draw_states(axes, episode, projected_step, scale)


def draw_states(
    axes: Axes, episode: ProjectedEpisode, projected_step: ProjectedStep, scale: float = 1.0
) -> None:
    """What was lived, what was considered, and what was chosen."""
    _draw_path(axes, episode.path[: projected_step.step + 1], 2.6 * scale)
    alpha = float(np.clip(2 / np.sqrt(len(projected_step.candidates)), 0.1, 0.5))
    lines = LineCollection(list(projected_step.candidates), colors=CANDIDATE, alpha=alpha,
                                linewidths=1.6 * scale, zorder=3)  # fmt: skip
    axes.add_collection(lines, autolim=False)
    _draw_planned(axes, projected_step, scale)
    _draw_subgoals(axes, projected_step, scale)


def _draw_path(axes: Axes, path: np.ndarray, width: float) -> None:
    """`[T, 2]`; long ago is faint."""
    segments = np.stack([path[:-1], path[1:]], 1)  # [T - 1, 2, 2]
    colors = FADE(np.linspace(0, 1, len(segments)))
    lines = LineCollection(list(segments), colors=colors, linewidths=width, zorder=2,
                           capstyle="round")  # fmt: skip
    axes.add_collection(lines, autolim=False)
    axes.plot(*path[-1:].T, "o", color=PAST, ms=1.7 * width, zorder=2)


def _draw_planned(axes: Axes, projected_step: ProjectedStep, scale: float) -> None:
    """A line with a dot for every imagined step; the further ahead, the smaller."""
    x, y = projected_step.planned.T
    axes.plot(x, y, color=PLANNED, lw=2.4 * scale, zorder=4, solid_capstyle="round")
    sizes = np.linspace(46, 22, len(x) - 1) * scale**2
    axes.scatter(x[1:], y[1:], s=sizes, color=PLANNED, edgecolors="white",
                 linewidths=0.9 * scale, zorder=5)  # fmt: skip


def _draw_subgoals(axes: Axes, projected_step: ProjectedStep, scale: float) -> None:
    """Of each level above a dotted line of what it hopes for; a diamond is the subgoal."""
    for plan in projected_step.upper_plans:
        x, y = np.concatenate([projected_step.position[None], plan]).T
        axes.plot(x, y, color=SUBGOAL, lw=1.6 * scale, ls=":", marker=".", ms=7 * scale, zorder=3)
        axes.scatter(x[1:2], y[1:2], s=110 * scale**2, marker="D", facecolors="none",
                     edgecolors=SUBGOAL, linewidths=2 * scale, zorder=5)  # fmt: skip


def _legend(
    figure: Figure,
    episode: ProjectedEpisode,
    place: tuple[float, float],
    corner: Corner,
    size: float,
) -> None:
    """The colours in use, by name."""
    handles = [
        Line2D([], [], color=color, marker="o", ls="", label=name)
        for name, color in LEGEND.items()
        if name == "past" or (episode.has_subgoals if name == "subgoals" else episode.imagines)
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
