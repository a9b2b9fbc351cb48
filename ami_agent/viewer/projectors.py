"""Where states are drawn: in the world's own picture, where a read-out finds their places in it,
or, for any world, in a plane of their own. Whoever draws need not know which."""

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
"""Of the plane, in pixels, and at most of a picture in which nothing is drawn."""

PLANE_GREY = 245
"""Grey level of the plane."""

MARGIN = 0.08
"""Share of the plane that is left free on each side."""


@runtime_checkable
class Renderable(Protocol):
    """A world that a person can look at: `render` gives a picture `[h, w, 3]` uint8 of each of B
    worlds, `factors_to_pixels` says where in it, `(x, y)` in pixels `[..., 2]`, a body of these
    factors `[..., F]` would be."""

    def render(self) -> Sequence[np.ndarray]: ...
    def factors_to_pixels(self, factors: Any) -> Any: ...


class Panel(NamedTuple):
    """One picture of a moment."""

    name: str
    picture: np.ndarray  # [h, w, 3] uint8
    overlaid: bool  # whether states are drawn over it


class Projector(Protocol):
    """Where states are, and on what they are drawn."""

    description: str  # what somebody who looks at it must know
    error: float  # pixels by which imagined places are wrong, root mean square

    def __call__(self, states: Tensor) -> np.ndarray:
        """`[..., D]` -> places `[..., 2]` in pixels of the panels that are overlaid."""

    def path(self, recorded: RecordedEpisode) -> np.ndarray:
        """`[T, 2]`: where the body really was."""

    def panels(self, pictures: Pictures) -> list[Panel]:
        """What a moment is drawn on, at least one of them overlaid."""

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        """What the critic says of every place; None where that can't be drawn."""


class ProjectorFactory(Protocol):
    """A way to look at lives."""

    camera: Camera

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector: ...


NUM_NEIGHBORS = 4
"""Known states by whose errors a linear read-out is put right."""

CHUNK_SIZE = 4096
"""States that are read in one go: from each to all that are known is a large table."""


class ProbeProjector:
    """Where the states of an agent, primed as its task says, are in a world's picture: by a linear
    probe on frozen states, put right by what it misses in the known states that are nearest. Far
    from all that is known it is as wrong as they are, and no further."""

    def __init__(self, agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec) -> None:
        self.camera: Camera = RenderCamera()
        modality_weights = agent.configurator.modality_weights(task_spec.to_task(None, "plan"))
        with closing(config.build(1)) as env:
            self.unwrapped: Renderable = env.unwrapped
        # far from the seeds that are shown: what is drawn was not fitted
        make_probe = FactorProbe(config, seed + 1_000_000)
        factors, held_out = make_probe.train_set.factors, make_probe.test_set
        self.reference_states = states_of(
            agent, make_probe.train_set.obs, modality_weights
        )  # [N, D]
        self.probe = fit_probe(self.reference_states, factors)
        self.residuals = factors - self.probe.read(self.reference_states)  # [N, F]
        self.low, self.high = factors.amin(0).numpy(), factors.amax(0).numpy()  # [F]
        errors = self.xy(held_out.factors) - self(states_of(agent, held_out.obs, modality_weights))
        self.error = float(np.sqrt(np.square(errors).sum(-1).mean()))
        """Root mean square distance of read and true places, on lives not fitted; pixels."""
        self.description = (
            "Where the body has been and where it went is true; what was imagined is read out of "
            "the agent's states by a probe, a regression from states to places, which is wrong by "
            f"{self.error:.2g} pixels (root mean square) in other episodes than it was fitted to."
        )

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector:
        return self

    def xy(self, factors: Any) -> np.ndarray:
        """True factors `[..., F]` -> places `[..., 2]`"""
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
        """True places, not read ones."""
        return self.xy(recorded.factors)

    def panels(self, pictures: Pictures) -> list[Panel]:
        return [Panel("the world", picture, True) for picture in pictures]

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        return compute_critic_map(agent, config, self, recorded)


class PCAProjectorFactory:
    """A plane for the states themselves, and beside it what the world shows of itself, if it
    does."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera

    def fit(self, episodes: Sequence[RecordedEpisode]) -> Projector:
        return PCAProjector(episodes)


class PCAProjector:
    """The first two principal components of the states of some lives, each as wide as it needs to
    be to show what was lived and what was chosen."""

    error = 0.0

    def __init__(self, episodes: Sequence[RecordedEpisode]) -> None:
        states = torch.cat([recorded.states for recorded in episodes]).double()
        self.mean = states.mean(0)
        values, axes = torch.linalg.eigh((states - self.mean).T @ (states - self.mean))
        self.axes = torch.zeros(states.shape[1], 2, dtype=torch.float64)
        num_axes = min(2, states.shape[1])
        self.axes[:, :num_axes] = axes.flip(1)[:, :num_axes]
        self.explained_variance = float(values.flip(0)[:2].sum() / values.sum().clamp_min(1e-12))
        """Share of the variance of what was lived that can be seen in the plane."""
        planned = [
            i.planned_states.flatten(0, -2)
            for recorded in episodes
            for i in recorded.recorded_steps
        ]
        self.low, self.high = _plot_range(self._project(states), self._project(torch.cat(planned)))
        self.description = (
            "The plane shows the agent's states themselves, along the two directions in which "
            f"those it lived differ most; {100 * self.explained_variance:.0f} % of their variance is in it."
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
        image_panels = [Panel("the world", picture, False) for picture in pictures]
        return [*image_panels, Panel("its states", blank, True)]

    def critic_map(
        self, agent: Agent, config: EnvConfig, recorded: RecordedEpisode
    ) -> CriticMap | None:
        """A plane has more than one state in every place."""
        return None


def _plot_range(visited: np.ndarray, planned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest place to show, `[2]` each: all that was lived, and of what was
    chosen all but what is far out."""
    planned_range = np.quantile(planned, [0.02, 0.98], axis=0)
    low = np.minimum(visited.min(0), planned_range[0])
    high = np.maximum(visited.max(0), planned_range[1])
    center, span = (low + high) / 2, high - low
    span = np.maximum(span, 1e-3 * span.max() + 1e-9)  # what never moves stays in the middle
    return center - span / 2, center + span / 2


def make_projector_factory(
    agent: Agent, config: EnvConfig, seed: int, task_spec: TaskSpec,
    say: Callable[[str], None],
) -> ProjectorFactory:  # fmt: skip
    """The best way to look at lives in this world; `say` is told where there is no picture."""
    error = render_error(config)
    if error:
        say(f"no picture of {config.id}, only of the agent's states: {error}")
        return PCAProjectorFactory(NoCamera())
    with closing(config.build(1)) as env:
        has_factors = isinstance(env.unwrapped, Renderable) and isinstance(
            env.unwrapped, HasFactors
        )
    return (
        ProbeProjector(agent, config, seed, task_spec)
        if has_factors
        else PCAProjectorFactory(RenderCamera(PLANE_SIZE))
    )
