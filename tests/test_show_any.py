"""Any environment can be viewed: as it renders, or as the agent's states where it doesn't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import gymnasium
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.agent import Agent
from ami_agent.config import build, override
from ami_agent.logger import Logger, Progress
from ami_agent.viewer import drawing, record, show
from ami_agent.viewer.camera import Camera, render_error
from ami_agent.viewer.page import mode_record
from ami_agent.viewer.projectors import (
    PLANE_SIZE,
    PCAProjector,
    make_projector_factory,
    project,
)
from ami_agent.viewer.record import EpisodeSelection, RecordedEpisode, record_episodes
from modules.actor.planning import TreeSearchConfig
from modules.configurator import TaskSpec
from tests.conftest import tiny_gym

LASTS = 6
EARN = TaskSpec(drives={"reward": 1.0})


class Blind(gymnasium.Env):
    """A point that drifts; it does not render."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    info_values: dict[str, bool] = {}  # noqa: RUF012

    def __init__(self, lasts: int = LASTS) -> None:
        self.lasts = lasts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, 3).astype(np.float32), 0
        return self.at, {}

    def step(self, action):
        self.steps += 1
        self.at = (self.at + np.append(0.1 * action, 0.01)).clip(-9, 9).astype(np.float32)
        info = {name: message and self.steps >= 2 for name, message in self.info_values.items()}
        return self.at, 0.5, self.steps == self.lasts, False, info


class Pictured(Blind):
    """It renders wide pictures with a dot in them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, lasts: int = LASTS, render_mode: str | None = None) -> None:
        super().__init__(lasts)
        self.render_mode = render_mode

    def render(self):
        picture = np.full((300, 600, 3), 255, np.uint8)
        picture[100:200, 40 * self.steps : 40 * self.steps + 40] = (200, 30, 90)
        return picture


class WithSuccess(Blind):
    info_values = {"is_success": True}  # noqa: RUF012


class Lost(WithSuccess):
    info_values = {"is_success": False}  # noqa: RUF012


class Returning(Blind):
    """Success is lost at the fourth step and had again at the fifth."""

    def step(self, action):
        *returned, _ = super().step(action)
        return *returned, {"is_success": self.steps in (2, 3, 5, 6)}


class Uneven(Blind):
    """Episodes of odd seeds end early."""

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


ENVS = (Blind, Pictured, WithSuccess, Lost, Returning, Uneven, Broken, Fading, Lacking, Empty, Odd)


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    names = [f"show-test/{env.__name__}-v0" for env in ENVS]
    for name, env in zip(names, ENVS, strict=True):
        gymnasium.register(name, entry_point=env)
    yield
    for name in names:
        gymnasium.registry.pop(name)


def of(env: type) -> EnvConfig:
    return EnvConfig(id=f"show-test/{env.__name__}-v0", terminal_channel=True)


@pytest.fixture(scope="module")
def agent(_known: None) -> Agent:
    torch.set_num_threads(1)
    env = of(Blind)
    return build(ami.recipes.gym(env), env.build(1).spec)


class Listener(Logger):
    """Records messages, and how many progress bars are open at once: a terminal has room for
    one."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []
        self.max_open_envs = self.most = 0

    def info(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def progress(self, stage: str, total: int | None, start: int = 0) -> Iterator[Progress]:
        self.stages.append(stage)
        self.max_open_envs += 1
        self.most = max(self.most, self.max_open_envs)
        with super().progress(stage, total, start) as bar:
            yield bar
        self.max_open_envs -= 1


def record_in(
    agent: Agent, env: EnvConfig, mode: str = "plan", count: int = 1
) -> list[RecordedEpisode]:
    factory = make_projector_factory(agent, env, 0, EARN, Logger().info)
    selection = EpisodeSelection(episodes=count, mode=mode, seed=3)
    episodes = record_episodes(agent, env, factory.camera, selection, Logger())
    return [recorded for (recorded,) in episodes]


def test_an_env_that_does_not_render_is_reported_in_one_line_and_its_states_are_shown(
    agent, tmp_path
):
    listener = Listener()
    page = show(agent, of(Blind), tmp_path, EpisodeSelection(episodes=1), logger=listener)
    no_picture, *others = listener.said
    assert no_picture == (
        "no picture of show-test/Blind-v0, only of the agent's states: it takes no render_mode "
        "(its pictures are shown where it takes render_mode='rgb_array' and renders)"
    )
    assert all("no nearer to what happened" in line for line in others)
    assert listener.stages == ["act, plan", "draw seed 0"]
    assert listener.most == 1
    assert page.exists()
    with Image.open(tmp_path / "episode-0.gif") as film:
        assert film.n_frames == LASTS
        assert film.width == 480


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (
            Blind,
            "it takes no render_mode (its pictures are shown where it takes "
            "render_mode='rgb_array' and renders)",
        ),
        (Pictured, ""),
        (Broken, "ZeroDivisionError: no light"),
        (Lacking, 'run `pip install "paint"`'),
        (Empty, "its render() gives nothing in the mode rgb_array"),
        (Odd, "its render() gives float32 (4, 4); pictures are uint8 (h, w, 3)"),
    ],
)
def test_the_reason_why_an_env_does_not_render_is_stated(env, why):
    assert render_error(of(env)) == why


