"""Any world can be looked at: as it is where it renders, as the agent's states where it doesn't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import ami_agent as ami
from ami_agent.agent import Agent
from ami_agent.build import build
from ami_agent.guard import Failed
from ami_agent.life import WorldConfig
from ami_agent.report import Progress, Silence
from ami_agent.show import drawing, episodes, show
from ami_agent.show.camera import Render, why_dark
from ami_agent.show.episodes import Life, watch
from ami_agent.show.scenes import seen
from ami_agent.show.views import SIDE, Plane, gaze
from modules.configurator import Assignment

LASTS = 6
EARN = Assignment(drives={"reward": 1.0})


class Blind(gymnasium.Env):
    """A point that drifts; it shows nothing of itself."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    told: dict[str, bool] = {}  # noqa: RUF012

    def __init__(self, lasts: int = LASTS) -> None:
        self.lasts = lasts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, 3).astype(np.float32), 0
        return self.at, {}

    def step(self, action):
        self.steps += 1
        self.at = (self.at + np.append(0.1 * action, 0.01)).clip(-9, 9).astype(np.float32)
        told = {name: said and self.steps >= 2 for name, said in self.told.items()}
        return self.at, 0.5, self.steps == self.lasts, False, told


class Pictured(Blind):
    """It renders, wide pictures with a dot in them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, lasts: int = LASTS, render_mode: str | None = None) -> None:
        super().__init__(lasts)
        self.render_mode = render_mode

    def render(self):
        picture = np.full((300, 600, 3), 255, np.uint8)
        picture[100:200, 40 * self.steps : 40 * self.steps + 40] = (200, 30, 90)
        return picture


class Judged(Blind):
    told = {"is_success": True}  # noqa: RUF012


class Lost(Judged):
    told = {"is_success": False}  # noqa: RUF012


class Uneven(Blind):
    """Odd seeds are over soon."""

    def reset(self, *, seed=None, options=None):
        self.lasts = 3 if (seed or 0) % 2 else 21
        return super().reset(seed=seed, options=options)


class Broken(Pictured):
    def render(self):
        raise ZeroDivisionError("no\nlight")


class Fading(Pictured):
    def render(self):
        if self.steps > 0:
            raise ZeroDivisionError("later")
        return super().render()


class Lacking(Pictured):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled('run `pip install "paint"`')


class Empty(Pictured):
    def render(self):
        return None


class Odd(Pictured):
    def render(self):
        return np.zeros((4, 4), np.float32)


WORLDS = (Blind, Pictured, Judged, Lost, Uneven, Broken, Fading, Lacking, Empty, Odd)


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    names = [f"show-test/{world.__name__}-v0" for world in WORLDS]
    for name, world in zip(names, WORLDS, strict=True):
        gymnasium.register(name, entry_point=world)
    yield
    for name in names:
        gymnasium.registry.pop(name)


def of(world: type) -> WorldConfig:
    return WorldConfig(id=f"show-test/{world.__name__}-v0", mortal=True)


@pytest.fixture(scope="module")
def agent(_known: None) -> Agent:
    torch.set_num_threads(1)
    world = of(Blind)
    return build(ami.recipes.gym(world), world.build(1).spec)


class Listener(Silence):
    """Who notes what is said, and how many things are under way at once: a terminal has room for
    one bar."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []
        self.at_once = self.most = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def progress(self, stage: str, total: int, start: int = 0) -> Iterator[Progress]:
        self.stages.append(stage)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        with super().progress(stage, total, start) as bar:
            yield bar
        self.at_once -= 1


def life_in(agent: Agent, world: WorldConfig, mode: str = "plan", count: int = 1) -> list[Life]:
    eyes = gaze(agent, world, 0, EARN, Silence().say)
    return [
        life for (life,) in watch(agent, world, eyes.camera, count, (mode,), 3, EARN, Silence())
    ]


def test_a_world_that_shows_nothing_is_told_of_in_one_line_and_its_states_are_shown(
    agent, tmp_path
):
    listener = Listener()
    page = show(agent, of(Blind), tmp_path, episodes=1, report=listener)
    assert listener.said == [
        "no picture of show-test/Blind-v0, only of the agent's states: it takes no render_mode"
    ]
    assert listener.stages == ["live, plan", "draw seed 0"]
    assert listener.most == 1
    assert page.exists()
    with Image.open(tmp_path / "episode-0.gif") as film:
        assert film.n_frames == LASTS
        assert film.width == 480


@pytest.mark.parametrize(
    ("world", "why"),
    [
        (Blind, "it takes no render_mode"),
        (Pictured, ""),
        (Broken, "ZeroDivisionError: no light"),
        (Lacking, 'run `pip install "paint"`'),
        (Empty, "its render() gives nothing in the mode rgb_array"),
        (Odd, "its render() gives float32 (4, 4); pictures are uint8 (h, w, 3)"),
    ],
)
def test_why_a_world_is_dark(world, why):
    assert why_dark(of(world)) == why


