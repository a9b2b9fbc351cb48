"""`ami show --live`: every step of an episode in the terminal, and a workbench for browsers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.config import Config
from ami_agent.logger import ConsoleLogger, Logger, print_line
from ami_agent.viewer import drawing
from ami_agent.viewer.projectors import (
    ProjectedEpisode,
    Projector,
    ProjectorFactory,
    make_projector_factory,
    project,
)
from ami_agent.viewer.record import EpisodeSelection, RecordedEpisode, RecordedStep, record_episodes
from ami_agent.viewer.workbench.core import Side, Workbench
from ami_agent.viewer.workbench.description import describe_workbench
from ami_agent.viewer.workbench.server import WorkbenchServer
from modules.types import ConfigError

NUM_FIT_STEPS = 100
"""Steps, at most, of the episode that the projection of states is fitted to beforehand."""
BAR_WIDTH, LABEL_WIDTH = 24, 36  # characters of a bar, and of the label before it
BAR_LEVELS = " ▁▂▃▄▅▆▇█"


class Line(NamedTuple):
    """A line of text, followed by a bar for one number from 0 to 1 or by a curve of several."""

    text: str
    fractions: Sequence[float] = ()
    color: str = "default"

    def bar(self) -> str:
        """The bar or the curve, in characters."""
        if len(self.fractions) == 1:
            return "█" * round(BAR_WIDTH * self.fractions[0])
        return "".join(
            BAR_LEVELS[round(fraction * (len(BAR_LEVELS) - 1))] for fraction in self.fractions
        )

    def label(self) -> str:
        """The text, padded where a bar or a curve follows."""
        return f"{self.text:{LABEL_WIDTH}} " if self.fractions else self.text


Display: TypeAlias = Callable[[Image.Image, Sequence[Line]], None]
"""Shows the picture of a step, and the lines below it."""


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """The page that is served."""

    port: int = 0
    """A free one if 0."""
    config: Config | None = None
    """The settings that the agent was built from; without them, it has its own planner alone."""
    beside: tuple[str, Agent, Config] | None = None
    """The name of a second agent, which plans in the same states, the agent and its settings."""


def show_live(
    agent: Agent, config: EnvConfig, console: Console, selection: EpisodeSelection, *,
    page: PageOptions = PageOptions(), wait: Callable[[], None] = lambda: None,
) -> list[RecordedEpisode]:  # fmt: skip
    """Shows the selected episodes as they happen, one after the other, and returns them, each with
    its last step alone. The workbench is served until `wait` returns or Ctrl-C. Raises ConfigError
    for an unknown mode or task, or a port that can't be had."""
    if len(selection.modes) > 1:
        raise ConfigError("--mode both: --live shows one mode, plan, react or auto")
    task_spec, logger = agent.task_spec(selection.task), ConsoleLogger(console)
    selections = [
        replace(selection, episodes=1, seed=selection.seed + i) for i in range(selection.episodes)
    ]
    config = config.for_task(task_spec)
    recorded: list[RecordedEpisode] = []
    factory = make_projector_factory(agent, config, selection.seed, task_spec, logger.info)
    projector = _fit(agent, config, selection, factory)
    with _serve(agent, config, selection, factory, projector, page) as server:
        logger.info(f"{projector.description} Every step is drawn here and at {server.address}")

        def on_step(episodes_so_far: Sequence[RecordedEpisode]) -> None:
            (recorded_episode,) = episodes_so_far
            projected = project(recorded_episode, projector)
            (step,) = projected.projected_steps
            title = f"seed {recorded_episode.seed}, {drawing.caption(projected, step)}"
            show(projected, [Line(title), *describe(step.recorded)])
            state, action = recorded_episode.states[-1:], step.recorded.action[None]
            server.follow(state, action, f"The agent acts: {title}.")

        def show(projected: ProjectedEpisode, lines: Sequence[Line]) -> None:
            (picture,) = drawing.film(projected)
            show_in_terminal(picture, lines)

        with terminal(console) as show_in_terminal, suppress(KeyboardInterrupt):
            for selected in selections:
                if recorded:  # the first episode has begun already
                    server.begin(selected.seed)
                ((recorded_episode,),) = record_episodes(
                    agent, config, factory.camera, selected, Logger(), on_step
                )
                show(project(recorded_episode, projector), [Line(recorded_episode.summary)])
                server.say(recorded_episode.summary)
                recorded.append(recorded_episode)
            wait()
    return recorded


