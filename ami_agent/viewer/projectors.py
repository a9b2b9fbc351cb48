"""Where states are drawn: in the environment's frames, where a probe reads positions from states,
or, for any environment, in the plane of the states' first two principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig, HasFactors
from ami_agent.agent import Agent
from ami_agent.probing.data import concat_obs, reset_to_factors
from ami_agent.probing.probe import FactorProbe, fit_probe, states_of
from ami_agent.probing.scorecard import NO_BETTER
from ami_agent.viewer.camera import Camera, Pictures, render_error
from ami_agent.viewer.record import RecordedEpisode, RecordedStep, critic_value
from modules.configurator import TaskSpec

PLANE_SIZE = 400  # pixels on a side of the plane, and at most of a frame beside it
PLANE_GREY = 245  # grey level of the plane
MARGIN = 0.1  # fraction of the plane that is left free on each side
NUM_NEIGHBORS = 4  # reference states whose residuals correct a linear probe
CHUNK_SIZE = 4096  # states that are read at once; their distances to all others take much memory
GRID_SIZE = 31  # positions along a side of a critic map


@runtime_checkable
class Renderable(Protocol):
    """An environment that renders a frame `[h, w, 3]` uint8 of each of B environments, and tells
    the agent's position in it, `(x, y)` in pixels `[..., 2]`, for factors `[..., F]`."""

    def render(self) -> Sequence[np.ndarray]: ...
    def factors_to_pixels(self, factors: Any) -> Any: ...


class Panel(NamedTuple):
    """One picture of a step."""

    name: str
    picture: np.ndarray  # [h, w, 3] uint8
    overlaid: bool  # states are drawn over it
    axis_labels: tuple[str, ...] = ()  # of x and y, in a plane of states


class ProbeProjector:
    """Positions in the environment's frames, read from states by a linear probe and corrected by
    its residuals at the nearest reference states; states are encoded for the task."""

    def __init__(self, agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec) -> None:
        self.camera = Camera()
        modality_weights = agent.configurator.modality_weights(task_spec.to_task(None, "plan"))
        with closing(config.build(1)) as env:
            self.unwrapped: Renderable = env.unwrapped
        data = FactorProbe(config, seed + 1_000_000)  # not fitted to the episodes that are drawn
        factors, held_out = data.train_set.factors, data.test_set
        self.reference_states = states_of(agent, data.train_set.obs, modality_weights)  # [N, D]
        self.probe = fit_probe(self.reference_states, factors)
        self.residuals = factors - self.probe.read(self.reference_states)  # [N, F]
        self.low, self.high = factors.amin(0).numpy(), factors.amax(0).numpy()  # [F]
        errors = self.xy(held_out.factors) - self(states_of(agent, held_out.obs, modality_weights))
        self.error = float(np.sqrt(np.square(errors).sum(-1).mean()))
        """Root mean square distance of read and true positions in held-out episodes, in pixels."""
        self.description = (
            "The path of the agent is its true one. Positions of imagined states are read by a "
            "probe, a regression from states to positions, which is wrong by "
            f"{self.error:.2g} pixels (root mean square) in episodes that it was not fitted to."
        )

    def xy(self, factors: Any) -> np.ndarray:
        """Factors `[..., F]` -> positions `[..., 2]`."""
        return np.asarray(self.unwrapped.factors_to_pixels(np.asarray(factors)))

    def __call__(self, states: Tensor) -> np.ndarray:
        """States `[..., D]` -> positions `[..., 2]` in pixels of the overlaid panels."""
        flat = states.detach().cpu().reshape(-1, states.shape[-1])
        read = torch.cat([self._read(chunk) for chunk in flat.split(CHUNK_SIZE)])
        return self.xy(read.reshape(*states.shape[:-1], read.shape[-1]))

    def _read(self, states: Tensor) -> Tensor:
        """`[N, D]` -> factors `[N, F]`"""
        distances = torch.cdist(states, self.reference_states)
        distance, nearest = distances.topk(NUM_NEIGHBORS, largest=False)
        weight = nn.functional.normalize(1 / distance.clamp_min(1e-6), p=1, dim=-1)
        return self.probe.read(states) + (weight[..., None] * self.residuals[nearest]).sum(-2)

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        """The agent's true positions `[T, 2]`, not read from states."""
        return self.xy(recorded.factors)

    def panels(self, pictures: Pictures) -> list[Panel]:
        """The panels of a step."""
        return [Panel("environment", picture, True) for picture in pictures]


