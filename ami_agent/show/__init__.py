"""An agent at work, as pictures: what it considered, what it chose, where it went.

`show` writes for every episode a GIF and a sheet of key frames, and one self-contained page for
all; `picture` is the sheet alone. A world takes part by offering `Drawn` and `life.Examines`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ami_agent.agent import Agent
from ami_agent.life import WorldConfig
from ami_agent.report import Reporter, Silence
from ami_agent.show.episodes import Drawn, Episode, ReadOut, watch
from ami_agent.show.landscape import survey
from modules.types import UnusableInput

__all__ = ["Drawn", "Episode", "picture", "show", "watch"]


def show(
    agent: Agent, config: WorldConfig, out: Path, *,
    episodes: int = 3, mode: str = "plan", task: str = "", seed: int = 0,
    report: Reporter | None = None,
) -> Path:  # fmt: skip
    """Lives `episodes` episodes, of seeds `seed`, `seed` + 1, ..., and writes them into `out`:
    `episode-0.gif` and `episode-0.png`, ..., and `index.html`, whose path is returned.

    Raises UnusableInput for a world that can't be drawn, an unknown mode, or an unusable `out`.
    """
    from ami_agent.show import drawing, page  # here, because matplotlib takes its time

    report = report or Silence()
    folder = _folder(out)
    assignment = agent.assigned(task)
    config = config.under(assignment)
    readout = ReadOut(agent, config, seed, assignment)
    lives = watch(agent, config, readout, episodes, mode, seed, assignment)
    chapters = []
    with report.progress("show", episodes) as bar:
        for number, episode in enumerate(lives):
            frames = drawing.film(episode)
            sheet = drawing.sheet(episode, survey(agent, config, readout, episode))
            drawing.write_gif(folder / f"episode-{number}.gif", frames)
            drawing.write_png(folder / f"episode-{number}.png", sheet)
            chapters.append(page.Chapter(episode.verdict, frames, sheet))
            bar.advance(frames=len(frames))
    title = f"{episode.world}, mode {mode}"
    written = page.write(folder / "index.html", title, chapters, readout.error)
    report.say(f"pictures: {written}")
    return written


def picture(agent: Agent, config: WorldConfig, seed: int) -> np.ndarray:
    """The sheet of key frames of one planned episode, uint8 [h, w, 3].

    Raises UnusableInput for a world that can't be drawn."""
    from ami_agent.show import drawing

    assignment = agent.assigned("")
    readout = ReadOut(agent, config.under(assignment), seed, assignment)
    (episode,) = watch(agent, config, readout, 1, "plan", seed, assignment)
    return drawing.sheet(episode, survey(agent, config, readout, episode))


def _folder(out: Path) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableInput(f"pictures can't be written to {out}: {error.strerror}") from None
    return Path(out)