def test_mujoco_renders_without_a_window_where_there_is_no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    render_error(of(Pictured))
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    render_error(of(Pictured))
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_an_env_that_renders_is_shown_beside_the_agents_states(agent, tmp_path):
    listener = Listener()
    show(agent, of(Pictured), tmp_path, EpisodeSelection(episodes=1), logger=listener)
    assert not any("no picture" in line for line in listener.said)
    (recorded,) = record_in(agent, of(Pictured))
    episode = project(recorded, PCAProjector([recorded]))
    for step, projected_step in enumerate(episode.projected_steps):
        env, states = projected_step.panels
        assert (env.overlaid, states.overlaid) == (False, True)
        assert env.picture.shape == (PLANE_SIZE // 2, PLANE_SIZE, 3)
        _, columns = np.nonzero(env.picture[..., 1] < 100)
        shrunk = PLANE_SIZE / 600
        assert abs(columns.mean() - shrunk * (40 * step + 20)) < 2
    with Image.open(tmp_path / "episode-0.gif") as film:
        assert film.width == 960


def test_pictures_of_many_envs_are_of_each(agent):
    config = of(Pictured)
    env = config.build(2, **Camera().options)
    env.reset(0)
    (first,), (second,) = Camera(100)(env)
    assert first.shape == second.shape == (50, 100, 3)
    env.close()


def test_without_success_the_summary_is_the_return(agent):
    recordings = record_in(agent, of(Blind), "react", count=2)
    assert [recorded.summary for recorded in recordings] == [
        "seed 3: return 3 in 6 steps", "seed 4: return 3 in 6 steps",
    ]  # fmt: skip
    assert not recordings[0].has_success


@pytest.mark.parametrize(
    ("env", "verdict"),
    [
        (WithSuccess, "seed 3: succeeded after 2 steps and stayed; return 3 in 6 steps"),
        (Returning, "seed 3: succeeded after 2 steps, left and returned; return 3 in 6 steps"),
        (Lost, "seed 3: did not succeed in 6 steps; return 3 in 6 steps"),
    ],
)
def test_with_success_the_summary_states_both(agent, env, verdict):
    (recorded,) = record_in(agent, of(env), "react")
    assert recorded.summary == verdict


def test_a_long_episode_keeps_fewer_steps_and_its_whole_path(agent, monkeypatch):
    monkeypatch.setattr(record, "MAX_STEPS_KEPT", 8)
    env = of(Blind)
    config = EnvConfig(id=env.id, terminal_channel=True, options={"lasts": 41})
    (recorded,) = record_in(agent, config, "react")
    steps = [recorded_step.step for recorded_step in recorded.recorded_steps]
    assert steps == list(range(0, 41, 8))
    assert recorded.states.shape == (41, 3)
    episode = project(recorded, PCAProjector([recorded]))
    assert len(episode.path) == 41
    np.testing.assert_allclose(episode.projected_steps[3].position, episode.path[24])


def test_short_episodes_beside_a_long_one_keep_all_their_steps(agent, monkeypatch):
    monkeypatch.setattr(record, "MAX_STEPS_KEPT", 5)
    short, long = record_in(agent, of(Uneven), "react", count=2)
    assert [recorded_step.step for recorded_step in short.recorded_steps] == [0, 1, 2]
    assert [recorded_step.step for recorded_step in long.recorded_steps] == [0, 8, 16]


@pytest.fixture
def recorded(agent) -> RecordedEpisode:
    (recorded,) = record_in(agent, of(Blind))
    return recorded


def test_the_projection_keeps_the_largest_variance(recorded):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    along = torch.linspace(-1, 1, 50)
    flat = torch.stack([3 * along, (7 * along).sin(), 0.01 * (90 * along).cos()], 1)
    view = PCAProjector(
        [recorded._replace(states=flat @ turn, recorded_steps=[_still(recorded, flat @ turn)])]
    )
    x, y = view(flat @ turn).T
    assert abs(np.corrcoef(x, along)[0, 1]) > 0.99
    assert abs(np.corrcoef(y, (7 * along).sin())[0, 1]) > 0.95
    assert view.explained_variance > 0.999
    assert "100 % of their variance" in view.description
    labels = view.axis_labels
    assert labels[0] == f"first principal direction of the state ({_percent(view, flat, 0)} %)"
    assert labels[1] == f"second principal direction of the state ({_percent(view, flat, 1)} %)"
    assert (x.min(), y.min()) > (0, 0)
    assert (x.max(), y.max()) < (PLANE_SIZE, PLANE_SIZE)


def _percent(view: PCAProjector, flat: torch.Tensor, direction: int) -> str:
    """The share of the variance of states in a plane of two numbers along one of its directions."""
    variance = (flat - flat.mean(0)).var(0).sum()
    _, values, _ = np.linalg.svd((flat - flat.mean(0)).numpy())
    return f"{100 * values[direction] ** 2 / (len(flat) - 1) / float(variance):.0f}"


def test_a_plane_of_states_says_what_its_axes_are(recorded, monkeypatch):
    view = PCAProjector([recorded])
    episode = project(recorded, view)
    panel = episode.projected_steps[0].panels[-1]
    assert panel.axis_labels == view.axis_labels
    axes = Figure().add_axes((0, 0, 1, 1))
    drawing.label_axes(axes, panel, 6)
    assert tuple(text.get_text() for text in axes.texts) == view.axis_labels
    labelled: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        drawing, "label_axes", lambda axes, panel, size: labelled.append(panel.axis_labels)
    )
    sheet = drawing.sheet(episode, None)
    assert labelled == [view.axis_labels] * len(drawing.key_steps(episode))
    drawing.film(episode)
    assert (
        len(labelled) == len(drawing.key_steps(episode)) + 1
    )  # the film's frames share their axes
    (panel_data,) = mode_record(episode, sheet)["panels"]
    assert panel_data["axes"] == view.axis_labels


