"""The pictures show what happened, nobody else is needed to look at them, and a world that can't
be drawn is told so."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace
from itertools import count
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image

from ami_agent.agent import Agent
from ami_agent.build import build
from ami_agent.life import World, WorldConfig
from ami_agent.recipes import two_rooms
from ami_agent.show import drawing, landscape, picture, show, watch
from ami_agent.show.episodes import Episode, ReadOut, critic
from modules.configurator import Assignment
from modules.cost import NoCritic
from modules.hierarchy import LandmarkGraph
from modules.types import Gains, UnusableInput

STEPS = 4
WORLD = replace(two_rooms().evaluation, options={"budget": STEPS})
REACH = Assignment(aim="world")


def newborn(**changes: object) -> Agent:
    return build(replace(two_rooms(), **changes), WORLD.build(1).spec)


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
    return list(watch(agent, WORLD, readout, 6, "plan", 3, REACH))


@pytest.fixture(scope="module")
def written(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return show(agent, WORLD, tmp_path_factory.mktemp("run") / "show", episodes=2)


def test_every_step_is_a_frame(written):
    for number in range(2):
        with Image.open(written.parent / f"episode-{number}.gif") as film:
            assert film.n_frames == STEPS


def test_the_page_holds_everything_and_fetches_nothing(written):
    text = written.read_text()
    assert written.name == "index.html"
    assert not re.search(r"https?:|src=\"(?!data:)|<link|@import|url\(", text)
    assert text.count("iVBORw0KGgo") == 2 * (STEPS + 1)  # every PNG begins so
    assert len(text) < 2 * 5e6


def test_sheets_are_pictures_with_something_on_them(written):
    with Image.open(written.parent / "episode-1.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 100


def test_the_lives_shown_are_the_lives_of_their_seeds(planned, readout):
    assert [episode.seed for episode in planned] == list(range(3, 9))
    for episode in planned:
        world = WORLD.build(1)
        _, info = world.reset(episode.seed)
        np.testing.assert_allclose(episode.path[0], readout.xy(info["factors"])[0], atol=1e-3)
        np.testing.assert_array_equal(episode.moments[0].picture, world.inner.render()[0])


def test_the_path_is_where_the_picture_has_the_body(planned):
    blue = np.array([30, 90, 220])
    for moment in planned[0].moments:
        rows, columns = np.nonzero((moment.picture == blue).all(-1))
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
    (episode,) = watch(agent, WORLD, readout, 1, "plan", 0, REACH)
    assert readout.error < 1.5
    for moment in episode.moments:
        assert np.linalg.norm(moment.chosen[0] - moment.place) < 4
        assert np.linalg.norm(moment.considered[:, 0] - moment.place, axis=-1).max() < 4


def test_the_chosen_future_is_one_of_those_considered(planned):
    for moment in planned[0].moments:
        gaps = np.abs(moment.considered - moment.chosen).max((1, 2))
        assert gaps.min() < 1e-3


def test_a_reflex_draws_only_its_path(agent, readout):
    (episode,) = watch(agent, WORLD, readout, 1, "react", 0, REACH)
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
        agent.hierarchy.chart(agent.perceive(obs))
    readout = ReadOut(agent, WORLD, 0, REACH)
    (episode,) = watch(agent, WORLD, readout, 1, "plan", 3, REACH)
    assert episode.moments[0].hopes.shape == (1, 3, 2)
    green = np.array([15, 143, 131])
    assert (drawing.sheet(episode, None) == green).all(-1).any()
    assert planned[0].moments[0].hopes.shape[0] == 0
    assert not (drawing.sheet(planned[0], None) == green).all(-1).any()


def test_key_frames_end_with_an_arrival_for_good(planned):
    episode = planned[0]
    early = episode._replace(arrived=2, stayed=True)
    assert drawing.key_steps(early) == [0, 1, 2]
    assert drawing.key_steps(early._replace(stayed=False))[-1] == STEPS - 1
    assert drawing.key_steps(episode._replace(moments=episode.moments[:1])) == [0]


def test_the_verdict_says_how_it_went(planned):
    episode = planned[0]._replace(arrived=None)
    assert "did not arrive" in episode.verdict
    assert "after 2 steps and stayed" in episode._replace(arrived=2, stayed=True).verdict
    assert "left again" in episode._replace(arrived=2, stayed=False).verdict


def test_ink_is_what_differs_from_the_ground():
    picture = np.full((8, 8, 3), 200, np.uint8)
    picture[2] = (0, 10, 20)
    cover = drawing.ink(picture)[..., 3]
    assert (cover[2] == 255).all()
    assert cover.sum() == 8 * 255


@pytest.fixture(scope="module")
def surveyed(agent: Agent, readout: ReadOut, planned: list[Episode]) -> landscape.Landscape:
    surveyed = landscape.survey(agent, WORLD, readout, planned[0])
    assert surveyed is not None
    return surveyed


def test_nobody_can_be_inside_a_wall_and_everybody_in_the_open(surveyed, planned):
    dark = planned[0].moments[0].picture.max(-1) < 100
    inside = surveyed.xy[1:-1, 1:-1]  # bodies may touch the frame
    x, y = inside.round().astype(int).transpose(2, 0, 1)
    free = np.isfinite(surveyed.to_go)[1:-1, 1:-1]
    assert not dark[y, x][free].any()
    assert dark[y, x].any()
    assert free.mean() > 0.8


def test_the_landscape_is_the_critic_at_each_place(agent, readout, planned):
    readout = copy(readout)
    readout.low = np.array([0.05, 0.2, 0.5, 0.2857], np.float32)
    surveyed = landscape.survey(agent, WORLD, readout, planned[0])
    row, column = np.argwhere(np.isfinite(surveyed.to_go))[37]
    along = np.linspace(readout.low, readout.high, landscape.SIDE)  # [n, F]
    factors = planned[0].factors.copy()
    factors[:2] = along[column, 0], along[row, 1]
    obs, _ = WORLD.build(1).reset(0, factors=factors[None])
    with torch.no_grad():
        there = critic(agent, agent.perceive(obs), planned[0].focus)
    np.testing.assert_allclose(there, surveyed.to_go[row, column], rtol=1e-3)
    np.testing.assert_allclose(readout.xy(factors), surveyed.xy[row, column], atol=1e-3)


def test_without_a_critic_there_is_no_landscape(planned, readout):
    blind = newborn(critic=NoCritic.Config())
    assert landscape.survey(blind, WORLD, readout, planned[0]) is None


def test_where_wishes_are_ignored_there_is_no_landscape(agent, planned, readout, monkeypatch):
    heeded, seeds = World.reset, count()
    monkeypatch.setattr(World, "reset", lambda world, seed, **wishes: heeded(world, next(seeds)))
    assert landscape.survey(agent, WORLD, readout, planned[0]) is None


def test_a_picture_for_tensorboard(agent):
    image = picture(agent, WORLD, 0)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.std() > 10


class Blind(VectorEnv):
    """A world that shows nothing of itself."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, variant: str = "", render_mode: str | None = None):
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (2, 65, 65), np.uint8)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


class Pictured(Blind):
    """A world that can be looked at, but not into."""

    def picture_xy(self, factors: np.ndarray) -> np.ndarray:
        return factors[..., :2]


@pytest.mark.parametrize(
    ("world", "missing", "present"),
    [(Blind, ["picture_xy", "factor_names"], []), (Pictured, ["factor_names"], ["picture_xy"])],
)
def test_a_world_that_cannot_be_shown_is_told_what_it_lacks(
    agent, tmp_path, monkeypatch, world, missing, present
):
    spec = gymnasium.envs.registration.EnvSpec("Dark-v0", vector_entry_point=world)
    monkeypatch.setitem(gymnasium.registry, "Dark-v0", spec)
    with pytest.raises(UnusableInput, match="Dark-v0 can't be shown") as caught:
        show(agent, WorldConfig(id="Dark-v0"), tmp_path)
    assert all(name in str(caught.value) for name in missing)
    assert not any(name in str(caught.value) for name in present)


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
