"""Episodes as images, by matplotlib's objects alone: no window, no global state."""

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

PANEL_INCHES, DPI = 4.8, 100
PANEL = round(PANEL_INCHES * DPI)  # pixels
CAPTION_INCHES = LEGEND_INCHES = 0.25  # each below the panels
MAX_FRAMES = 100  # of a film
NUM_KEY_FRAMES = 6  # of a sheet


def film(episode: ProjectedEpisode) -> list[Image.Image]:
    """A frame, 480 pixels wide or twice that, in 128 colours, for every recorded step; of a long
    episode only for every n-th."""
    interval = -(-len(episode.projected_steps) // MAX_FRAMES)
    first = episode.projected_steps[0].panels
    width, height = PANEL_INCHES * len(first), PANEL_INCHES + CAPTION_INCHES
    # for speed the legend is drawn once, and the pictures are pasted without matplotlib
    figure = Figure((width, height), dpi=DPI, facecolor="none")
    legend_figure = Figure((width, LEGEND_INCHES), dpi=DPI)
    _legend(legend_figure, episode, (0.5, 0.9), "upper center", 9)
    legend = pixels(legend_figure)
    caption_text = figure.text(0.5, 0.015, "", ha="center", color=TEXT, size=11)
    overlaid_axes = []
    for number, panel in enumerate(first):
        if panel.overlaid:
            left, bottom = number * PANEL_INCHES / width, CAPTION_INCHES / height
            rect = (left, bottom, PANEL_INCHES / width, PANEL_INCHES / height)
            overlaid_axes.append(figure.add_axes(rect))
            fit_axes(overlaid_axes[-1], panel.picture)
    frames = []
    for projected_step in episode.projected_steps[::interval]:
        caption_text.set_text(caption(episode, projected_step))
        for axes in overlaid_axes:
            for artist in [*axes.lines, *axes.collections]:
                artist.remove()
            draw_states(axes, episode, projected_step)
        frame = Image.fromarray(np.vstack([_compose(figure, projected_step), legend]))
        frames.append(frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    return frames


def _compose(figure: Figure, projected_step: ProjectedStep) -> np.ndarray:
    """The panels of a step, side by side, under the figure; uint8 [h, w, 3]."""
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
    """Key frames, energy by term over time, and the critic map or, without one, the prediction
    error; uint8 [h, w, 3]."""
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
    """The critic map alone, to be laid over a frame of the environment; uint8 [h, w, 4]."""
    height, width = critic_map.picture.shape[:2]
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_critic_values(axes, critic_map)
    fit_axes(axes, critic_map.picture)
    return _rgba(figure)


def key_steps(episode: ProjectedEpisode) -> list[ProjectedStep]:
    """Evenly spread steps, up to the first success where the episode also ends in success."""
    last, steps = len(episode.projected_steps) - 1, episode.steps
    if episode.recorded.success_step is not None and episode.recorded.final_success:
        last = min(last, int(np.searchsorted(steps, episode.recorded.success_step)))
    numbers = sorted({round(number) for number in np.linspace(0, last, NUM_KEY_FRAMES)})
    return [episode.projected_steps[number] for number in numbers]


def caption(
    episode: ProjectedEpisode, projected_step: ProjectedStep, *, brief: bool = False
) -> str:
    """The step, the energy of the plan unless `brief`, and the critic's value if there is one."""
    parts = [f"step {projected_step.step}"]
    if projected_step.terms and not brief:
        parts.append(f"energy {sum(projected_step.terms.values()):.3g}")
    if episode.unit:
        parts.append(f"{episode.unit} {projected_step.critic_value:.3g}")
    return " · ".join(parts)


def draw_panel(
    axes: Axes, episode: ProjectedEpisode, projected_step: ProjectedStep, number: int, *,
    scale: float = 1.0,
) -> None:  # fmt: skip
    """Draws one panel of a step: its picture and, if it is overlaid, states."""
    panel = projected_step.panels[number]
    draw_background(axes, panel.picture)
    if panel.overlaid:
        draw_states(axes, episode, projected_step, scale)


def draw_states(
    axes: Axes, episode: ProjectedEpisode, projected_step: ProjectedStep, scale: float = 1.0
) -> None:
    """Draws the past path, the candidates, the plan and the subgoals."""
    _draw_path(axes, episode.path[: projected_step.step + 1], 2.6 * scale)
    alpha = float(np.clip(2 / np.sqrt(len(projected_step.candidates)), 0.1, 0.5))
    lines = LineCollection(list(projected_step.candidates), colors=CANDIDATE, alpha=alpha,
                           linewidths=1.6 * scale, zorder=3)  # fmt: skip
    axes.add_collection(lines, autolim=False)
    _draw_planned(axes, projected_step, scale)
    _draw_subgoals(axes, projected_step, scale)


def _draw_path(axes: Axes, path: np.ndarray, width: float) -> None:
    """Draws positions `[T, 2]`, older ones fainter."""
    segments = np.stack([path[:-1], path[1:]], 1)  # [T - 1, 2, 2]
    colors = FADE(np.linspace(0, 1, len(segments)))
    lines = LineCollection(list(segments), colors=colors, linewidths=width, zorder=2,
                           capstyle="round")  # fmt: skip
    axes.add_collection(lines, autolim=False)
    axes.plot(*path[-1:].T, "o", color=PAST, ms=1.7 * width, zorder=2)


def _draw_planned(axes: Axes, projected_step: ProjectedStep, scale: float) -> None:
    """Draws a line with a dot for every imagined step, smaller further ahead."""
    x, y = projected_step.planned.T
    axes.plot(x, y, color=PLANNED, lw=2.4 * scale, zorder=4, solid_capstyle="round")
    sizes = np.linspace(46, 22, len(x) - 1) * scale**2
    axes.scatter(x[1:], y[1:], s=sizes, color=PLANNED, edgecolors="white",
                 linewidths=0.9 * scale, zorder=5)  # fmt: skip


def _draw_subgoals(axes: Axes, projected_step: ProjectedStep, scale: float) -> None:
    """Draws the plan of each level above as a dotted line, and its next subgoal as a diamond."""
    for plan in projected_step.upper_plans:
        x, y = np.concatenate([projected_step.position[None], plan]).T
        axes.plot(x, y, color=SUBGOAL, lw=1.6 * scale, ls=":", marker=".", ms=7 * scale, zorder=3)
        axes.scatter(x[1:2], y[1:2], s=110 * scale**2, marker="D", facecolors="none",
                     edgecolors=SUBGOAL, linewidths=2 * scale, zorder=5)  # fmt: skip


def _legend(
    figure: Figure, episode: ProjectedEpisode, anchor: tuple[float, float], corner: Corner,
    size: float,
) -> None:  # fmt: skip
    """Draws the names of the colours that the episode uses."""
    handles = [
        Line2D([], [], color=color, marker="o", ls="", label=name)
        for name, color in LEGEND.items()
        if name == "past" or (episode.has_subgoals if name == "subgoals" else episode.imagines)
    ]
    figure.legend(
        handles=handles, loc=corner, bbox_to_anchor=anchor, borderaxespad=0, ncols=len(handles),
        frameon=False, fontsize=size, labelcolor="linecolor", handletextpad=0, columnspacing=1.2,
    )  # fmt: skip


def pixels(figure: Figure) -> np.ndarray:
    """uint8 [h, w, 3]"""
    return _rgba(figure)[..., :3].copy()


def _rgba(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
