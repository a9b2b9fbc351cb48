"""The pictures show what happened: the agent's position, its candidates and its plan."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ami_agent.adapters.env import EnvAdapter
from ami_agent.agent import Agent
from ami_agent.config import build, override
from ami_agent.logger import Logger
from ami_agent.probing.probe import FactorProbe
from ami_agent.recipes import two_rooms
from ami_agent.viewer import draw_episode, drawing, projectors, show
from ami_agent.viewer.drawing import (
    FRAME_MS,
    LAST_FRAME_MS,
    ffmpeg,
    value_range,
    without_background,
    write_mp4,
)
from ami_agent.viewer.projectors import (
    CriticMap,
    ProbeProjector,
    ProjectedEpisode,
    compute_critic_map,
    project,
)
from ami_agent.viewer.record import EpisodeSelection, critic_value, record_episodes
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.types import ConfigError, ModalityWeights

STEPS = 4
ENV = replace(two_rooms().eval_env, options={"max_episode_steps": STEPS})
REACH = TaskSpec(goal_source="env")


def untrained_agent(changes: Mapping[str, object] | None = None) -> Agent:
    return build(override(two_rooms(), changes or {}), ENV.build(1).spec)


def collect_data(
    agent: Agent, projector: ProbeProjector, episodes: int, mode: str, seed: int
) -> Iterator[ProjectedEpisode]:
    selection = EpisodeSelection(episodes=episodes, mode=mode, seed=seed)
    recordings = record_episodes(agent, ENV, projector.camera, selection, Logger())
    return (project(episode, projector) for (episode,) in recordings)


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.set_num_threads(1)
    return untrained_agent()


@pytest.fixture(scope="module")
def projector(agent: Agent) -> ProbeProjector:
    return ProbeProjector(agent, ENV, 0, REACH)


@pytest.fixture(scope="module")
def planned(agent: Agent, projector: ProbeProjector) -> list[ProjectedEpisode]:
    return list(collect_data(agent, projector, 6, "plan", 3))


@pytest.fixture(scope="module")
def written(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return show(agent, ENV, tmp_path_factory.mktemp("run") / "show", EpisodeSelection(episodes=2))


def test_every_step_is_a_frame_of_a_short_episode(written):
    for number in range(2):
        with Image.open(written.parent / f"episode-{number}.gif") as film:
            assert film.n_frames == STEPS


def test_the_film_of_a_long_episode_is_no_longer(planned, monkeypatch):
    monkeypatch.setattr(drawing, "MAX_FRAMES", 3)
    assert len(drawing.film(planned[0])) == 2  # steps 0 and 2 of 4


def test_sheets_are_pictures_with_content(written):
    with Image.open(written.parent / "episode-1.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 100


def test_the_episodes_shown_are_the_episodes_of_their_seeds(planned, projector):
    assert [episode.recorded.seed for episode in planned] == list(range(3, 9))
    for episode in planned:
        env = ENV.build(1)
        _, info = env.reset(episode.recorded.seed)
        np.testing.assert_allclose(episode.path[0], projector.xy(info["factors"])[0], atol=1e-3)
        (panel,) = episode.projected_steps[0].panels
        np.testing.assert_array_equal(panel.picture, env.unwrapped.render()[0])


def test_the_path_is_where_the_picture_shows_the_agent(planned):
    blue = np.array([30, 90, 220])
    for projected_step in planned[0].projected_steps:
        rows, columns = np.nonzero((projected_step.panels[0].picture == blue).all(-1))
        np.testing.assert_allclose([columns.mean(), rows.mean()], projected_step.position, atol=1)


class Transparent(torch.nn.Module):
    """A state that is the pixels alone: linear probes of the position are as good as possible."""

    def forward(self, obs: torch.Tensor, gains: ModalityWeights) -> torch.Tensor:
        project = obs[:, 0].float()
        pixel = torch.arange(project.shape[-1], dtype=torch.float32)
        total = project.sum((1, 2))
        x, y = (project.sum(1) @ pixel / total, project.sum(2) @ pixel / total)
        return torch.stack([x, y], 1).repeat(1, 16) / 65


def test_a_chosen_future_begins_at_the_agent_if_the_probe_is_exact():
    agent = untrained_agent()
    agent.perception = Transparent()
    projector = ProbeProjector(agent, ENV, 0, REACH)
    (episode,) = collect_data(agent, projector, 1, "plan", 0)
    assert projector.error < 1.5
    assert f"wrong by {projector.error:.2g} pixels" in projector.description
    for projected_step in episode.projected_steps:
        assert np.linalg.norm(projected_step.planned[0] - projected_step.position) < 4
        assert (
            np.linalg.norm(projected_step.candidates[:, 0] - projected_step.position, axis=-1).max()
            < 4
        )


class Bent(Transparent):
    """The same, of which no linear probe reads the position."""

    def forward(self, obs, gains):
        return super().forward(obs, gains).sub(0.5).mul(6).tanh()


def test_known_states_are_read_exactly_however_nonlinear_they_are():
    agent = untrained_agent()
    agent.perception = Bent()
    projector = ProbeProjector(agent, ENV, 0, REACH)
    data = FactorProbe(ENV, 1_000_000)
    positions, straight = (
        projector.xy(data.train_set.factors),
        projector.probe.read(projector.reference_states),
    )
    assert np.abs(projector(projector.reference_states) - positions).mean() < 0.5
    off = np.linalg.norm(projector.xy(straight) - positions, axis=-1)
    assert projector.error < 0.6 * np.sqrt(np.square(off).mean())
    shaped = projector(projector.reference_states[:6].unflatten(0, (2, 3)))
    np.testing.assert_allclose(shaped, positions[:6].reshape(2, 3, 2), atol=1)
    np.testing.assert_allclose(projector(projector.reference_states[0]), positions[0], atol=1)


def test_the_chosen_future_is_one_of_those_considered(planned):
    for projected_step in planned[0].projected_steps:
        differences = np.abs(projected_step.candidates - projected_step.planned).max((1, 2))
        assert differences.min() < 1e-3


def test_a_reactive_actor_draws_only_its_path(agent, projector):
    (episode,) = collect_data(agent, projector, 1, "react", 0)
    assert not episode.imagines
    assert not episode.projected_steps[0].recorded.terms
    assert len(drawing.film(episode)) == STEPS
    orange = np.array([240, 89, 26])
    sheet = drawing.sheet(episode, None)
    assert not (sheet == orange).all(-1).any()


def test_subgoals_are_drawn_and_a_flat_agent_has_none(planned):
    agent = untrained_agent(
        {"actor.subgoals": LandmarkGraphConfig(num_landmarks=12, max_edges=4, num_subgoals=3)}
    )
    obs, _ = ENV.build(12).reset(0)
    with torch.no_grad():
        states = agent.encode(obs)
    agent.subgoals.build(states, states[None], states[:, None])
    (episode,) = collect_data(agent, ProbeProjector(agent, ENV, 0, REACH), 1, "plan", 3)
    assert episode.projected_steps[0].upper_plans.shape == (1, 3, 2)
    green = np.array([15, 143, 131])
    assert (drawing.sheet(episode, None) == green).all(-1).any()
    assert planned[0].projected_steps[0].upper_plans.shape[0] == 0
    assert not (drawing.sheet(planned[0], None) == green).all(-1).any()


def test_key_frames_end_with_the_final_arrival(planned):
    episode = planned[0]

    def steps(**changes: object) -> list[int]:
        output = episode._replace(recorded=episode.recorded._replace(**changes))
        return [projected_step.recorded.step for projected_step in drawing.key_steps(output)]

    assert steps(success_step=2, final_success=True) == [0, 1, 2]
    assert steps(success_step=2, final_success=False)[-1] == STEPS - 1
    (only,) = drawing.key_steps(episode._replace(projected_steps=episode.projected_steps[:1]))
    assert only.recorded.step == 0


def test_the_summary_states_the_outcome(planned):
    episode = planned[0].recorded._replace(success_step=None)
    assert episode.has_success
    assert episode.summary == "seed 3: did not arrive in 4 steps"
    assert (
        "after 2 steps and stayed" in episode._replace(success_step=2, final_success=True).summary
    )
    assert (
        "after 1 step and left again"
        in episode._replace(success_step=1, final_success=False).summary
    )


def test_stayed_is_said_only_of_a_success_that_lasts(planned):
    back = planned[0].recorded._replace(
        success_step=1, final_success=True, success_interrupted=True, has_drives=False
    )
    assert back.summary == "seed 3: arrived after 1 step, left and returned"
    assert back.end_step == len(back.states)
    assert len(drawing.key_steps(planned[0]._replace(recorded=back))) == STEPS


def test_a_chart_over_steps_says_what_is_estimated_and_what_happened(planned):
    episode = planned[0]._replace(
        recorded=planned[0].recorded._replace(success_step=3, final_success=True)
    )
    axes = Figure((15, 3)).add_axes((0.1, 0.1, 0.8, 0.8))
    drawing.draw_energy(axes, episode, [0])
    lines = {line.get_label(): line for line in axes.lines}
    estimate, actual = lines["critic's estimate of steps to go"], lines["actual steps to go"]
    assert list(actual.get_ydata()) == [3, 0]
    assert actual.get_color() != lines["arrived"].get_color()
    assert actual.get_linestyle() != estimate.get_linestyle()
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    axes = Figure((15, 3)).add_axes((0.1, 0.1, 0.8, 0.8))
    drawing.draw_prediction_error(axes, episode)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_what_the_critic_and_the_probe_estimate_is_called_an_estimate(planned, projector):
    episode, step = planned[0], planned[0].projected_steps[0]
    value = f"{step.recorded.critic_value:.3g}"
    assert drawing.caption(episode, step).endswith(f"critic's estimate of steps to go: {value}")
    assert drawing.caption(episode, step, brief=True) == f"step 0 · critic estimates {value}"
    note = drawing.position_note(episode)
    assert note.startswith("Positions of imagined states are a probe's estimates")
    assert f"off by {projector.error:.2g} pixels (root mean square) in frames 320 pixels" in note


def test_foreground_is_what_differs_from_the_background():
    draw_episode = np.full((8, 8, 3), 200, np.uint8)
    draw_episode[2] = (0, 10, 20)
    cover = without_background(draw_episode)[..., 3]
    assert (cover[2] == 255).all()
    assert cover.sum() == 8 * 255


@pytest.fixture(scope="module")
def critic_map_(
    agent: Agent, projector: ProbeProjector, planned: list[ProjectedEpisode]
) -> CriticMap:
    critic_map_ = compute_critic_map(agent, ENV, projector, planned[0].recorded)
    assert critic_map_ is not None
    return critic_map_


def test_no_position_is_free_in_a_wall_and_every_one_in_the_open(critic_map_, planned):
    dark = planned[0].projected_steps[0].panels[0].picture.max(-1) < 100
    inside = critic_map_.xy[1:-1, 1:-1]  # agents may touch the frame
    x, y = inside.round().astype(int).transpose(2, 0, 1)
    free = np.isfinite(critic_map_.values)[1:-1, 1:-1]
    assert not dark[y, x][free].any()
    assert dark[y, x].any()
    assert free.mean() > 0.8


def test_the_critic_map_is_the_critic_at_each_position(agent, projector, planned):
    projector = copy(projector)
    projector.low = np.array([0.05, 0.2, 0.5, 0.2857], np.float32)
    episode = planned[0].recorded
    critic_map_ = compute_critic_map(agent, ENV, projector, episode)
    row, column = np.argwhere(np.isfinite(critic_map_.values))[37]
    along = np.linspace(projector.low, projector.high, projectors.GRID_SIZE)  # [n, F]
    factors = episode.factors[0].copy()
    factors[:2] = along[column, 0], along[row, 1]
    obs, _ = ENV.build(1).reset(0, factors=factors[None])
    with torch.no_grad():
        there = critic_value(agent, agent.encode(obs), episode.context)
    np.testing.assert_allclose(there, critic_map_.values[row, column], rtol=1e-3)
    np.testing.assert_allclose(projector.xy(factors), critic_map_.xy[row, column], atol=1e-3)


def test_positions_without_a_way_to_the_goal_do_not_stretch_the_colour_range():
    to_go = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 1000.0], [2.0, 3.0, 3.0]])
    found = CriticMap(np.zeros((3, 3, 2)), to_go, "", np.zeros((4, 4, 3), np.uint8))
    assert value_range(found) == (1.0, 1 + 4 * 2.0)  # the median is 3, 2 above the least
    even = found._replace(values=np.arange(9.0).reshape(3, 3))
    assert value_range(even) == (0.0, 8.0)


def test_without_a_critic_there_is_no_critic_map(planned, projector):
    zero_weights = untrained_agent({"cost.goal_critic": None})
    assert compute_critic_map(zero_weights, ENV, projector, planned[0].recorded) is None


def test_where_reset_ignores_factors_there_is_no_critic_map(agent, planned, projector, monkeypatch):
    heeded, seeds = EnvAdapter.reset, count()
    monkeypatch.setattr(EnvAdapter, "reset", lambda env, seed, **wishes: heeded(env, next(seeds)))
    assert compute_critic_map(agent, ENV, projector, planned[0].recorded) is None


def test_films_as_mp4_play_as_long_as_the_gif(agent, tmp_path):
    try:
        program = ffmpeg()
    except ConfigError as error:
        pytest.skip(str(error))
    show(agent, ENV, tmp_path, EpisodeSelection(episodes=1), mp4=True)
    requested = [program, "-i", str(tmp_path / "episode-0.mp4"), "-f", "null", "-"]
    output = subprocess.run(requested, capture_output=True, text=True, check=True).stderr
    assert "h264" in output
    assert "480x530" in output
    assert int(re.findall(r"frame= *(\d+)", output)[-1]) == STEPS + LAST_FRAME_MS // FRAME_MS
    with pytest.raises(ConfigError, match=r"nowhere/film.mp4 can't be written: .*No such file"):
        write_mp4(tmp_path / "nowhere" / "film.mp4", [Image.new("RGB", (8, 8))], program)


def test_a_missing_ffmpeg_is_reported_before_collection(agent, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--mp4 needs ffmpeg: .*ami-agent\[film\]"):
        show(agent, ENV, tmp_path / "out", EpisodeSelection(episodes=1), mp4=True)
    assert not (tmp_path / "out").exists()


def test_a_picture_for_tensorboard(agent):
    image, film = draw_episode(agent, ENV, 0)
    assert Image.open(io.BytesIO(film)).n_frames > 1
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.std() > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"episodes": 0}, "episodes is 0"), ({"mode": "dream"}, "no mode 'dream'")],
)
def test_refuses_invalid_arguments(agent, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        show(agent, ENV, tmp_path, EpisodeSelection(**changes))


def test_refuses_a_folder_that_is_a_file(agent, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="can't be written"):
        show(agent, ENV, tmp_path / "taken", EpisodeSelection())