def test_a_prediction_that_is_no_better_than_no_change_is_called_that(recorded):
    planned = recorded.states[:3].clone()
    steps = [recorded.recorded_steps[0]._replace(planned_states=planned)]
    right = project(recorded._replace(recorded_steps=steps), PCAProjector([recorded]))
    assert right.prediction_fault == ""
    still = planned[:1].expand(3, -1)
    steps = [recorded.recorded_steps[0]._replace(planned_states=still)]
    none = project(recorded._replace(recorded_steps=steps), PCAProjector([recorded]))
    assert "no nearer to what happened than if nothing changed" in none.prediction_fault
    assert "(relative error 1.00; " in none.prediction_fault
    sheet = drawing.sheet(none, None)
    assert mode_record(none, sheet)["predictionFault"] == none.prediction_fault
    reactive = recorded._replace(
        recorded_steps=[step._replace(planned_states=step.planned_states[:1])
                        for step in recorded.recorded_steps]
    )  # fmt: skip
    assert project(reactive, PCAProjector([recorded])).prediction_fault == ""


def _still(recorded: RecordedEpisode, states: torch.Tensor):
    return recorded.recorded_steps[0]._replace(planned_states=states[:1])


@pytest.mark.parametrize("states", [torch.zeros(4, 3), torch.arange(4.0)[:, None]])
def test_states_of_low_rank_are_centred_in_the_plane(recorded, states):
    view = PCAProjector(
        [recorded._replace(states=states, recorded_steps=[_still(recorded, states)])]
    )
    positions = view(states)
    assert np.isfinite(positions).all()
    np.testing.assert_allclose(positions[:, 1], (PLANE_SIZE - 1) / 2)


