"""An agent watched while it lives: every moment is drawn as it comes, in the terminal and on a page
of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Protocol

from PIL import Image
from rich.console import Console

from ami_agent.agent import Agent
from ami_agent.life import WorldConfig
from ami_agent.report import Silence, Spoken
from ami_agent.show import drawing
from ami_agent.show.episodes import Life, watch
from ami_agent.show.paint import TERMS
from ami_agent.show.scenes import Moment, seen
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
) -> list[Life]:  # fmt: skip
    """Shows the lives of seeds `seed`, `seed` + 1, ... while they are lived, one after the other,
    and returns them. `port` of the page; 0 takes one that is free.

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
            episode = seen(life._replace(instants=life.instants[-1:]), view)
            (picture,) = drawing.film(episode)
            lines = [Line(f"seed {life.seed}, {drawing.caption(episode, episode.moments[0])}")]
            for screen in screens:
                screen.show(picture, [*lines, *told(episode.moments[0])])

        for number in range(episodes):
            ((life,),) = watch(
                agent, config, eyes.camera, 1, (mode,), seed + number, assignment, Silence(),
                onlooker=look,
            )  # fmt: skip
            report.say(life.verdict)
            lives.append(life)
    return lives


def told(moment: Moment) -> list[Line]:
    """The energy of what was chosen, term by term, and how it fell while it was looked for."""
    terms = moment.terms.items()
    largest = max([abs(term) for _, term in terms], default=0.0) or 1.0
    lines = [
        Line(f"{name} {term:.3g}", [abs(term) / largest], colour)
        for (name, term), colour in zip(terms, cycle(TERMS))
    ]
    if len(moment.thinking) > 1:
        low, high = moment.thinking.min(), moment.thinking.max()
        fall = (moment.thinking - low) / (high - low or 1.0)
        lines.append(Line(f"while thinking {high:.3g} to {low:.3g}", list(fall), "#767d8a"))
    return lines
