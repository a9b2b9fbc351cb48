"""Episodes as images and films, by matplotlib's objects alone: no window, no global state."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from ami_agent.storage.files import replacing
from ami_agent.viewer.projectors import CriticMap, Panel, ProjectedEpisode, ProjectedStep
from ami_agent.viewer.record import STEPS_TO_GO
from modules.types import ConfigError

PAST, PLANNED, CANDIDATE, SUCCESS = "#1e5adc", "#f0591a", "#8a63d2", "#1e9646"
SUBGOAL = "#0f8f83"
TEXT, MUTED = "#22262e", "#767d8a"
TERM_COLORS = {"goal_distance": "#c2497f", "critic": "#e8a317"}
OTHER_COLORS = ("#17a08c", "#8a63d2", "#1e5adc", "#f0591a", "#7a8c2e")
LEGEND = {
    "past": PAST, "planned": PLANNED, "candidates": CANDIDATE, "subgoals, in order": SUBGOAL,
}  # fmt: skip
FADE = LinearSegmentedColormap.from_list("fade", ["#c9d8f8", PAST])
CRITIC_COLORS = ("#fff8e6", "#ffdf9e", "#fdb374", "#ec7f78", "#b9568c", "#6d3f8c", "#2f2a63")
CRITIC_COLORMAP = LinearSegmentedColormap.from_list("heat", list(CRITIC_COLORS))
MAX_IN_MEDIANS = 4.0
"""Top of the colour scale of a critic map, in medians of its values above the lowest."""

PANEL_INCHES, DPI = 4.8, 100
PANEL = round(PANEL_INCHES * DPI)  # pixels
CAPTION_INCHES = LEGEND_INCHES = 0.25  # each below the panels
MAX_FRAMES = 100  # of a film
FRAME_MS, LAST_FRAME_MS = 110, 1800  # milliseconds for which a frame is shown, and the last one
NUM_KEY_FRAMES = 6  # of a sheet
NOTE_WIDTH = 80  # characters in a line of the notes of a sheet


def film(episode: ProjectedEpisode) -> list[Image.Image]:
    """A frame in 128 colours for every recorded step; of a long episode for every n-th."""
    interval = -(-len(episode.projected_steps) // MAX_FRAMES)
    first = episode.projected_steps[0].panels
    width, height = PANEL_INCHES * len(first), PANEL_INCHES + CAPTION_INCHES
    # for speed the legend is drawn once, and the pictures are pasted without matplotlib
    figure = Figure((width, height), dpi=DPI, facecolor="none")
    legend_figure = Figure((width, LEGEND_INCHES), dpi=DPI)
    _legend(legend_figure, episode, loc="upper center", bbox_to_anchor=(0.5, 0.9), fontsize=9)
    legend = pixels(legend_figure)
    caption_text = figure.text(0.5, 0.015, "", ha="center", color=TEXT, size=9.5)
    overlaid_axes = []
    for number, panel in enumerate(first):
        if panel.overlaid:
            left, bottom = number * PANEL_INCHES / width, CAPTION_INCHES / height
            rect = (left, bottom, PANEL_INCHES / width, PANEL_INCHES / height)
            overlaid_axes.append(figure.add_axes(rect))
            fit_axes(overlaid_axes[-1], panel.picture)
            label_axes(overlaid_axes[-1], panel, size=9.5)
    frames = []
    for step in episode.projected_steps[::interval]:
        caption_text.set_text(caption(episode, step))
        for axes in overlaid_axes:
            for artist in [*axes.lines, *axes.collections]:
                artist.remove()
            draw_states(axes, episode, step)
        frame = Image.fromarray(np.vstack([_compose(figure, step), legend]))
        frames.append(frame.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    return frames


def _compose(figure: Figure, step: ProjectedStep) -> np.ndarray:
    """The panels of a step, side by side, under the figure; uint8 [h, w, 3]."""
    overlay = Image.fromarray(_rgba(figure))
    canvas = Image.new("RGBA", overlay.size, "white")
    for number, panel in enumerate(step.panels):
        picture = ImageOps.pad(Image.fromarray(panel.picture), (PANEL, PANEL), color="white")
        canvas.paste(picture, (number * PANEL, 0))
    return np.asarray(Image.alpha_composite(canvas, overlay))[..., :3]


def sheet(episode: ProjectedEpisode, critic_map: CriticMap | None) -> np.ndarray:
    """Key frames, energy over time, and the critic map or the prediction error; uint8 [h, w, 3]."""
    recorded, rows = episode.recorded, len(episode.projected_steps[0].panels)
    title = f"{recorded.env}, mode {recorded.mode}"
    height = 5.0 + 2.6 * rows
    figure = Figure((15, height), dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.42 / height, title, size=17, color=TEXT, parse_math=False)
    figure.text(0.02, 1 - 0.72 / height, recorded.summary, size=13, color=MUTED, parse_math=False)
    anchor = 0.99, 1 - 0.11 / height
    _legend(figure, episode, loc="upper right", bbox_to_anchor=anchor, fontsize=12.5)
    notes = position_note(episode), episode.prediction_fault
    lines = [line for note in notes for line in wrap(note, NOTE_WIDTH)]
    figure.text(0.985, 1 - 0.45 / height, "\n".join(lines), ha="right", va="top", size=9.5,
                color=MUTED)  # fmt: skip
    key_frames = key_steps(episode)
    for column, key_frame in enumerate(key_frames):
        for row in range(rows):
            bottom = 1 - (3.61 + 2.55 * row) / height
            axes = figure.add_axes((0.014 + column * 0.1627, bottom, 0.159, 2.385 / height))
            draw_background(axes, key_frame.panels[row].picture)
            if key_frame.panels[row].overlaid:
                draw_states(axes, episode, key_frame, scale=0.75)
                label_axes(axes, key_frame.panels[row], size=6.5)
            if row == 0:
                text = caption(episode, key_frame, brief=True)
                axes.set_title(text, size=9.5, color=TEXT, pad=2)
    width = 0.57 if critic_map is not None or episode.imagines else 0.93
    steps = [key_frame.recorded.step for key_frame in key_frames]
    draw_energy(figure.add_axes((0.04, 0.65 / height, width, 2.89 / height)), episode, steps)
    if critic_map is not None:
        rect = (0.685, 0.3 / height, 0.2330, 3.5 / height)
        draw_critic_map(figure, figure.add_axes(rect), episode, critic_map)
    elif episode.imagines:
        draw_prediction_error(figure.add_axes((0.685, 0.65 / height, 0.29, 2.89 / height)), episode)
    return pixels(figure)


def draw_critic_overlay(critic_map: CriticMap) -> np.ndarray:
    """The critic map alone, to be laid over a frame of the environment; uint8 [h, w, 4]."""
    height, width = critic_map.picture.shape[:2]
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_critic_values(axes, critic_map)
    fit_axes(axes, critic_map.picture)
    return _rgba(figure)


def key_steps(episode: ProjectedEpisode) -> list[ProjectedStep]:
    """Evenly spread steps, up to the first success where it lasts."""
    last, steps = len(episode.projected_steps) - 1, episode.steps
    if episode.recorded.success_step is not None and episode.recorded.success_lasts:
        last = min(last, int(np.searchsorted(steps, episode.recorded.success_step)))
    numbers = sorted({round(number) for number in np.linspace(0, last, NUM_KEY_FRAMES)})
    return [episode.projected_steps[number] for number in numbers]


def caption(episode: ProjectedEpisode, step: ProjectedStep, *, brief: bool = False) -> str:
    """The step, the energy of the plan, and the critic's estimate if there is one; of these the
    step and the estimate if `brief`."""
    recorded = step.recorded
    parts = [f"step {recorded.step}"]
    if recorded.terms and not brief:
        parts.append(f"energy {sum(recorded.terms.values()):.3g}")
    if unit := episode.recorded.critic_unit:
        estimate = "critic estimates" if brief else f"critic's estimate of {unit}:"
        parts.append(f"{estimate} {recorded.critic_value:.3g}")
    return " · ".join(parts)


def position_note(episode: ProjectedEpisode) -> str:
    """How exact the positions of imagined states are; empty where a plane of states is drawn."""
    if not (episode.imagines and episode.position_error):
        return ""
    error, width = episode.position_error, episode.projected_steps[0].panels[0].picture.shape[1]
    return (
        f"Positions of imagined states are a probe's estimates, off by {error:.2g} pixels (root "
        f"mean square) in frames {width} pixels wide."
    )


def draw_states(
    axes: Axes, episode: ProjectedEpisode, step: ProjectedStep, scale: float = 1.0
) -> None:
    """Draws the past path, older positions fainter; the candidates; the plan, a dot for every step;
    and the plans of the levels above as dotted lines, with the next subgoal as a diamond."""
    path = episode.path[: step.recorded.step + 1]
    segments = np.stack([path[:-1], path[1:]], 1)  # [T - 1, 2, 2]
    colors = FADE(np.linspace(0, 1, len(segments)))
    past = LineCollection(list(segments), colors=colors, linewidths=2.6 * scale, zorder=2,
                          capstyle="round")  # fmt: skip
    axes.add_collection(past, autolim=False)
    axes.plot(*path[-1:].T, "o", color=PAST, ms=1.7 * (2.6 * scale), zorder=2)
    alpha = float(np.clip(2 / np.sqrt(len(step.candidates)), 0.1, 0.5))
    lines = LineCollection(list(step.candidates), colors=CANDIDATE, alpha=alpha,
                           linewidths=1.6 * scale, zorder=3)  # fmt: skip
    axes.add_collection(lines, autolim=False)
    x, y = step.planned.T
    axes.plot(x, y, color=PLANNED, lw=2.4 * scale, zorder=4, solid_capstyle="round")
    sizes = np.linspace(46, 22, len(x) - 1) * scale**2
    axes.scatter(x[1:], y[1:], s=sizes, color=PLANNED, edgecolors="white",
                 linewidths=0.9 * scale, zorder=5)  # fmt: skip
    for plan in step.upper_plans:
        x, y = np.concatenate([step.position[None], plan]).T
        axes.plot(x, y, color=SUBGOAL, lw=1.6 * scale, ls=":", marker=".", ms=7 * scale, zorder=3)
        axes.scatter(x[1:2], y[1:2], s=110 * scale**2, marker="D", facecolors="none",
                     edgecolors=SUBGOAL, linewidths=2 * scale, zorder=5)  # fmt: skip


def _legend(figure: Figure, episode: ProjectedEpisode, **placement: Any) -> None:
    """Draws the names of the colours that the episode uses."""
    handles = [
        Line2D([], [], color=color, marker="o", ls="", label=name)
        for name, color in LEGEND.items()
        if color == PAST or (episode.has_subgoals if color == SUBGOAL else episode.imagines)
    ]
    figure.legend(
        handles=handles, ncols=len(handles), borderaxespad=0, frameon=False,
        labelcolor="linecolor", handletextpad=0, columnspacing=1.2, **placement,
    )  # fmt: skip


def draw_energy(axes: Axes, episode: ProjectedEpisode, steps: Sequence[int]) -> None:
    """The energy of the plan, by term, and the critic's estimate for the current state, over time,
    beside the steps that were still to go."""
    recorded_steps, time = episode.recorded.recorded_steps, episode.steps
    to_goal = " to the goal" if episode.has_subgoals else ""
    plan_label = f"plan energy{' to the subgoal' if episode.has_subgoals else ''}"
    terms = np.array([list(step.terms.values()) for step in recorded_steps]).T  # [terms, N]
    # stacked: positive values above zero, negative values below
    edges = np.where(terms > 0, terms.clip(min=0).cumsum(0), terms.clip(max=0).cumsum(0))
    colors = term_colors(recorded_steps[0].terms)
    for (name, color), term, edge in zip(colors.items(), terms, edges, strict=True):
        axes.fill_between(time, edge - term, edge, color=color, alpha=0.75, lw=0,
                          label=f"{plan_label}: {name}")  # fmt: skip
    success_step, unit = episode.recorded.success_step, episode.recorded.critic_unit
    if unit:
        values = [step.critic_value for step in recorded_steps]
        axes.plot(time, values, color=TEXT, lw=1.6, ls=(0, (4, 2)),
                  label=f"critic's estimate of {unit}{to_goal}")  # fmt: skip
    if success_step is not None:
        axes.axvline(success_step, color=SUCCESS, lw=1.4, label=episode.recorded.success_label)
        if unit == STEPS_TO_GO:
            axes.plot([0, success_step], [success_step, 0], color=TEXT, lw=1.4,
                      label=f"actual {unit}{to_goal}")  # fmt: skip
    axes.plot(steps, np.zeros(len(steps)), "^", color=TEXT, ms=6, clip_on=False, zorder=9,
              transform=axes.get_xaxis_transform())  # fmt: skip
    lowest = axes.dataLim.ymin
    axes.set(xlim=(0, episode.recorded.end_step), ylim=(min(0, 1.05 * lowest), None),
             xlabel="step (the frames above are marked)")  # fmt: skip
    _tidy(axes)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))


def draw_prediction_error(axes: Axes, episode: ProjectedEpisode) -> None:
    """The prediction error by steps ahead."""
    by_horizon = episode.prediction_error.by_horizon
    axes.plot(range(1, len(by_horizon) + 1), by_horizon, color=PLANNED, lw=2, marker="o", ms=5,
              label="prediction error")  # fmt: skip
    axes.axhline(1, color=MUTED, lw=1.2, ls=(0, (4, 2)), label="error of predicting no change")
    axes.set(ylim=(0, None), xlabel="steps ahead")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    """The legend and the look of a chart over steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, ncols=3, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1.6)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9.5)
    axes.xaxis.label.set(color=MUTED, size=10)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)


