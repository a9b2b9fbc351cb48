"""An agent at work, as pictures: what it considered, what it chose, where it went.

`show` writes for every episode a GIF and a sheet of key frames, and one self-contained page for
all; `picture` is the sheet alone. Any world will do: one that renders is seen as it is, and one
that offers `Drawn` and `life.Examines` has what was imagined drawn into its picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ami_agent.agent import Agent
from ami_agent.atomic import write_bytes
from ami_agent.evaluate import EPISODES_FROM
from ami_agent.life import WorldConfig
from ami_agent.report import Reporter, Silence
from ami_agent.show.episodes import watch
from ami_agent.show.files import ffmpeg, gif, write_mp4, write_png
from ami_agent.show.scenes import Episode, Moment, seen
from ami_agent.show.views import Drawn, gaze
from modules.types import UnusableInput

__all__ = ["Drawn", "Episode", "Moment", "picture", "pictured", "show", "watch"]

MODES = {"both": ("plan", "react")}
"""Modes that are several, side by side."""

PICTURED = 200
"""Steps that a picture tells of, at most: it is made while somebody waits for something else."""


def show(
    agent: Agent, config: WorldConfig, out: Path, *,
    episodes: int = 3, mode: str = "plan", task: str = "", seed: int = 0,
    report: Reporter | None = None, mp4: bool = False,
) -> Path:  # fmt: skip
    """Lives `episodes` episodes, of seeds `seed`, `seed` + 1, ..., and writes them into `out`:
    `episode-0.gif` and `episode-0.png`, ..., and `index.html`, whose path is returned. `mode` is
    one of the agent's, or "both": Mode-2 and Mode-1 on the same seeds, `episode-0-plan.gif` and
    `episode-0-react.gif`, .... `mp4`: the films as mp4 as well.

    Raises UnusableInput for an unknown mode, an unusable `out`, or where there is no ffmpeg.
    """
    from ami_agent.show import drawing, page  # here, because matplotlib takes its time

    report = report or Silence()
    program = ffmpeg() if mp4 else ""
    folder, modes = _folder(out), MODES.get(mode, (mode,))
    assignment = agent.assigned(task)
    config = config.under(assignment)
    eyes = gaze(agent, config, seed, assignment, report.say)
    chapters = []
    lives = watch(agent, config, eyes.camera, episodes, modes, seed, assignment, report)
    for number, same in enumerate(lives):
        view = eyes.upon(same)
        landscape = view.landscape(agent, config, same[0])  # a goal's, whatever the mode
        shades = [] if landscape is None else [page.shade(landscape, drawing.shade(landscape))]
        acts = []
        with report.progress(f"draw seed {same[0].seed}", len(same)) as bar:
            for life in same:
                episode = seen(life, view)
                name = f"episode-{number}" + (f"-{life.mode}" if len(modes) > 1 else "")
                sheet, film = drawing.sheet(episode, landscape), drawing.film(episode)
                write_bytes(folder / f"{name}.gif", gif(film))
                if program:
                    write_mp4(folder / f"{name}.mp4", film, program)
                write_png(folder / f"{name}.png", sheet)
                acts.append(page.act(episode, sheet))
                bar.advance()
        chapters.append(page.Chapter(acts, view, shades))
    title = f"{life.world}: what it was thinking"
    about = [life.about, agent.hierarchy.about]
    return page.write(folder / "index.html", title, about, chapters)


def picture(agent: Agent, config: WorldConfig, seed: int) -> tuple[np.ndarray, bytes]:
    """The sheet of key frames of one planned episode, of its beginning where it is long, uint8
    [h, w, 3]; and its film, a GIF."""
    from ami_agent.show import drawing

    assignment, silence = agent.assigned(""), Silence()
    config = config.under(assignment)
    eyes = gaze(agent, config, seed, assignment, silence.say)
    ((life,),) = watch(
        agent, config, eyes.camera, 1, ("plan",), seed, assignment, silence, most=PICTURED
    )
    view = eyes.upon([life])
    episode = seen(life, view)
    sheet = drawing.sheet(episode, view.landscape(agent, config, life))
    return sheet, gif(drawing.film(episode))


def pictured(agent: Agent, config: WorldConfig, report: Reporter) -> None:
    """A planned episode, for whoever looks at a run; where it can't be drawn that is said."""
    try:
        sheet, film = picture(agent, config, EPISODES_FROM)
        report.picture("episode", sheet, 0)
        report.film("film", film, 0)
    except UnusableInput as error:
        report.say(f"no picture of an episode: {error}")


def _folder(out: Path) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableInput(f"pictures can't be written to {out}: {error.strerror}") from None
    return Path(out)
