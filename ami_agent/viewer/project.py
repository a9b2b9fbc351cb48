"""An episode in pixels: what can be drawn of every recorded step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ami_agent.viewer.introspect import PredictionError, critic_unit, prediction_error
from ami_agent.viewer.projectors import Panel, Projector
from ami_agent.viewer.record import RecordedEpisode, RecordedStep


class ProjectedStep(NamedTuple):
    """An episode before one of its actions; positions are in pixels of the overlaid panels."""

    step: int
    panels: Sequence[Panel]
    position: np.ndarray  # [2]: the agent's true position
    candidates: np.ndarray  # [P * K, H + 1, 2]
    candidate_energies: np.ndarray  # [P]: of each action sequence; NaN in Mode-1
    planned: np.ndarray  # [H + 1, 2]; H is 0 in Mode-1
    upper_plans: np.ndarray  # [L - 1, H, 2]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the plan; empty in Mode-1
    step_energies: Mapping[str, np.ndarray]  # each [H]: of every single imagined step
    best_energies: np.ndarray  # the lowest energy so far after each evaluation of the search
    critic_value: float  # of the current state, in the critics' unit


class ProjectedEpisode(NamedTuple):
    """An episode, and its positions in pixels."""

    recorded: RecordedEpisode
    projected_steps: Sequence[ProjectedStep]
    path: np.ndarray  # [T, 2]: the agent's true position before every action
    prediction_error: PredictionError

    @property
    def title(self) -> str:
        return f"{self.recorded.env}, mode {self.recorded.mode}"

    @property
    def summary(self) -> str:
        """The outcome in words."""
        return self.recorded.summary

    @property
    def steps(self) -> np.ndarray:
        """The numbers [N] of the recorded steps."""
        return np.array([step.step for step in self.projected_steps])

    @property
    def unit(self) -> str:
        """The unit of the critics' values."""
        return critic_unit(self.recorded.context)

    @property
    def imagines(self) -> bool:
        """Whether there are imagined states to draw; Mode-1 has none."""
        return len(self.projected_steps[0].planned) > 1

    @property
    def has_subgoals(self) -> bool:
        """Whether levels above set subgoals."""
        return len(self.projected_steps[0].upper_plans) > 0


def project(recorded: RecordedEpisode, projector: Projector) -> ProjectedEpisode:
    """The episode as the projector draws it."""
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
        step.candidate_energies, projector(step.planned_states), projector(step.upper_plans),
        step.terms, step.step_energies, step.best_energies, step.critic_value,
    )  # fmt: skip
