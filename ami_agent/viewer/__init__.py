"""Pictures of an agent that acts: the candidates it compared, its plan, and the path it took.

Any environment will do: its frames are shown where it renders, and imagined states are drawn into
them where it is also `Renderable` and `HasFactors`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED
from ami_agent.logger import Logger
from ami_agent.storage.files import write_bytes
from ami_agent.viewer import drawing, page
from ami_agent.viewer.projectors import (
    Renderable,
    compute_critic_map,
    make_projector_factory,
    project,
)
from ami_agent.viewer.record import EpisodeSelection, record_episodes
from modules.types import ConfigError

__all__ = ["EpisodeSelection", "Renderable", "draw_episode", "log_episode", "show"]

MAX_DRAWN_STEPS = 200  # by `draw_episode`, at most: training waits for it


def show(
    agent: Agent, config: EnvConfig, out: Path, selection: EpisodeSelection, *,
    logger: Logger | None = None, mp4: bool = False,
) -> Path:  # fmt: skip
    """Writes the selected episodes into `out`: `episode-0.gif` and `episode-0.png`, ..., and
    `index.html`, whose path is returned; in several modes `episode-0-plan.gif` and
    `episode-0-react.gif`, .... `mp4` writes mp4 files beside the GIFs.

    Raises ConfigError for an unknown mode, an unusable `out`, or where ffmpeg is missing."""
    logger = logger or Logger()
    ffmpeg_path = drawing.ffmpeg() if mp4 else ""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"pictures can't be written to {out}: {error.strerror}") from None
    task_spec = agent.task_spec(selection.task)
    config = config.for_task(task_spec)
    factory = make_projector_factory(agent, config, selection.seed, task_spec, logger.info)
    seed_records = []
    recorded = record_episodes(agent, config, factory.camera, selection, logger)
    for number, by_mode in enumerate(recorded):
        projector = factory.fit(by_mode)
        # the same in every mode
        critic_map = compute_critic_map(agent, config, projector, by_mode[0])
        overlays = [] if critic_map is None else [page.critic_overlay(critic_map)]
        mode_records = []
        with logger.progress(f"draw seed {by_mode[0].seed}", len(by_mode)) as bar:
            for recorded_episode in by_mode:
                projected = project(recorded_episode, projector)
                if fault := projected.prediction_fault:
                    logger.info(f"seed {recorded_episode.seed}: {fault}")
                mode = f"-{recorded_episode.mode}" if len(by_mode) > 1 else ""
                name = f"episode-{number}{mode}"
                sheet, film = drawing.sheet(projected, critic_map), drawing.film(projected)
                write_bytes(folder / f"{name}.gif", drawing.encode_gif(film))
                if ffmpeg_path:
                    drawing.write_mp4(folder / f"{name}.mp4", film, ffmpeg_path)
                drawing.write_png(folder / f"{name}.png", sheet)
                mode_records.append(page.mode_record(projected, sheet))
                bar.advance()
        seed_records.append(page.SeedRecord(mode_records, projector, overlays))
    title = f"{recorded_episode.env}: what the agent plans and does"
    levels = "" if agent.subgoals is None else agent.subgoals.description
    description = [recorded_episode.description, levels]
    return page.write(folder / "index.html", title, description, seed_records)


def draw_episode(agent: Agent, config: EnvConfig, seed: int) -> tuple[np.ndarray, bytes]:
    """The key frames of (the first steps of) an episode of Mode-2, uint8 [h, w, 3], and its GIF."""
    task_spec, logger = agent.task_spec(""), Logger()
    config = config.for_task(task_spec)
    factory = make_projector_factory(agent, config, seed, task_spec, logger.info)
    selection = EpisodeSelection(episodes=1, seed=seed, max_steps=MAX_DRAWN_STEPS)
    ((recorded_episode,),) = record_episodes(agent, config, factory.camera, selection, logger)
    projector = factory.fit([recorded_episode])
    projected = project(recorded_episode, projector)
    critic_map = compute_critic_map(agent, config, projector, recorded_episode)
    film = drawing.encode_gif(drawing.film(projected))
    return drawing.sheet(projected, critic_map), film


def log_episode(agent: Agent, config: EnvConfig, logger: Logger) -> None:
    """Logs the pictures of one episode of Mode-2, or why it can't be drawn."""
    try:
        sheet, film = draw_episode(agent, config, FIRST_EVAL_SEED)
        logger.log_image("episode", sheet, 0)
        logger.log_video("film", film, 0)
    except ConfigError as error:
        logger.info(f"no picture of an episode: {error}")