class PCAProjector:
    """The first two principal components of the states of some episodes, scaled to show these
    states and the planned ones; frames are shown beside them where the environment renders."""

    error = 0.0

    def __init__(self, episodes: Sequence[RecordedEpisode]) -> None:
        states = torch.cat([recorded.states for recorded in episodes]).double()
        self.mean = states.mean(0)
        values, axes = torch.linalg.eigh((states - self.mean).T @ (states - self.mean))
        self.axes = torch.zeros(states.shape[1], 2, dtype=torch.float64)
        num_axes = min(2, states.shape[1])
        self.axes[:, :num_axes] = axes.flip(1)[:, :num_axes]
        fractions = (values.flip(0) / values.sum().clamp_min(1e-12)).tolist()
        self.explained_variance = sum(fractions[:2])
        """Fraction of the variance of the episodes' states that lies in the plane."""
        self.axis_labels = tuple(
            f"{which} principal direction of the state ({100 * fraction:.0f} %)"
            for which, fraction in zip(("first", "second"), [*fractions, 0.0], strict=False)
        )
        planned = [step.planned_states for episode in episodes for step in episode.recorded_steps]
        visited, imagined = self._project(states), self._project(torch.cat(planned))
        low, high = np.quantile(imagined, [0.02, 0.98], axis=0)  # without outliers
        low, high = np.minimum(visited.min(0), low), np.maximum(visited.max(0), high)
        center, span = (low + high) / 2, high - low
        span = np.maximum(span, 1e-3 * span.max() + 1e-9)  # a constant axis stays in the middle
        self.low, self.high = center - span / 2, center + span / 2
        self.description = (
            "The plane shows the agent's states along their first two principal directions; "
            f"{100 * self.explained_variance:.0f} % of their variance lies in it."
        )

    def _project(self, states: Tensor) -> np.ndarray:
        return ((states.detach().cpu().double() - self.mean) @ self.axes).numpy()

    def __call__(self, states: Tensor) -> np.ndarray:
        """States `[..., D]` -> positions `[..., 2]` in pixels of the plane."""
        relative = (self._project(states) - self.low) / (self.high - self.low)
        return (PLANE_SIZE - 1) * (MARGIN + (1 - 2 * MARGIN) * (relative * (1, -1) + (0, 1)))

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        """The positions `[T, 2]` of the agent's states."""
        return self(recorded.states)

    def panels(self, pictures: Pictures) -> list[Panel]:
        """The panels of a step; the last one is overlaid."""
        blank = np.full((PLANE_SIZE, PLANE_SIZE, 3), PLANE_GREY, np.uint8)
        image_panels = [Panel("environment", picture, False) for picture in pictures]
        return [*image_panels, Panel("states of the agent", blank, True, self.axis_labels)]


Projector: TypeAlias = ProbeProjector | PCAProjector
"""Maps states to positions in pixels, and gives the panels to draw them over. `description`: how
positions are found, for people; `error`: of imagined states, root mean square, in pixels."""


class ProjectorFactory(NamedTuple):
    """Records pictures, if any, and makes the projector of some episodes."""

    camera: Camera | None
    fit: Callable[[Sequence[RecordedEpisode]], Projector]


def make_projector_factory(
    agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec,
    log: Callable[[str], None],
) -> ProjectorFactory:  # fmt: skip
    """The projection that suits the environment; `log` gets a line where it doesn't render."""
    if error := render_error(config):
        log(f"no picture of {config.id}, only of the agent's states: {error}")
        return ProjectorFactory(None, PCAProjector)
    with closing(config.build(1)) as env:
        has_positions = all(isinstance(env.unwrapped, kind) for kind in (Renderable, HasFactors))
    if not has_positions:
        return ProjectorFactory(Camera(PLANE_SIZE), PCAProjector)
    projector = ProbeProjector(agent, config, seed, task_spec)
    return ProjectorFactory(projector.camera, lambda episodes: projector)


class ProjectedStep(NamedTuple):
    """An episode before one of its actions; positions are in pixels of the overlaid panels."""

    recorded: RecordedStep
    panels: Sequence[Panel]
    position: np.ndarray  # [2]: the agent's true position
    candidates: np.ndarray  # [P * K, H + 1, 2]
    planned: np.ndarray  # [H + 1, 2]; H is 0 in Mode-1
    upper_plans: np.ndarray  # [L - 1, H, 2]: of the levels above, top first; subgoals come first


class PredictionError(NamedTuple):
    """The distance from imagined to actual states over the mean distance that states move in that
    many steps: 1 is no better than predicting no change; NaN beyond the end of the episode."""

    by_horizon: np.ndarray  # [H]: k = 1..H steps ahead, mean over the episode
    by_step: np.ndarray  # [N]: of the plan of each recorded step, mean over k


