"""A life as a view shows it: what can be drawn of every moment, in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ami_agent.viewer.introspect import PredictionError, critic_unit, prediction_error
from ami_agent.viewer.projectors import Panel, Projector
from ami_agent.viewer.record import RecordedEpisode, RecordedStep


class ProjectedStep(NamedTuple):
    """One life before one of its actions; places are in pixels of the panels that are overlaid."""

    step: int
    panels: Sequence[Panel]
    position: np.ndarray  # [2]: where the body truly is
    candidates: np.ndarray  # [P * K, H + 1, 2]
    candidate_energies: np.ndarray  # [P]: of each proposal; NaN of a reflex
    planned: np.ndarray  # [H + 1, 2]; H is 0 for a reflex
    upper_plans: np.ndarray  # [L - 1, H, 2]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the chosen future; a reflex has none
    step_energies: Mapping[
        str, np.ndarray
    ]  # each [H]: what every imagined step by itself would cost
    best_energies: np.ndarray  # the lowest energy known after each look at futures
    critic_value: float  # what the critics say of the present state, in their unit


class ProjectedEpisode(NamedTuple):
    """One life, and where it is seen."""

    recorded: RecordedEpisode
    projected_steps: Sequence[ProjectedStep]
    path: np.ndarray  # [T, 2]: where the body truly was before every action
    prediction_error: PredictionError

    @property
    def title(self) -> str:
        return f"{self.recorded.env}, mode {self.recorded.mode}"

    @property
    def summary(self) -> str:
        """How it went, in words."""
        return self.recorded.summary

    @property
    def steps(self) -> np.ndarray:
        """Of the moments, [N]"""
        return np.array([step.step for step in self.projected_steps])

    @property
    def unit(self) -> str:
        """Of what the critics say."""
        return critic_unit(self.recorded.context)

    @property
    def imagines(self) -> bool:
        """Whether there are futures to draw; a reflex has none."""
        return len(self.projected_steps[0].planned) > 1

    @property
    def has_subgoals(self) -> bool:
        """Whether there are levels above, with subgoals to draw."""
        return len(self.projected_steps[0].upper_plans) > 0


def project(recorded: RecordedEpisode, projector: Projector) -> ProjectedEpisode:
    """What the view shows of a life."""
    path = projector.path(recorded)
    planned = [step.planned_states.numpy() for step in recorded.recorded_steps]
    steps = [step.step for step in recorded.recorded_steps]
    projected_steps = [
        _project_step(step, path[step.step], projector) for step in recorded.recorded_steps
    ]
    return ProjectedEpisode(
        recorded, projected_steps, path, prediction_error(planned, steps, recorded.states.numpy())
    )


def _project_step(step: RecordedStep, position: np.ndarray, projector: Projector) -> ProjectedStep:
    return ProjectedStep(
        step.step, projector.panels(step.pictures), position, projector(step.candidate_states),
        step.candidate_energies, projector(step.planned_states), projector(step.upper_plans), step.terms, step.step_energies,
        step.best_energies, step.critic_value,
    )  # fmt: skip
