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

from ami_agent.agent import Agent
from ami_agent.life import WorldConfig
from ami_agent.report import Silence, Spoken, say
from ami_agent.show import drawing
from ami_agent.show.episodes import Life, watch
from ami_agent.show.paint import FAINT, colours
from ami_agent.show.scenes import Episode, Moment, seen
from ami_agent.show.screens import Line, Page, terminal
from ami_agent.show.views import gaze
from modules.types import UnusableInput

FIT = 100
"""Steps of a life that is lived before, to know where states are to be drawn; at most."""


class Screen(Protocol):
    """Where a moment is shown."""

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None: ...


def live(
    agent: Agent, config: WorldConfig, console: Console, *,
    episodes: int = 3, mode: str = "plan", task: str = "", seed: int = 0, port: int = 0,
    linger: Callable[[], None] = lambda: None,
) -> list[Life]:  # fmt: skip
    """Shows the lives of seeds `seed`, `seed` + 1, ... while they are lived, one after the other,
    and returns them, of each the last moment. `port` of the page, 0 takes one that is free; it is
    there until `linger` returns. Who interrupts has seen enough.

    Raises UnusableInput for an unknown mode or task, or a port that can't be had.
    """
    if mode == "both":
        raise UnusableInput("--mode both: what is watched live has one mode, plan, react or auto")
    assignment, report = agent.assigned(task), Spoken(console)
    config = config.under(assignment)
    lives: list[Life] = []
    with ExitStack() as open_screens:
        page = open_screens.enter_context(Page(port))
        eyes = gaze(agent, config, seed, assignment, report.say)
        first = watch(agent, config, eyes.camera, 1, (mode,), seed, assignment, Silence(), FIT)
        view = eyes.upon(next(first))
        report.say(f"{view.told} It is drawn here and at {page.address} as it lives.")
        screens: list[Screen] = [page, open_screens.enter_context(terminal(console))]

        def look(so_far: Callable[[], Sequence[Life]]) -> None:
            (life,) = so_far()
            episode = seen(life, view)
            now = f"seed {life.seed}, {drawing.caption(episode, episode.moments[0])}"
            show(episode, [Line(now), *told(episode.moments[0])])

        def show(episode: Episode, lines: Sequence[Line]) -> None:
            (picture,) = drawing.film(episode)
            for screen in screens:
                screen.show(picture, lines)

        with suppress(KeyboardInterrupt):
            for number in range(episodes):
                ((life,),) = watch(
                    agent, config, eyes.camera, 1, (mode,), seed + number, assignment, Silence(),
                    onlooker=look,
                )  # fmt: skip
                show(seen(life, view), [Line(life.verdict)])
                lives.append(life)
            linger()
    return lives


def told(moment: Moment) -> list[Line]:
    """The energy of what was chosen, term by term, and how it fell while it was looked for."""
    terms = {name: abs(term) for name, term in moment.terms.items()}
    largest = max(terms.values(), default=0.0) or 1.0
    lines = [
        Line(f"{name} {moment.terms[name]:.3g}", shares([size / largest]), colour)
        for (name, size), colour in zip(terms.items(), colours(terms).values(), strict=True)
    ]
    if len(moment.thinking) > 1:
        low, high = moment.thinking.min(), moment.thinking.max()
        fall = shares((moment.thinking - low) / (high - low or 1.0))
        lines.append(Line(f"while thinking {high:.3g} to {low:.3g}", fall, FAINT))
    return lines


def shares(numbers: ArrayLike) -> list[float]:
    """From 0 to 1, whatever an agent that has diverged may think."""
    return np.nan_to_num(numbers).clip(0, 1).tolist()


def stay(console: Console) -> None:
    """Until somebody interrupts, where there is somebody."""
    if console.is_terminal:
        say(console, "the page stays until Ctrl-C")
        Event().wait()
