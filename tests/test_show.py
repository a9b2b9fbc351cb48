"""The pictures show what happened: where it was, what it considered, what it chose."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ami_agent.agent import Agent
from ami_agent.build import build
from ami_agent.life import World
from ami_agent.probe import Examiner
from ami_agent.recipes import two_rooms
from ami_agent.report import Silence
from ami_agent.show import drawing, files, landscape, picture, show
from ami_agent.show.charts import ends
from ami_agent.show.episodes import watch
from ami_agent.show.files import PACE, REST, ffmpeg, write_mp4
from ami_agent.show.paint import ink
from ami_agent.show.scenes import Episode, seen
from ami_agent.show.thoughts import critic
from ami_agent.show.views import ReadOut
from modules.configurator import Assignment
from modules.cost import NoCritic
from modules.hierarchy import LandmarkGraph
from modules.types import Gains, UnusableInput

STEPS = 4
WORLD = replace(two_rooms().evaluation, options={"max_episode_steps": STEPS})
REACH = Assignment(aim="world")


def newborn(**changes: object) -> Agent:
    return build(replace(two_rooms(), **changes), WORLD.build(1).spec)


def lived(agent: Agent, readout: ReadOut, episodes: int, mode: str, seed: int) -> Iterator[Episode]:
    lives = watch(agent, WORLD, readout.camera, episodes, (mode,), seed, REACH, Silence())
    return (seen(life, readout) for (life,) in lives)


@pytest.fixture(scope="module", autouse=True)
def _coarse():
    """A landscape of a few places shows as much as one of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landscape, "SIDE", 11)
        yield


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.set_num_threads(1)
    return newborn()


@pytest.fixture(scope="module")
def readout(agent: Agent) -> ReadOut:
    return ReadOut(agent, WORLD, 0, REACH)


@pytest.fixture(scope="module")
def planned(agent: Agent, readout: ReadOut) -> list[Episode]:
    return list(lived(agent, readout, 6, "plan", 3))