def draw_critic_values(axes: Axes, critic_map: CriticMap) -> QuadContourSet:
    """The critic's value at every position, as colours and contours."""
    x, y = np.moveaxis(critic_map.xy, -1, 0)
    values, (low, high) = np.ma.masked_invalid(critic_map.values), value_range(critic_map)
    levels = np.linspace(low, high, 25)
    extend = "max" if values.max() > high else "neither"
    contours = axes.contourf(x, y, values, levels, cmap=CRITIC_COLORMAP, zorder=1, extend=extend)
    axes.contour(x, y, values, levels[2:-1:2], colors="white", linewidths=0.5, alpha=0.7, zorder=2)
    return contours


def value_range(critic_map: CriticMap) -> tuple[float, float]:
    """The values of the lightest and of the darkest colour. A few huge values, where no path leads
    to the goal, would otherwise leave one colour for all others."""
    values = np.ma.masked_invalid(critic_map.values)
    low = float(values.min())
    return low, min(float(values.max()), low + MAX_IN_MEDIANS * float(np.ma.median(values - low)))


def draw_critic_map(
    figure: Figure, axes: Axes, episode: ProjectedEpisode, critic_map: CriticMap
) -> None:
    """The critic map, with the path of the episode."""
    contours = draw_critic_values(axes, critic_map)
    draw_background(axes, without_background(critic_map.picture), zorder=3)
    axes.plot(*episode.path.T, color="white", lw=4, zorder=4, solid_capstyle="round")
    axes.plot(*episode.path.T, color=PAST, lw=2, zorder=5, solid_capstyle="round")
    axes.set_title(
        f"critic's estimate of {critic_map.unit}, by position", size=10.5, color=TEXT, pad=0
    )
    left, bottom, width, height = axes.get_position().bounds
    rect = (left + width + 0.005, bottom + 0.06 * height, 0.009, 0.88 * height)
    bar = figure.colorbar(contours, cax=figure.add_axes(rect), ticks=MaxNLocator(6))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)