def test_mujoco_is_told_to_do_without_a_window_where_there_is_none(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    why_dark(of(Pictured))
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    why_dark(of(Pictured))
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_world_that_renders_is_seen_beside_the_agents_states(agent, tmp_path):
    listener = Listener()
    show(agent, of(Pictured), tmp_path, episodes=1, report=listener)
    assert listener.said == []
    (life,) = life_in(agent, of(Pictured))
    episode = seen(life, Plane([life]))
    for step, moment in enumerate(episode.moments):
        world, states = moment.panels
        assert (world.overlaid, states.overlaid) == (False, True)
        assert world.picture.shape == (SIDE // 2, SIDE, 3)
        _, columns = np.nonzero(world.picture[..., 1] < 100)
        shrunk = SIDE / 600
        assert abs(columns.mean() - shrunk * (40 * step + 20)) < 2
    with Image.open(tmp_path / "episode-0.gif") as film:
        assert film.width == 960


def test_pictures_of_many_worlds_are_of_each(agent):
    config = of(Pictured)
    world = config.build(2, **Render().options)
    world.reset(0)
    (first,), (second,) = Render(100)(world)
    assert first.shape == second.shape == (50, 100, 3)
    world.close()


def test_without_success_the_verdict_is_what_was_earned(agent):
    lives = life_in(agent, of(Blind), "react", count=2)
    assert [life.verdict for life in lives] == [
        "seed 3: return 3 in 6 steps", "seed 4: return 3 in 6 steps",
    ]  # fmt: skip
    assert not lives[0].judged


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        (Judged, "seed 3: succeeded after 2 steps and stayed; return 3 in 6 steps"),
        (Lost, "seed 3: did not succeed in 6 steps; return 3 in 6 steps"),
    ],
)
def test_with_success_the_verdict_tells_both(agent, world, verdict):
    (life,) = life_in(agent, of(world), "react")
    assert life.verdict == verdict


def test_of_a_long_life_fewer_moments_are_kept_and_the_whole_path(agent, monkeypatch):
    monkeypatch.setattr(episodes, "MOST", 8)
    world = of(Blind)
    config = WorldConfig(id=world.id, mortal=True, options={"lasts": 41})
    (life,) = life_in(agent, config, "react")
    steps = [instant.step for instant in life.instants]
    assert steps == list(range(0, 41, 8))
    assert life.states.shape == (41, 3)
    episode = seen(life, Plane([life]))
    assert len(episode.path) == 41
    np.testing.assert_allclose(episode.moments[3].place, episode.path[24])


def test_short_lives_beside_a_long_one_keep_all_their_moments(agent, monkeypatch):
    monkeypatch.setattr(episodes, "MOST", 5)
    short, long = life_in(agent, of(Uneven), "react", count=2)
    assert [instant.step for instant in short.instants] == [0, 1, 2]
    assert [instant.step for instant in long.instants] == [0, 8, 16]


@pytest.fixture
def life(agent) -> Life:
    (life,) = life_in(agent, of(Blind))
    return life


def test_the_plane_keeps_what_differs_most(life):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    along = torch.linspace(-1, 1, 50)
    flat = torch.stack([3 * along, (7 * along).sin(), 0.01 * (90 * along).cos()], 1)
    view = Plane([life._replace(states=flat @ turn, instants=[_still(life, flat @ turn)])])
    x, y = view(flat @ turn).T
    assert abs(np.corrcoef(x, along)[0, 1]) > 0.99
    assert abs(np.corrcoef(y, (7 * along).sin())[0, 1]) > 0.95
    assert view.shown > 0.999
    assert "100 % of their variance" in view.told
    assert (x.min(), y.min()) > (0, 0)
    assert (x.max(), y.max()) < (SIDE, SIDE)


def _still(life: Life, states: torch.Tensor):
    return life.instants[0]._replace(chosen=states[:1])


@pytest.mark.parametrize("states", [torch.zeros(4, 3), torch.arange(4.0)[:, None]])
def test_states_that_do_not_fill_a_plane_lie_in_its_middle(life, states):
    view = Plane([life._replace(states=states, instants=[_still(life, states)])])
    places = view(states)
    assert np.isfinite(places).all()
    np.testing.assert_allclose(places[:, 1], (SIDE - 1) / 2)


def test_two_modes_share_a_plane(agent):
    eyes = gaze(agent, of(Blind), 0, EARN, Silence().say)
    both = next(watch(agent, of(Blind), eyes.camera, 1, ("plan", "react"), 3, EARN, Silence()))
    view = eyes.upon(both)
    planned, reflex = (seen(life, view) for life in both)
    np.testing.assert_allclose(planned.path[0], reflex.path[0], atol=1e-3)
    assert planned.imagines
    assert not reflex.imagines
    assert drawing.sheet(planned, None).std() > 5


def test_a_world_that_breaks_while_it_is_drawn_is_refused_in_one_line(agent):
    with pytest.raises(ami.UnusableInput, match="failed in render: ZeroDivisionError"):
        life_in(agent, of(Fading))


class Fading(Pictured):
    """After a while nothing is to be seen any more."""

    def render(self):
        return None if self.steps == 2 else super().render()


def test_a_world_that_fades_away_is_told_in_a_line():
    gymnasium.register("ami-test/Fading-v0", entry_point=Fading)
    config = WorldConfig(id="ami-test/Fading-v0")
    assert not why_dark(config)
    with closing(config.build(1, **Render().options)) as world:
        world.reset(0)
        camera = Render()
        for _ in range(2):
            assert camera(world)[0]
            world.envs.step(world.envs.action_space.sample())
        with pytest.raises(Failed, match=r"can no longer be drawn: its render\(\) gives nothing"):
            camera(world)
    del gymnasium.registry["ami-test/Fading-v0"]