@pytest.fixture(scope="module")
def written(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return show(agent, WORLD, tmp_path_factory.mktemp("run") / "show", episodes=2)


def test_every_step_is_a_frame_of_a_short_life(written):
    for number in range(2):
        with Image.open(written.parent / f"episode-{number}.gif") as film:
            assert film.n_frames == STEPS


def test_of_a_long_life_the_film_is_no_longer(planned, monkeypatch):
    monkeypatch.setattr(drawing, "FILM", 3)
    assert len(drawing.film(planned[0])) == 2  # steps 0 and 2 of 4


def test_sheets_are_pictures_with_something_on_them(written):
    with Image.open(written.parent / "episode-1.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 100


def test_the_lives_shown_are_the_lives_of_their_seeds(planned, readout):
    assert [episode.life.seed for episode in planned] == list(range(3, 9))
    for episode in planned:
        world = WORLD.build(1)
        _, info = world.reset(episode.life.seed)
        np.testing.assert_allclose(episode.path[0], readout.xy(info["factors"])[0], atol=1e-3)
        (panel,) = episode.moments[0].panels
        np.testing.assert_array_equal(panel.picture, world.inner.render()[0])


def test_the_path_is_where_the_picture_has_the_body(planned):
    blue = np.array([30, 90, 220])
    for moment in planned[0].moments:
        rows, columns = np.nonzero((moment.panels[0].picture == blue).all(-1))
        np.testing.assert_allclose([columns.mean(), rows.mean()], moment.place, atol=1)


class Transparent(torch.nn.Module):
    """A state that is nothing but the pixels: linear read-outs of place are as good as can be."""

    def forward(self, obs: torch.Tensor, gains: Gains) -> torch.Tensor:
        seen = obs[:, 0].float()
        pixel = torch.arange(seen.shape[-1], dtype=torch.float32)
        total = seen.sum((1, 2))
        x, y = (seen.sum(1) @ pixel / total, seen.sum(2) @ pixel / total)
        return torch.stack([x, y], 1).repeat(1, 16) / 65


def test_a_chosen_future_begins_at_the_body_if_the_read_out_is_perfect():
    agent = newborn()
    agent.perception = Transparent()
    readout = ReadOut(agent, WORLD, 0, REACH)
    (episode,) = lived(agent, readout, 1, "plan", 0)
    assert readout.error < 1.5
    assert f"wrong by {readout.error:.2g} pixels" in readout.told
    for moment in episode.moments:
        assert np.linalg.norm(moment.chosen[0] - moment.place) < 4
        assert np.linalg.norm(moment.considered[:, 0] - moment.place, axis=-1).max() < 4


class Bent(Transparent):
    """The same, of which no straight line reads the places."""

    def forward(self, obs, gains):
        return super().forward(obs, gains).sub(0.5).mul(6).tanh()


def test_what_is_known_is_read_as_it_is_however_bent_states_are():
    agent = newborn()
    agent.perception = Bent()
    readout = ReadOut(agent, WORLD, 0, REACH)
    examiner = Examiner(WORLD, 1_000_000)
    places, straight = readout.xy(examiner.known.factors), readout.probe.read(readout.known)
    assert np.abs(readout(readout.known) - places).mean() < 0.5
    off = np.linalg.norm(readout.xy(straight) - places, axis=-1)
    assert readout.error < 0.6 * np.sqrt(np.square(off).mean())
    shaped = readout(readout.known[:6].unflatten(0, (2, 3)))
    np.testing.assert_allclose(shaped, places[:6].reshape(2, 3, 2), atol=1)
    np.testing.assert_allclose(readout(readout.known[0]), places[0], atol=1)


def test_the_chosen_future_is_one_of_those_considered(planned):
    for moment in planned[0].moments:
        gaps = np.abs(moment.considered - moment.chosen).max((1, 2))
        assert gaps.min() < 1e-3


def test_a_reflex_draws_only_its_path(agent, readout):
    (episode,) = lived(agent, readout, 1, "react", 0)
    assert not episode.imagines
    assert not episode.moments[0].terms
    assert len(drawing.film(episode)) == STEPS
    orange = np.array([240, 89, 26])
    sheet = drawing.sheet(episode, None)
    assert not (sheet == orange).all(-1).any()


def test_what_a_level_above_hopes_for_is_drawn_and_a_flat_mind_hopes_for_nothing(planned):
    agent = newborn(hierarchy=LandmarkGraph.Config(landmarks=12, hops=4, ahead=3))
    obs, _ = WORLD.build(12).reset(0)
    with torch.no_grad():
        states = agent.perceive(obs)
    agent.hierarchy.chart(states, states[None], states[:, None])
    (episode,) = lived(agent, ReadOut(agent, WORLD, 0, REACH), 1, "plan", 3)
    assert episode.moments[0].hopes.shape == (1, 3, 2)
    green = np.array([15, 143, 131])
    assert (drawing.sheet(episode, None) == green).all(-1).any()
    assert planned[0].moments[0].hopes.shape[0] == 0
    assert not (drawing.sheet(planned[0], None) == green).all(-1).any()


def test_key_frames_end_with_an_arrival_for_good(planned):
    episode = planned[0]

    def steps(**changes: object) -> list[int]:
        told = episode._replace(life=episode.life._replace(**changes))
        return [moment.step for moment in drawing.key_moments(told)]

    assert steps(arrived=2, stayed=True) == [0, 1, 2]
    assert steps(arrived=2, stayed=False)[-1] == STEPS - 1
    (only,) = drawing.key_moments(episode._replace(moments=episode.moments[:1]))
    assert only.step == 0


def test_the_verdict_says_how_it_went(planned):
    life = planned[0].life._replace(arrived=None)
    assert life.judged
    assert life.verdict == "seed 3: did not arrive in 4 steps"
    assert "after 2 steps and stayed" in life._replace(arrived=2, stayed=True).verdict
    assert "after 1 step and left again" in life._replace(arrived=1, stayed=False).verdict


def test_ink_is_what_differs_from_the_ground():
    picture = np.full((8, 8, 3), 200, np.uint8)
    picture[2] = (0, 10, 20)
    cover = ink(picture)[..., 3]
    assert (cover[2] == 255).all()
    assert cover.sum() == 8 * 255


@pytest.fixture(scope="module")
def surveyed(agent: Agent, readout: ReadOut, planned: list[Episode]) -> landscape.Landscape:
    surveyed = landscape.survey(agent, WORLD, readout, planned[0].life)
    assert surveyed is not None
    return surveyed


def test_nobody_can_be_inside_a_wall_and_everybody_in_the_open(surveyed, planned):
    dark = planned[0].moments[0].panels[0].picture.max(-1) < 100
    inside = surveyed.xy[1:-1, 1:-1]  # bodies may touch the frame
    x, y = inside.round().astype(int).transpose(2, 0, 1)
    free = np.isfinite(surveyed.to_go)[1:-1, 1:-1]
    assert not dark[y, x][free].any()
    assert dark[y, x].any()
    assert free.mean() > 0.8


def test_the_landscape_is_the_critic_at_each_place(agent, readout, planned):
    readout = copy(readout)
    readout.low = np.array([0.05, 0.2, 0.5, 0.2857], np.float32)
    life = planned[0].life
    surveyed = landscape.survey(agent, WORLD, readout, life)
    row, column = np.argwhere(np.isfinite(surveyed.to_go))[37]
    along = np.linspace(readout.low, readout.high, landscape.SIDE)  # [n, F]
    factors = life.factors[0].copy()
    factors[:2] = along[column, 0], along[row, 1]
    obs, _ = WORLD.build(1).reset(0, factors=factors[None])
    with torch.no_grad():
        there = critic(agent, agent.perceive(obs), life.focus)
    np.testing.assert_allclose(there, surveyed.to_go[row, column], rtol=1e-3)
    np.testing.assert_allclose(readout.xy(factors), surveyed.xy[row, column], atol=1e-3)


def test_places_from_which_nothing_leads_to_the_goal_leave_colours_to_all_others():
    to_go = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 1000.0], [2.0, 3.0, 3.0]])
    found = landscape.Landscape(np.zeros((3, 3, 2)), to_go, "", np.zeros((4, 4, 3), np.uint8))
    assert ends(found) == (1.0, 1 + 4 * 2.0)  # the median is 3, 2 above the least
    even = found._replace(to_go=np.arange(9.0).reshape(3, 3))
    assert ends(even) == (0.0, 8.0)


