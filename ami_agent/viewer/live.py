"""An agent watched while it lives: every moment is drawn as it comes, in the terminal and on a page
of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import Event
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from rich.console import Console

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.logger import ConsoleLogger, NullLogger, print_line
from ami_agent.viewer import drawing
from ami_agent.viewer.colors import MUTED, term_colors
from ami_agent.viewer.live_display import Line, LivePage, terminal
from ami_agent.viewer.project import ProjectedEpisode, ProjectedStep, project
from ami_agent.viewer.projectors import make_projector_factory
from ami_agent.viewer.record import RecordedEpisode, record_episodes
from modules.types import ConfigError

NUM_FIT_STEPS = 100
"""Steps of a life that is lived before, to know where states are to be drawn; at most."""


class Display(Protocol):
    """Where a moment is shown."""

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None: ...


def show_live(
    agent: Agent, config: EnvConfig, console: Console, *,
    episodes: int = 3, mode: str = "plan", task: str = "", seed: int = 0, port: int = 0,
    wait: Callable[[], None] = lambda: None,
) -> list[RecordedEpisode]:  # fmt: skip
    """Shows the lives of seeds `seed`, `seed` + 1, ... while they are lived, one after the other,
    and returns them, of each the last moment. `port` of the page, 0 takes one that is free; it is
    there until `linger` returns. Who interrupts has seen enough.

    Raises ConfigError for an unknown mode or task, or a port that can't be had.
    """
    if mode == "both":
        raise ConfigError("--mode both: what is watched live has one mode, plan, react or auto")
    task_spec, logger = agent.task_spec(task), ConsoleLogger(console)
    config = config.for_task(task_spec)
    recorded: list[RecordedEpisode] = []
    with ExitStack() as open_displays:
        page = open_displays.enter_context(LivePage(port))
        factory = make_projector_factory(agent, config, seed, task_spec, logger.info)
        first_recorded = record_episodes(
            agent, config, factory.camera, 1, (mode,), seed, task_spec, NullLogger(), NUM_FIT_STEPS
        )
        projector = factory.fit(next(first_recorded))
        logger.info(f"{projector.description} It is drawn here and at {page.address} as it lives.")
        displays: list[Display] = [page, open_displays.enter_context(terminal(console))]

        def on_step(so_far: Callable[[], Sequence[RecordedEpisode]]) -> None:
            (recorded_episode,) = so_far()
            projected = project(recorded_episode, projector)
            title = f"seed {recorded_episode.seed}, {drawing.caption(projected, projected.projected_steps[0])}"
            show(projected, [Line(title), *describe(projected.projected_steps[0])])

        def show(projected: ProjectedEpisode, lines: Sequence[Line]) -> None:
            (picture,) = drawing.film(projected)
            for display in displays:
                display.show(picture, lines)

        with suppress(KeyboardInterrupt):
            for number in range(episodes):
                ((recorded_episode,),) = record_episodes(
                    agent, config, factory.camera, 1, (mode,), seed + number, task_spec, NullLogger(),
                    callback=on_step,
                )  # fmt: skip
                show(project(recorded_episode, projector), [Line(recorded_episode.summary)])
                recorded.append(recorded_episode)
            wait()
    return recorded


def describe(projected_step: ProjectedStep) -> list[Line]:
    """The energy of what was chosen, term by term, and how it fell while it was looked for."""
    terms = {name: abs(term) for name, term in projected_step.terms.items()}
    largest = max(terms.values(), default=0.0) or 1.0
    lines = [
        Line(f"{name} {projected_step.terms[name]:.3g}", fractions([magnitude / largest]), color)
        for (name, magnitude), color in zip(terms.items(), term_colors(terms).values(), strict=True)
    ]
    if len(projected_step.best_energies) > 1:
        low, high = projected_step.best_energies.min(), projected_step.best_energies.max()
        curve = fractions((projected_step.best_energies - low) / (high - low or 1.0))
        lines.append(Line(f"while thinking {high:.3g} to {low:.3g}", curve, MUTED))
    return lines


def fractions(numbers: ArrayLike) -> list[float]:
    """From 0 to 1, whatever an agent that has diverged may think."""
    return np.nan_to_num(numbers).clip(0, 1).tolist()


def wait_for_interrupt(console: Console) -> None:
    """Until somebody interrupts, where there is somebody."""
    if console.is_terminal:
        print_line(console, "the page stays until Ctrl-C")
        Event().wait()