def term_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each energy term by name; common terms have the same one in every picture."""
    other_colors = cycle(OTHER_COLORS)
    return {name: TERM_COLORS.get(name) or next(other_colors) for name in names}


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


def label_axes(axes: Axes, panel: Panel, size: float) -> None:
    """Writes what the axes of a plane of states are along its lower and its left edge."""
    if not panel.axis_labels:
        return
    x_label, y_label = panel.axis_labels
    style: dict[str, Any] = {"transform": axes.transAxes, "size": size, "color": MUTED}
    axes.text(0.5, 0.01, x_label, ha="center", va="bottom", **style)
    axes.text(0.01, 0.5, y_label, ha="left", va="center", rotation=90, **style)


def pixels(figure: Figure) -> np.ndarray:
    """uint8 [h, w, 3]"""
    return _rgba(figure)[..., :3].copy()


def _rgba(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def encode_gif(frames: Sequence[Image.Image]) -> bytes:
    """A GIF that plays in a loop and pauses on the last frame."""
    durations, buffer = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS], io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """`image`: uint8 [h, w, 3]"""
    with replacing(path) as tmp:
        Image.fromarray(image).save(tmp, "PNG")


def ffmpeg() -> str:
    """The path of the ffmpeg program. Raises ConfigError where it is missing."""
    if found := shutil.which("ffmpeg"):
        return found
    if find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "--mp4 needs ffmpeg: install it, or pip install 'ami-agent[film]'; without --mp4 only "
            "GIFs are written"
        )
    import imageio_ffmpeg  # an extra

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def write_mp4(path: Path, frames: Sequence[Image.Image], program: str) -> None:
    """Writes H.264 that browsers and slides play; pauses on the last frame as the GIF does."""
    width, height = frames[0].size
    padded_frames = [*frames, *[frames[-1]] * (LAST_FRAME_MS // FRAME_MS)]
    pixels = b"".join(frame.convert("RGB").tobytes() for frame in padded_frames)
    argv = [
        program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{width}x{height}", "-framerate", f"{1000 / FRAME_MS:.3f}", "-i", "-",
        "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-f", "mp4",
    ]  # fmt: skip
    with replacing(path) as tmp:
        command = [*argv, f"file:{tmp}"]  # else ffmpeg takes a path with a colon for a protocol
        process = subprocess.run(command, input=pixels, capture_output=True, check=False)
        if process.returncode:
            message = " ".join(process.stderr.decode(errors="replace").split())
            raise ConfigError(f"{path} can't be written: {message or 'ffmpeg failed'}")