def test_without_a_critic_there_is_no_landscape(planned, readout):
    blind = newborn(critic=NoCritic.Config())
    assert landscape.survey(blind, WORLD, readout, planned[0].life) is None


def test_where_wishes_are_ignored_there_is_no_landscape(agent, planned, readout, monkeypatch):
    heeded, seeds = World.reset, count()
    monkeypatch.setattr(World, "reset", lambda world, seed, **wishes: heeded(world, next(seeds)))
    assert landscape.survey(agent, WORLD, readout, planned[0].life) is None


def test_films_as_mp4_play_as_long_as_the_gif(agent, tmp_path):
    try:
        program = ffmpeg()
    except UnusableInput as error:
        pytest.skip(str(error))
    show(agent, WORLD, tmp_path, episodes=1, mp4=True)
    asked = [program, "-i", str(tmp_path / "episode-0.mp4"), "-f", "null", "-"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stderr
    assert "h264" in told
    assert "480x530" in told
    assert int(re.findall(r"frame= *(\d+)", told)[-1]) == STEPS + REST // PACE
    with pytest.raises(UnusableInput, match=r"nowhere/film.mp4 can't be written: .*No such file"):
        write_mp4(tmp_path / "nowhere" / "film.mp4", [Image.new("RGB", (8, 8))], program)


def test_without_ffmpeg_it_is_said_before_anything_is_lived(agent, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UnusableInput, match=r"--mp4 needs ffmpeg: .*ami-agent\[film\]"):
        show(agent, WORLD, tmp_path / "out", episodes=1, mp4=True)
    assert not (tmp_path / "out").exists()


def test_a_picture_for_tensorboard(agent):
    image, film = picture(agent, WORLD, 0)
    assert Image.open(io.BytesIO(film)).n_frames > 1
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.std() > 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"episodes": 0}, "episodes is 0"), ({"mode": "dream"}, "no mode 'dream'")],
)
def test_refuses_what_makes_no_sense(agent, tmp_path, changes, complaint):
    with pytest.raises(UnusableInput, match=complaint):
        show(agent, WORLD, tmp_path, **changes)


def test_refuses_a_folder_that_is_a_file(agent, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(UnusableInput, match="can't be written"):
        show(agent, WORLD, tmp_path / "taken")
