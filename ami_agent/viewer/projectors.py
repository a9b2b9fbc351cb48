"""Where states are drawn: in the environment's frames, where a probe reads positions from states,
or, for any environment, in the plane of the states' first two principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig, HasFactors
from ami_agent.agent import Agent
from ami_agent.probing.probe import FactorProbe, fit_probe, states_of
from ami_agent.viewer.camera import Camera, NoCamera, Pictures, RenderCamera, render_error
from ami_agent.viewer.critic_map import CriticMap, compute_critic_map
from ami_agent.viewer.record import RecordedEpisode
from modules.configurator import TaskSpec

PLANE_SIZE = 400
"""Pixels on a side of the plane, and at most of a frame beside it."""

PLANE_GREY = 245
"""Grey level of the plane."""

MARGIN = 0.08
"""Fraction of the plane that is left free on each side."""


@runtime_checkable
class Renderable(Protocol):
    """An environment in whose frames positions can be drawn: `render` gives a frame `[h, w, 3]`
    uint8 of each of B environments, `factors_to_pixels` the agent's position in it, `(x, y)` in
    pixels `[..., 2]`, for factors `[..., F]`."""

    def render(self) -> Sequence[np.ndarray]: ...
    def factors_to_pixels(self, factors: Any) -> Any: ...


class Panel(NamedTuple):
    """One picture of a step."""

    name: str
    picture: np.ndarray  # [h, w, 3] uint8
    overlaid: bool  # states are drawn over it


class Projector(Protocol):
    """Maps states to positions in pixels, and gives the panels that they are drawn over."""

    description: str  # how positions are found, and how exact they are; for people
    error: float  # of the positions of imagined states, root mean square, in pixels

    def __call__(self, states: Tensor) -> np.ndarray:
        """`[..., D]` -> positions `[..., 2]` in pixels of the overlaid panels."""

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        """The agent's true positions `[T, 2]`."""

    def panels(self, pictures: Pictures) -> list[Panel]:
        """The panels of a step, at least one of them overlaid."""

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        """The critic's value at every position; None where it can't be drawn."""


class ProjectorFactory(Protocol):
    """Makes the projector of some episodes."""

    camera: Camera

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector: ...


NUM_NEIGHBORS = 4
"""Reference states whose residuals correct a linear probe."""

CHUNK_SIZE = 4096
"""States that are read at once; the distances to all reference states take much memory."""


class ProbeProjector:
    """Positions in the environment's frames, read from states by a linear probe on the frozen
    encoder and corrected by the probe's residuals at the nearest reference states; states are
    encoded with the modality weights of the task."""

    def __init__(self, agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec) -> None:
        self.camera: Camera = RenderCamera()
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

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector:
        return self

    def xy(self, factors: Any) -> np.ndarray:
        """Factors `[..., F]` -> positions `[..., 2]`."""
        return np.asarray(self.unwrapped.factors_to_pixels(np.asarray(factors)))

    def __call__(self, states: Tensor) -> np.ndarray:
        flat = states.detach().cpu().reshape(-1, states.shape[-1])
        read = torch.cat([self._read(chunk) for chunk in flat.split(CHUNK_SIZE)])
        return self.xy(read.reshape(*states.shape[:-1], read.shape[-1]))

    def _read(self, states: Tensor) -> Tensor:
        """`[N, D]` -> factors `[N, F]`"""
        distance, nearest = torch.cdist(states, self.reference_states).topk(
            NUM_NEIGHBORS, largest=False
        )
        weight = nn.functional.normalize(1 / distance.clamp_min(1e-6), p=1, dim=-1)
        return self.probe.read(states) + (weight[..., None] * self.residuals[nearest]).sum(-2)

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        """The true positions, not read from states."""
        return self.xy(recorded.factors)

    def panels(self, pictures: Pictures) -> list[Panel]:
        return [Panel("environment", picture, True) for picture in pictures]

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        return compute_critic_map(agent, config, self, recorded)


class PCAProjectorFactory:
    """Makes projectors into a plane of states; frames are shown beside it where the environment
    renders."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector:
        return PCAProjector(episodes)


class PCAProjector:
    """The first two principal components of the states of some episodes, scaled to show these
    states and the planned ones."""

    error = 0.0

    def __init__(self, episodes: Sequence[RecordedEpisode]) -> None:
        states = torch.cat([recorded.states for recorded in episodes]).double()
        self.mean = states.mean(0)
        values, axes = torch.linalg.eigh((states - self.mean).T @ (states - self.mean))
        self.axes = torch.zeros(states.shape[1], 2, dtype=torch.float64)
        num_axes = min(2, states.shape[1])
        self.axes[:, :num_axes] = axes.flip(1)[:, :num_axes]
        self.explained_variance = float(values.flip(0)[:2].sum() / values.sum().clamp_min(1e-12))
        """Fraction of the variance of the episodes' states that lies in the plane."""
        planned = [
            step.planned_states.flatten(0, -2)
            for recorded in episodes
            for step in recorded.recorded_steps
        ]
        self.low, self.high = _plot_range(self._project(states), self._project(torch.cat(planned)))
        self.description = (
            "The plane shows the agent's states along their first two principal components; "
            f"{100 * self.explained_variance:.0f} % of their variance lies in it."
        )

    def _project(self, states: Tensor) -> np.ndarray:
        return ((states.detach().cpu().double() - self.mean) @ self.axes).numpy()

    def __call__(self, states: Tensor) -> np.ndarray:
        relative = (self._project(states) - self.low) / (self.high - self.low)
        return (PLANE_SIZE - 1) * (MARGIN + (1 - 2 * MARGIN) * (relative * (1, -1) + (0, 1)))

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        return self(recorded.states)

    def panels(self, pictures: Pictures) -> list[Panel]:
        blank = np.full((PLANE_SIZE, PLANE_SIZE, 3), PLANE_GREY, np.uint8)
        image_panels = [Panel("environment", picture, False) for picture in pictures]
        return [*image_panels, Panel("states of the agent", blank, True)]

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        """None: many states share a position in the plane."""
        return None


def _plot_range(visited: np.ndarray, planned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest position to show, `[2]` each: all visited ones, and planned ones
    without outliers."""
    planned_range = np.quantile(planned, [0.02, 0.98], axis=0)
    low = np.minimum(visited.min(0), planned_range[0])
    high = np.maximum(visited.max(0), planned_range[1])
    center, span = (low + high) / 2, high - low
    span = np.maximum(span, 1e-3 * span.max() + 1e-9)  # a constant axis stays in the middle
    return center - span / 2, center + span / 2


def make_projector_factory(
    agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec,
    log: Callable[[str], None],
) -> ProjectorFactory:  # fmt: skip
    """The projection that suits the environment; `log` gets a line where it doesn't render."""
    error = render_error(config)
    if error:
        log(f"no picture of {config.id}, only of the agent's states: {error}")
        return PCAProjectorFactory(NoCamera())
    with closing(config.build(1)) as env:
        inner = env.unwrapped
        has_positions = isinstance(inner, Renderable) and isinstance(inner, HasFactors)
    if has_positions:
        return ProbeProjector(agent, config, seed, task_spec)
    return PCAProjectorFactory(RenderCamera(PLANE_SIZE))
