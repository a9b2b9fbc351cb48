"""Charts of an episode: energy over time, the critic map, the prediction error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ami_agent.viewer.colors import (
    MUTED,
    PAST,
    PLANNED,
    SUCCESS,
    TEXT,
    draw_background,
    stacked_terms,
    without_background,
)
from ami_agent.viewer.critic_map import CriticMap
from ami_agent.viewer.introspect import STEPS_TO_GO
from ami_agent.viewer.project import ProjectedEpisode

CRITIC_COLORS = ("#fff8e6", "#ffdf9e", "#fdb374", "#ec7f78", "#b9568c", "#6d3f8c", "#2f2a63")
CRITIC_COLORMAP = LinearSegmentedColormap.from_list("heat", list(CRITIC_COLORS))


def draw_energy(axes: Axes, episode: ProjectedEpisode, steps: Sequence[int]) -> None:
    """The energy of the plan, by term, and the critic's value of the current state, over time."""
    projected_steps, time = episode.projected_steps, episode.steps
    goal_note = ", to the goal" if episode.has_subgoals else ""
    plan_label = f"plan energy{' to the subgoal' if episode.has_subgoals else ''}"
    for name, color, low, high in stacked_terms(projected_steps):
        axes.fill_between(time, low, high, color=color, alpha=0.75, lw=0,
                          label=f"{plan_label}: {name}")  # fmt: skip
    if episode.unit:
        values = [projected_step.critic_value for projected_step in projected_steps]
        axes.plot(time, values, color=TEXT, lw=1.6, ls=(0, (4, 2)),
                  label=f"critic{goal_note}: {episode.unit}")  # fmt: skip
    success_step, end_step = episode.recorded.success_step, episode.recorded.end_step
    if success_step is not None:
        axes.axvline(success_step, color=SUCCESS, lw=1.4, label=episode.recorded.success_label)
        if episode.unit == STEPS_TO_GO:
            axes.plot(
                [0, success_step], [success_step, 0], color=SUCCESS, lw=1.4, label="steps taken"
            )
    axes.plot(steps, np.zeros(len(steps)), "^", color=TEXT, ms=6, clip_on=False, zorder=9,
              transform=axes.get_xaxis_transform())  # fmt: skip
    lowest = axes.dataLim.ymin
    axes.set(xlim=(0, end_step), ylim=(min(0, 1.05 * lowest), None),
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _tidy(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9.5, labelcolor=TEXT, ncols=3, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1.6)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9.5)
    axes.xaxis.label.set(color=MUTED, size=10)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)


MAX_IN_MEDIANS = 4.0
"""Top of the colour scale of a critic map, in medians of its values above the lowest."""


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
    axes.set_title(f"critic map: {critic_map.unit}", size=10.5, color=TEXT, pad=0)
    left, bottom, width, height = axes.get_position().bounds
    rect = (left + width + 0.005, bottom + 0.06 * height, 0.009, 0.88 * height)
    bar = figure.colorbar(contours, cax=figure.add_axes(rect), ticks=MaxNLocator(6))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