def _fit(
    agent: Agent, config: EnvConfig, selection: EpisodeSelection, factory: ProjectorFactory
) -> Projector:
    """The projector, fitted to the first steps of the first episode."""
    beginning = replace(selection, episodes=1, max_steps=NUM_FIT_STEPS)
    return factory.fit(next(record_episodes(agent, config, factory.camera, beginning, Logger())))


@contextmanager
def _serve(
    agent: Agent, config: EnvConfig, selection: EpisodeSelection,
    factory: ProjectorFactory, projector: Projector, page: PageOptions,
) -> Iterator[WorkbenchServer]:  # fmt: skip
    """The workbench at the beginning of the first episode, served."""
    sides = [Side("agent", agent, page.config, projector)]
    if page.beside is not None:
        name, second, its_config = page.beside
        task = selection.task if selection.task in second.tasks else ""
        its_selection = replace(selection, task=task)
        its_factory = make_projector_factory(
            second, config, selection.seed, second.task_spec(task), lambda line: None
        )
        its_projector = _fit(second, config, its_selection, its_factory)
        sides.append(Side(name, second, its_config, its_projector))
    with closing(Workbench(sides, config, factory.camera, selection.task, selection.mode)) as bench:
        name = f"{config.id} {config.variant}".strip()
        levels = "" if agent.subgoals is None else agent.subgoals.description
        description = [bench.simulator.env.description, levels]
        bench.begin_own(selection.seed)
        start = describe_workbench(bench, f"{name}: workbench", description)
        with WorkbenchServer(bench, start, page.port) as server:
            yield server


def describe(step: RecordedStep) -> list[Line]:
    """The energy of the plan, term by term, and the lowest energy so far during the search."""
    terms = {name: abs(term) for name, term in step.terms.items()}
    largest = max(terms.values(), default=0.0) or 1.0
    lines = [
        Line(f"{name} {step.terms[name]:.3g}", fractions([terms[name] / largest]), color)
        for name, color in drawing.term_colors(terms).items()
    ]
    energies = step.best_energies
    if len(energies) > 1:
        low, high = energies.min(), energies.max()
        curve = fractions((energies - low) / (high - low or 1.0))
        lines.append(Line(f"while planning {high:.3g} to {low:.3g}", curve, drawing.MUTED))
    return lines


def fractions(numbers: ArrayLike) -> list[float]:
    """The numbers from 0 to 1, NaN as 0: an agent that has diverged is shown all the same."""
    return np.nan_to_num(numbers).clip(0, 1).tolist()


def wait_for_interrupt(console: Console) -> None:
    """Waits for Ctrl-C where the console is a terminal."""
    if console.is_terminal:
        print_line(console, "the page is served until Ctrl-C")
        Event().wait()


@contextmanager
def terminal(console: Console) -> Iterator[Display]:
    """The display that suits the console: pictures, or a line for each step without colours."""
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:

        def print_texts(picture: Image.Image, lines: Sequence[Line]) -> None:
            text = "; ".join(line.text for line in lines)
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield print_texts
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(picture: Image.Image, lines: Sequence[Line]) -> None:
            cropped = picture.crop((0, 0, picture.width, drawing.PANEL))  # the caption is illegible
            blocks = block_image(cropped, console.width, console.height - len(lines) - 2)
            texts = (Text.assemble(line.label(), (line.bar(), line.color)) for line in lines)
            live.update(Group(blocks, *texts), refresh=True)

        yield draw


def block_image(picture: Image.Image, width: int, height: int) -> Segments:
    """A picture in a terminal, two pixels to a character, in so many columns and rows at most."""
    scale = min(width / picture.width, 2 * max(1, height) / picture.height)
    size = max(1, int(picture.width * scale)), 2 * max(1, int(picture.height * scale / 2))
    rows = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)).tolist()
    segments = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)
