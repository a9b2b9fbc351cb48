"""`ami show --live`: every step of an episode is drawn as it happens, in the terminal and on a page
that this machine serves."""

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
from ami_agent.logger import ConsoleLogger, Logger, print_line
from ami_agent.viewer import drawing
from ami_agent.viewer.colors import MUTED, term_colors
from ami_agent.viewer.live_display import Line, LivePage, terminal
from ami_agent.viewer.project import ProjectedEpisode, ProjectedStep, project
from ami_agent.viewer.projectors import make_projector_factory
from ami_agent.viewer.record import RecordedEpisode, record_episodes
from modules.types import ConfigError

NUM_FIT_STEPS = 100
"""Steps, at most, of the episode that the projection of states is fitted to beforehand."""


class Display(Protocol):
    """Shows one step at a time."""

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None: ...


def show_live(
    agent: Agent, config: EnvConfig, console: Console, *,
    episodes: int = 3, mode: str = "plan", task: str = "", seed: int = 0, port: int = 0,
    wait: Callable[[], None] = lambda: None,
) -> list[RecordedEpisode]:  # fmt: skip
    """Shows the episodes of seeds `seed`, `seed` + 1, ... as they happen, one after the other, and
    returns them, each with its last step alone. The page is served at `port`, or at a free port if
    that is 0, until `wait` returns. A KeyboardInterrupt ends the display, not the program.

    Raises ConfigError for an unknown mode or task, or a port that can't be had.
    """
    if mode == "both":
        raise ConfigError("--mode both: --live shows one mode, plan, react or auto")
    task_spec, logger = agent.task_spec(task), ConsoleLogger(console)
    config = config.for_task(task_spec)
    recorded: list[RecordedEpisode] = []
    with ExitStack() as open_displays:
        page = open_displays.enter_context(LivePage(port))
        factory = make_projector_factory(agent, config, seed, task_spec, logger.info)
        first_recorded = record_episodes(
            agent, config, factory.camera, 1, (mode,), seed, task_spec, Logger(), NUM_FIT_STEPS
        )
        projector = factory.fit(next(first_recorded))
        logger.info(f"{projector.description} Every step is drawn here and at {page.address}")
        displays: list[Display] = [page, open_displays.enter_context(terminal(console))]

        def on_step(so_far: Callable[[], Sequence[RecordedEpisode]]) -> None:
            (recorded_episode,) = so_far()
            projected = project(recorded_episode, projector)
            (step,) = projected.projected_steps
            title = f"seed {recorded_episode.seed}, {drawing.caption(projected, step)}"
            show(projected, [Line(title), *describe(step)])

        def show(projected: ProjectedEpisode, lines: Sequence[Line]) -> None:
            (picture,) = drawing.film(projected)
            for display in displays:
                display.show(picture, lines)

        with suppress(KeyboardInterrupt):
            for number in range(episodes):
                ((recorded_episode,),) = record_episodes(
                    agent, config, factory.camera, 1, (mode,), seed + number, task_spec,
                    Logger(), callback=on_step,
                )  # fmt: skip
                show(project(recorded_episode, projector), [Line(recorded_episode.summary)])
                recorded.append(recorded_episode)
            wait()
    return recorded


def describe(projected_step: ProjectedStep) -> list[Line]:
    """The energy of the plan, term by term, and the lowest energy so far during the search."""
    terms = {name: abs(term) for name, term in projected_step.terms.items()}
    largest = max(terms.values(), default=0.0) or 1.0
    lines = [
        Line(f"{name} {projected_step.terms[name]:.3g}", fractions([terms[name] / largest]), color)
        for name, color in term_colors(terms).items()
    ]
    energies = projected_step.best_energies
    if len(energies) > 1:
        low, high = energies.min(), energies.max()
        curve = fractions((energies - low) / (high - low or 1.0))
        lines.append(Line(f"while planning {high:.3g} to {low:.3g}", curve, MUTED))
    return lines


def fractions(numbers: ArrayLike) -> list[float]:
    """The numbers from 0 to 1, NaN as 0: an agent that has diverged is shown all the same."""
    return np.nan_to_num(numbers).clip(0, 1).tolist()


def wait_for_interrupt(console: Console) -> None:
    """Waits for Ctrl-C where the console is a terminal."""
    if console.is_terminal:
        print_line(console, "the page is served until Ctrl-C")
        Event().wait()