class ProjectedEpisode(NamedTuple):
    """An episode, and its positions in pixels."""

    recorded: RecordedEpisode
    projected_steps: Sequence[ProjectedStep]
    path: np.ndarray  # [T, 2]: the agent's true position before every action
    prediction_error: PredictionError
    position_error: float  # of imagined states, root mean square, in pixels; 0 in a plane of states

    @property
    def steps(self) -> np.ndarray:
        """The numbers [N] of the recorded steps."""
        return np.array([step.step for step in self.recorded.recorded_steps])

    @property
    def prediction_fault(self) -> str:
        """Where imagined states are no nearer to the actual ones than the state before them, a
        sentence that says so; else empty."""
        errors = self.prediction_error.by_horizon
        mean = float(np.nanmean(errors)) if np.isfinite(errors).any() else 0.0
        if mean < NO_BETTER:
            return ""
        return (
            "The imagined states are no nearer to what happened than if nothing changed (relative "
            f"error {mean:.2f}; that of predicting no change is 1)."
        )

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
    projected_steps = [
        ProjectedStep(
            step, projector.panels(step.pictures), path[step.step],
            projector(step.candidate_states), projector(step.planned_states),
            projector(step.upper_plans),
        )
        for step in recorded.recorded_steps
    ]  # fmt: skip
    planned = [step.planned_states.numpy() for step in recorded.recorded_steps]
    steps = [step.step for step in recorded.recorded_steps]
    error = prediction_error(planned, steps, recorded.states.numpy())
    return ProjectedEpisode(recorded, projected_steps, path, error, projector.error)


def prediction_error(
    futures: Sequence[np.ndarray], steps: Sequence[int], states: np.ndarray
) -> PredictionError:
    """Imagined states, each `[H + 1, D]`, of the plans at some steps of an episode with the states
    `[T, D]`; H is less where the rest of an earlier plan is executed."""
    horizon = max(len(future) for future in futures) - 1
    errors, displacements = np.full((2, len(futures), horizon), np.nan)
    for n, (future, step) in enumerate(zip(futures, steps, strict=True)):
        actual = states[step + 1 : step + len(future)]  # [k, D]
        errors[n, : len(actual)] = np.linalg.norm(future[1 : 1 + len(actual)] - actual, axis=-1)
        displacements[n, : len(actual)] = np.linalg.norm(actual - states[step], axis=-1)
    displacement = _finite_mean(displacements, 0)
    relative_errors = errors / np.where(displacement > 0, displacement, np.nan)
    return PredictionError(_finite_mean(relative_errors, 0), _finite_mean(relative_errors, 1))


def _finite_mean(numbers: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the finite numbers; NaN where there are none."""
    return np.ma.masked_invalid(numbers).mean(axis).filled(np.nan)


class CriticMap(NamedTuple):
    """A grid of positions and the goal critic's value at each."""

    xy: np.ndarray  # [n, n, 2] in pixels of the picture
    values: np.ndarray  # [n, n]; NaN where the agent can't be, such as in a wall
    unit: str  # of the values
    picture: np.ndarray  # [h, w, 3] uint8: the first frame of the episode


def compute_critic_map(
    agent: Agent, config: EnvConfig, projector: Projector, recorded: RecordedEpisode
) -> CriticMap | None:
    """The map for the goal of an episode; all but the agent's position is as in its first step.
    None where the critic has one value, where states are drawn in a plane, where not just two
    factors are the agent's position, and where the environment can't be reset to factors."""
    if not isinstance(projector, ProbeProjector):
        return None
    factors = _grid(projector, recorded.factors[0])
    if factors is None:
        return None
    context, values = recorded.context, np.full(factors[..., 0].size, np.nan, dtype=np.float32)
    free, observations = [], []
    with closing(config.build(1)) as env:
        for number, target in enumerate(factors.reshape(-1, factors.shape[-1])):
            labelled = reset_to_factors(env, target, recorded.seed)
            if labelled is not None and np.allclose(labelled.factors[0], target, atol=1e-3):
                free.append(number)
                observations.append(labelled.obs)
    if free:
        states = states_of(agent, concat_obs(observations), context.modality_weights)
        task_vector = context.task_vector[:1].expand(len(states), -1)
        goal = context.goal.expand(len(states), -1)
        context = context._replace(goal=goal, task_vector=task_vector)
        values[free] = critic_value(agent, states.to(agent.device), context)
    if len(np.unique(values[free])) < 2:
        return None
    (picture, *_) = recorded.recorded_steps[0].pictures
    grid = values.reshape(factors.shape[:-1])
    return CriticMap(projector.xy(factors), grid, recorded.critic_unit, picture)


def _grid(projector: ProbeProjector, factors: np.ndarray) -> np.ndarray | None:
    """Factors [n, n, F] that differ in the two that move the agent; None where not just two do."""
    low, high = projector.low, projector.high

    def moves(index: int) -> bool:
        pair = np.stack([factors, factors])
        pair[:, index] = low[index], high[index]
        return not np.allclose(*projector.xy(pair))

    moving = [index for index in range(len(low)) if moves(index)]
    if len(moving) != 2:
        return None
    grid = np.tile(factors, (GRID_SIZE, GRID_SIZE, 1))
    xs, ys = np.linspace(low[moving], high[moving], GRID_SIZE, axis=-1)  # each [n]
    grid[..., moving] = np.stack(np.meshgrid(xs, ys), -1)
    return grid
