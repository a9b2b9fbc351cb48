"""Where states are drawn: in the world's own picture, where a read-out finds their places in it,
or, for any world, in a plane of their own. Whoever draws need not know which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.agent import Agent
from ami_agent.life import Examines, WorldConfig
from ami_agent.probe import Examiner, fit, states_of
from ami_agent.show.camera import Camera, Dark, Pictures, Render, why_dark
from ami_agent.show.episodes import Life
from ami_agent.show.landscape import Landscape, survey
from modules.configurator import Assignment

SIDE = 400
"""Of the plane, in pixels, and at most of a picture in which nothing is drawn."""

PAPER = 245
"""Grey level of the plane."""

MARGIN = 0.08
"""Share of the plane that is left free on each side."""


@runtime_checkable
class Drawn(Protocol):
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


class View(Protocol):
    """Where states are, and on what they are drawn."""

    told: str  # what somebody who looks at it must know
    error: float  # pixels by which imagined places are wrong, root mean square

    def __call__(self, states: Tensor) -> np.ndarray:
        """`[..., D]` -> places `[..., 2]` in pixels of the panels that are overlaid."""

    def path(self, life: Life) -> np.ndarray:
        """`[T, 2]`: where the body really was."""

    def panels(self, pictures: Pictures) -> list[Panel]:
        """What a moment is drawn on, at least one of them overlaid."""

    def landscape(self, agent: Agent, config: WorldConfig, life: Life) -> Landscape | None:
        """What the critic says of every place; None where that can't be drawn."""


class Gaze(Protocol):
    """A way to look at lives."""

    camera: Camera

    def upon(self, lives: Sequence[Life]) -> View: ...


NEIGHBOURS = 4
"""Known states by whose errors a linear read-out is put right."""

AT_ONCE = 4096
"""States that are read in one go: from each to all that are known is a large table."""


class ReadOut:
    """Where the states of an agent, primed as its task says, are in a world's picture: by a linear
    probe on frozen states, put right by what it misses in the known states that are nearest. Far
    from all that is known it is as wrong as they are, and no further."""

    def __init__(
        self, agent: Agent, config: WorldConfig, seed: int, assignment: Assignment
    ) -> None:
        self.camera: Camera = Render()
        gains = agent.configurator.primed(assignment.task(None, "plan"))
        with closing(config.build(1)) as world:
            self.inner: Drawn = world.inner
        # far from the seeds that are shown: what is drawn was not fitted
        examiner = Examiner(config, seed + 1_000_000)
        factors, unknown = examiner.known.factors, examiner.unknown
        self.known = states_of(agent, examiner.known.obs, gains)  # [N, D]
        self.probe = fit(self.known, factors)
        self.missed = factors - self.probe.read(self.known)  # [N, F]
        self.low, self.high = factors.amin(0).numpy(), factors.amax(0).numpy()  # [F]
        missed = self.xy(unknown.factors) - self(states_of(agent, unknown.obs, gains))
        self.error = float(np.sqrt(np.square(missed).sum(-1).mean()))
        """Root mean square distance of read and true places, on lives not fitted; pixels."""
        self.told = (
            "Where the body has been and where it went is true; what was imagined is read out of "
            "the agent's states by a probe, a regression from states to places, which is wrong by "
            f"{self.error:.2g} pixels (root mean square) in other episodes than it was fitted to."
        )

    def upon(self, lives: Sequence[Life]) -> View:
        return self

    def xy(self, factors: Any) -> np.ndarray:
        """True factors `[..., F]` -> places `[..., 2]`"""
        return np.asarray(self.inner.factors_to_pixels(np.asarray(factors)))

    def __call__(self, states: Tensor) -> np.ndarray:
        each = states.detach().cpu().reshape(-1, states.shape[-1])
        read = torch.cat([self._read(some) for some in each.split(AT_ONCE)])
        return self.xy(read.reshape(*states.shape[:-1], read.shape[-1]))

    def _read(self, states: Tensor) -> Tensor:
        """`[N, D]` -> factors `[N, F]`"""
        apart, near = torch.cdist(states, self.known).topk(NEIGHBOURS, largest=False)
        weight = nn.functional.normalize(1 / apart.clamp_min(1e-6), p=1, dim=-1)
        return self.probe.read(states) + (weight[..., None] * self.missed[near]).sum(-2)

    def path(self, life: Life) -> np.ndarray:
        """True places, not read ones."""
        return self.xy(life.factors)

    def panels(self, pictures: Pictures) -> list[Panel]:
        return [Panel("the world", picture, True) for picture in pictures]

    def landscape(self, agent: Agent, config: WorldConfig, life: Life) -> Landscape | None:
        return survey(agent, config, self, life)


