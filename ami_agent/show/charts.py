"""What was thought, as charts: energy over time, the critic's landscape, what came true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ami_agent.show.landscape import Landscape
from ami_agent.show.paint import ARRIVED, CHOSEN, FAINT, LIVED, TEXT, background, ink, layers
from ami_agent.show.scenes import Episode
from ami_agent.show.thoughts import TO_GO

COLOURS = ("#fff8e6", "#ffdf9e", "#fdb374", "#ec7f78", "#b9568c", "#6d3f8c", "#2f2a63")
HEAT = LinearSegmentedColormap.from_list("heat", list(COLOURS))


def draw_energy(axes: Axes, episode: Episode, steps: Sequence[int]) -> None:
    """What the chosen future would cost, by term, and what the critic says of the present."""
    moments, time = episode.moments, episode.steps
    aim = ", to the goal" if episode.hopes else ""
    chosen = "to the subgoal" if episode.hopes else "chosen future"
    for name, colour, low, high in layers(moments):
        axes.fill_between(time, low, high, color=colour, alpha=0.75, lw=0,
                          label=f"{chosen}: {name}")  # fmt: skip
    if episode.unit:
        axes.plot(time, [moment.to_go for moment in moments], color=TEXT, lw=1.6, ls=(0, (4, 2)),
                  label=f"critic now{aim}: {episode.unit}")  # fmt: skip
    arrived, until = episode.life.arrived, episode.life.until
    if arrived is not None:
        axes.axvline(arrived, color=ARRIVED, lw=1.4, label=episode.life.reached)
        if episode.unit == TO_GO:
            axes.plot([0, arrived], [arrived, 0], color=ARRIVED, lw=1.4, label="steps it took")
    axes.plot(steps, np.zeros(len(steps)), "^", color=TEXT, ms=6, clip_on=False, zorder=9,
              transform=axes.get_xaxis_transform())  # fmt: skip
    lowest = axes.dataLim.ymin
    axes.set(xlim=(0, until), ylim=(min(0, 1.05 * lowest), None),
             xlabel="step (marked: the frames above)")  # fmt: skip
    _tidy(axes)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))


def draw_came_true(axes: Axes, episode: Episode) -> None:
    """How far what was imagined k steps ahead was from what came then."""
    ahead = episode.truth.ahead
    axes.plot(range(1, len(ahead) + 1), ahead, color=CHOSEN, lw=2, marker="o", ms=5,
              label="imagined against what came")  # fmt: skip
    axes.axhline(1, color=FAINT, lw=1.2, ls=(0, (4, 2)), label="had nothing moved")
    axes.set(ylim=(0, None), xlabel="steps ahead")
    _tidy(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _tidy(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, ncols=3, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1.6)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9.5)
    axes.xaxis.label.set(color=FAINT, size=10)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)


HIGHEST = 4.0
"""Top of the critic's scale, in medians of the landscape."""


def draw_heat(axes: Axes, landscape: Landscape) -> QuadContourSet:
    """What the critic says of every place, as colours and contours."""
    x, y = np.moveaxis(landscape.xy, -1, 0)
    to_go, (low, high) = np.ma.masked_invalid(landscape.to_go), ends(landscape)
    levels = np.linspace(low, high, 25)
    beyond = "max" if to_go.max() > high else "neither"
    heat = axes.contourf(x, y, to_go, levels, cmap=HEAT, zorder=1, extend=beyond)
    axes.contour(x, y, to_go, levels[2:-1:2], colors="white", linewidths=0.5, alpha=0.7, zorder=2)
    return heat


def ends(landscape: Landscape) -> tuple[float, float]:
    """What the lightest and the darkest colour say: places from which nothing leads there would
    leave one colour for all others."""
    to_go = np.ma.masked_invalid(landscape.to_go)
    low = float(to_go.min())
    return low, min(float(to_go.max()), low + HIGHEST * float(np.ma.median(to_go - low)))


def draw_landscape(figure: Figure, axes: Axes, episode: Episode, landscape: Landscape) -> None:
    """Steps to go as colours and contours, with the path that was lived through them."""
    heat = draw_heat(axes, landscape)
    background(axes, ink(landscape.picture), zorder=3)
    axes.plot(*episode.path.T, color="white", lw=4, zorder=4, solid_capstyle="round")
    axes.plot(*episode.path.T, color=LIVED, lw=2, zorder=5, solid_capstyle="round")
    axes.set_title(f"the critic's landscape: {landscape.unit}", size=10.5, color=TEXT, pad=0)
    left, bottom, width, height = axes.get_position().bounds
    place = (left + width + 0.005, bottom + 0.06 * height, 0.009, 0.88 * height)
    bar = figure.colorbar(heat, cax=figure.add_axes(place), ticks=MaxNLocator(6))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=FAINT, labelsize=9, length=0)