def test_two_modes_share_a_plane(agent):
    factory = make_projector_factory(agent, of(Blind), 0, EARN, Logger().info)
    both = next(
        record_episodes(
            agent,
            of(Blind),
            factory.camera,
            EpisodeSelection(episodes=1, mode="both", seed=3),
            Logger(),
        )
    )
    view = factory.fit(both)
    planned, reactive = (project(recorded, view) for recorded in both)
    np.testing.assert_allclose(planned.path[0], reactive.path[0], atol=1e-3)
    assert planned.imagines
    assert not reactive.imagines
    assert drawing.sheet(planned, None).std() > 5


def test_an_env_that_fails_while_it_renders_is_refused_in_one_line(agent):
    with pytest.raises(ami.ConfigError, match="failed in render: ZeroDivisionError"):
        record_in(agent, of(Fading))


class Fading(Pictured):
    """After a while it renders nothing any more."""

    def render(self):
        return None if self.steps == 2 else super().render()


def test_an_env_that_stops_rendering_is_reported_in_one_line():
    gymnasium.register("ami-test/Fading-v0", entry_point=Fading)
    config = EnvConfig(id="ami-test/Fading-v0")
    assert not render_error(config)
    with closing(config.build(1, **Camera().options)) as env:
        env.reset(0)
        camera = Camera()
        for _ in range(2):
            assert camera(env)[0]
            env.vector_env.step(env.vector_env.action_space.sample())
        with pytest.raises(EnvError, match=r"no longer be rendered: its render\(\) gives nothing"):
            camera(env)
    del gymnasium.registry["ami-test/Fading-v0"]


def test_the_simulations_of_a_tree_search_are_recorded_as_a_tree():
    """Every simulation of every plan, by the options that it chose, and the plan among them."""
    config = override(
        tiny_gym(EnvConfig(id="CartPole-v1", max_episode_steps=3)),
        {"actor.planner": TreeSearchConfig(horizon=3, iterations=6)},
    )
    with closing(config.env.build(1)) as env:
        agent = build(config, env.spec)
    chosen = EpisodeSelection(episodes=1, mode="plan")
    ((episode,),) = record_episodes(agent, config.env, None, chosen, Logger())
    assert len(episode.recorded_steps) == 3
    for step in episode.recorded_steps:
        tree = step.search_tree
        assert tree is not None
        assert tree.choices.shape == (7, 3)  # the first simulation follows the policy alone
        assert set(tree.choices.flatten()) <= {0, 1}
        np.testing.assert_array_equal(tree.energies, step.candidate_energies)
        is_planned = (tree.choices == tree.planned).all(1)
        assert tree.energies[is_planned].min() == pytest.approx(sum(step.terms.values()), rel=1e-5)
        assert len({*map(tuple, tree.choices)}) > 1
    sheet = np.zeros((4, 4, 3), np.uint8)
    projected = project(episode, PCAProjector([episode]))
    frame = mode_record(projected, sheet)["frames"][0]
    assert frame["tree"]["choices"] == episode.recorded_steps[0].search_tree.choices.tolist()
    assert len(frame["tree"]["energies"]) == 7