class Abstract:
    """A plane for the states themselves, and beside it what the world shows of itself, if it
    does."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera

    def upon(self, lives: Sequence[Life]) -> View:
        return Plane(lives)


class Plane:
    """The first two principal components of the states of some lives, each as wide as it needs to
    be to show what was lived and what was chosen."""

    error = 0.0

    def __init__(self, lives: Sequence[Life]) -> None:
        states = torch.cat([life.states for life in lives]).double()
        self.mean = states.mean(0)
        values, axes = torch.linalg.eigh((states - self.mean).T @ (states - self.mean))
        self.axes = torch.zeros(states.shape[1], 2, dtype=torch.float64)
        found = min(2, states.shape[1])
        self.axes[:, :found] = axes.flip(1)[:, :found]
        self.shown = float(values.flip(0)[:2].sum() / values.sum().clamp_min(1e-12))
        """Share of the variance of what was lived that can be seen in the plane."""
        chosen = [i.chosen.flatten(0, -2) for life in lives for i in life.instants]
        self.low, self.high = _ends(self._along(states), self._along(torch.cat(chosen)))
        self.told = (
            "The plane shows the agent's states themselves, along the two directions in which "
            f"those it lived differ most; {100 * self.shown:.0f} % of their variance is in it."
        )

    def _along(self, states: Tensor) -> np.ndarray:
        return ((states.detach().cpu().double() - self.mean) @ self.axes).numpy()

    def __call__(self, states: Tensor) -> np.ndarray:
        share = (self._along(states) - self.low) / (self.high - self.low)
        return (SIDE - 1) * (MARGIN + (1 - 2 * MARGIN) * (share * (1, -1) + (0, 1)))

    def path(self, life: Life) -> np.ndarray:
        return self(life.states)

    def panels(self, pictures: Pictures) -> list[Panel]:
        paper = np.full((SIDE, SIDE, 3), PAPER, np.uint8)
        shown = [Panel("the world", picture, False) for picture in pictures]
        return [*shown, Panel("its states", paper, True)]

    def landscape(self, agent: Agent, config: WorldConfig, life: Life) -> Landscape | None:
        """A plane has more than one state in every place."""
        return None


def _ends(lived: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest place to show, `[2]` each: all that was lived, and of what was
    chosen all but what is far out."""
    most = np.quantile(chosen, [0.02, 0.98], axis=0)
    low = np.minimum(lived.min(0), most[0])
    high = np.maximum(lived.max(0), most[1])
    middle, span = (low + high) / 2, high - low
    span = np.maximum(span, 1e-3 * span.max() + 1e-9)  # what never moves stays in the middle
    return middle - span / 2, middle + span / 2


def gaze(
    agent: Agent, config: WorldConfig, seed: int, assignment: Assignment,
    say: Callable[[str], None],
) -> Gaze:  # fmt: skip
    """The best way to look at lives in this world; `say` is told where there is no picture."""
    dark = why_dark(config)
    if dark:
        say(f"no picture of {config.id}, only of the agent's states: {dark}")
        return Abstract(Dark())
    with closing(config.build(1)) as world:
        known = isinstance(world.inner, Drawn) and isinstance(world.inner, Examines)
    return ReadOut(agent, config, seed, assignment) if known else Abstract(Render(SIDE))
