"""A life as a view shows it: what can be drawn of every moment, in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ami_agent.show.episodes import Instant, Life
from ami_agent.show.thoughts import CameTrue, came_true, unit
from ami_agent.show.views import Panel, View


class Moment(NamedTuple):
    """One life before one of its actions; places are in pixels of the panels that are overlaid."""

    step: int
    panels: Sequence[Panel]
    place: np.ndarray  # [2]: where the body truly is
    considered: np.ndarray  # [P * K, H + 1, 2]
    energies: np.ndarray  # [P]: of each proposal; NaN of a reflex
    chosen: np.ndarray  # [H + 1, 2]; H is 0 for a reflex
    hopes: np.ndarray  # [L - 1, H, 2]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the chosen future; a reflex has none
    ahead: Mapping[str, np.ndarray]  # each [H]: what every imagined step by itself would cost
    thinking: np.ndarray  # the lowest energy known after each look at futures
    to_go: float  # what the critics say of the present state, in their unit


class Episode(NamedTuple):
    """One life, and where it is seen."""

    life: Life
    moments: Sequence[Moment]
    path: np.ndarray  # [T, 2]: where the body truly was before every action
    truth: CameTrue

    @property
    def title(self) -> str:
        return f"{self.life.world}, mode {self.life.mode}"

    @property
    def verdict(self) -> str:
        """How it went, in words."""
        return self.life.verdict

    @property
    def steps(self) -> np.ndarray:
        """Of the moments, [N]"""
        return np.array([moment.step for moment in self.moments])

    @property
    def unit(self) -> str:
        """Of what the critics say."""
        return unit(self.life.focus)

    @property
    def imagines(self) -> bool:
        """Whether there are futures to draw; a reflex has none."""
        return len(self.moments[0].chosen) > 1

    @property
    def hopes(self) -> bool:
        """Whether there are levels above, with subgoals to draw."""
        return len(self.moments[0].hopes) > 0


def seen(life: Life, view: View) -> Episode:
    """What the view shows of a life."""
    path = view.path(life)
    imagined = [instant.chosen.numpy() for instant in life.instants]
    steps = [instant.step for instant in life.instants]
    moments = [_moment(instant, path[instant.step], view) for instant in life.instants]
    return Episode(life, moments, path, came_true(imagined, steps, life.states.numpy()))


def _moment(instant: Instant, place: np.ndarray, view: View) -> Moment:
    return Moment(
        instant.step, view.panels(instant.pictures), place, view(instant.considered),
        instant.energies, view(instant.chosen), view(instant.hopes), instant.terms, instant.ahead,
        instant.thinking, instant.to_go,
    )  # fmt: skip
