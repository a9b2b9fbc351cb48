"""OGBench: data made again by its own rule, its official tasks, and the comparison with what is
published. What does not need the package runs without it."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from ami_agent.adapters.env import EnvConfig
from ami_agent.bench import suites
from ami_agent.bench.ogbench_references import PUBLISHED, PUBLISHED_LEARNERS, reference_policies
from ami_agent.cli.main import main
from ami_agent.config import build
from ami_agent.data import make_ogbench as data
from ami_agent.data import ogbench_cubes
from ami_agent.data.make_ogbench import make_ogbench, ogbench_data, point_maze_data
from ami_agent.evaluation.evaluate import evaluate_policies
from ami_agent.recipes import robotics
from ami_agent.recipes.ogbench import DEFAULT_DATASET, official_env, official_tasks, ogbench
from ami_agent.training import LoadDataset, OnlineActorCritic
from modules.types import ConfigError
from tests.conftest import error_line

MEDIUM = "pointmaze-medium-navigate"


@pytest.mark.parametrize(
    ("name", "episodes", "steps"),
    [
        (MEDIUM, 1000, 1001),
        ("pointmaze-giant-navigate-v0", 500, 2001),
        ("pointmaze-teleport-stitch", 5000, 201),
        ("visual-pointmaze-medium-navigate", 1000, 1001),
        ("cube-single-play", 1000, 1001),
        ("cube-triple-noisy-v0", 3000, 1001),
    ],
)
def test_a_data_set_has_its_official_size(name, episodes, steps):
    found = ogbench_data(name)
    assert (found.episodes, found.steps, found.num_validation) == (episodes, steps, episodes // 10)


@pytest.mark.parametrize(
    "name",
    [
        "pointmaze-tiny-navigate",
        "antmaze-medium-navigate",
        "cube-single-stitch",
        "visual-cube-single-play",
        "",
    ],
)
def test_other_data_sets_are_refused_in_one_line(name, tmp_path):
    with pytest.raises(ConfigError, match="can't be made here") as error:
        make_ogbench(name, tmp_path / "x.npz", console=Console(file=io.StringIO()))
    assert "\n" not in str(error.value)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    line = error_line(capsys, "train", "ogbench", "--env.id", MEDIUM)
    assert "ogbench is not installed: pip install 'ami-agent[ogbench]'" in line


def test_without_gymnasium_robotics_one_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(robotics, "find_spec", lambda name: None)
    line = error_line(capsys, "train", "gymnasium-robotics")
    assert "gymnasium-robotics is not installed: pip install 'ami-agent[robotics]'" in line


def test_gymnasium_robotics_is_planned_in_where_a_goal_is_a_position_of_the_agent_itself():
    pytest.importorskip("gymnasium_robotics", reason="needs the extra `robotics`")
    pushing = robotics.gymnasium_robotics(EnvConfig(id="FetchPush-v4"))
    assert pushing.find(OnlineActorCritic).hindsight_fraction == 0.8
    assert not pushing.env.goal_from_obs
    point = robotics.gymnasium_robotics(EnvConfig(id="PointMaze_Large-v3"))
    assert point.env.goal_from_obs
    assert point.actor.policy.goal_dims == 2
    for config in (pushing, point):
        assert config.env.imports == ("gymnasium_robotics",)
        assert config.recipe == "gymnasium-robotics"


def test_published_results_name_every_learner():
    assert {len(success) for success in PUBLISHED.values()} == {len(PUBLISHED_LEARNERS)}


def test_a_suite_without_published_results_is_refused_in_one_line(capsys):
    line = error_line(capsys, "bench", "suites", "--datasets", "pointmaze-tiny-navigate")
    assert "no suite has 'pointmaze-tiny-navigate'" in line


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    data.check_ogbench()


def made(path, name=MEDIUM, episodes=2, seed=3):
    make_ogbench(name, path, episodes=episodes, seed=seed, console=Console(file=io.StringIO()))
    with np.load(path) as arrays:
        return dict(arrays)


def test_data_have_the_layout_that_the_package_reads(package, tmp_path):
    import ogbench

    arrays = made(tmp_path / "d.npz", episodes=10)
    assert {name: (part.shape, part.dtype.type) for name, part in arrays.items()} == {
        "observations": ((10_010, 2), np.float32),
        "actions": ((10_010, 2), np.float32),
        "terminals": ((10_010,), np.bool_),
        "qpos": ((10_010, 2), np.float32),
        "qvel": ((10_010, 2), np.float32),
    }
    assert arrays["terminals"].nonzero()[0].tolist() == list(range(1000, 10_010, 1001))
    theirs, validation = ogbench.make_env_and_datasets(
        f"{MEDIUM}-v0", dataset_path=str(tmp_path / "d.npz"), dataset_only=True
    )
    assert len(theirs["observations"]) == 10_000
    assert len(validation["observations"]) == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d-val.npz", "d.npz"]


def test_an_episode_walks_to_the_oracles_subgoals_with_noise(package):
    walker = data.Walker(point_maze_data(MEDIUM))
    episode, env = walker.episode(0, 5), walker.env
    position, actions = episode["qpos"].astype(float), episode["actions"]
    # in the open an action of 1 moves the ball by 0.2
    moved = np.abs(np.diff(position, axis=0) - 0.2 * actions[:-1]).max(1)
    assert np.mean(moved < 1e-5) > 0.9
    assert np.abs(actions).max() == 1
    # an action is a direction of length 1, to the middle of a cell beside or of its own, and noise
    cells = [env.xy_to_ij(xy) for xy in position]
    errors = []
    for cell, xy, action in zip(cells, position, actions, strict=True):
        nearby = [cell, *(data._add(cell, step) for step in data.NEIGHBOURS)]
        ways = [np.array(env.ij_to_xy(c)) - xy for c in nearby if not walker._is_wall(c)]
        errors.append(min(np.linalg.norm(w / np.linalg.norm(w) - action) for w in ways))
    assert 0.3 < np.mean(errors) < 0.6  # of two components of 0.5 each, the nearest of some ways
    assert len(set(cells)) > 10  # many goals in one episode


def test_an_episode_of_stitch_stays_near_its_start(package):
    walker = data.Walker(point_maze_data("pointmaze-large-stitch"))
    env = walker.env
    starts, ends = [], []
    for index in range(4):
        episode = walker.episode(1, index)
        starts.append(env.xy_to_ij(episode["qpos"][0]))
        ends.append(env.xy_to_ij(episode["qpos"][-1]))
    assert len(set(starts)) > 1
    for start, end in zip(starts, ends, strict=True):
        assert end in walker._near(start)
        assert int(env.get_oracle_subgoal(env.ij_to_xy(start), env.ij_to_xy(end))[1][start]) == 4


def test_data_that_were_interrupted_continue_to_the_same_file(package, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 1)
    whole = made(tmp_path / "whole.npz")
    walked, episode = [], data.Walker.episode

    def interrupted(self, seed, index):
        if len(walked) == 1:
            raise KeyboardInterrupt
        walked.append(index)
        return episode(self, seed, index)

    monkeypatch.setattr(data.Walker, "episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "half.npz")
    monkeypatch.setattr(data.Walker, "episode", episode)
    again = []
    monkeypatch.setattr(
        data.Walker, "episode", lambda *args: again.append(args[2]) or episode(*args)
    )
    half = made(tmp_path / "half.npz")
    assert (walked, again) == ([0], [1])
    assert all((half[name] == whole[name]).all() for name in data.DTYPES)


VISUAL = "visual-pointmaze-medium-navigate"


def test_pictures_are_those_of_the_environment_that_is_trained_in(package, tmp_path, monkeypatch):
    size = data.point_maze_data(VISUAL, 3)
    short = replace(size, steps=6)
    monkeypatch.setattr(data, "ogbench_data", lambda *args: short)
    monkeypatch.setattr(data, "BLOCK", 2)  # the end of training lies inside a block
    arrays = made(tmp_path / "d.npz", VISUAL, episodes=3)
    images, positions = arrays["observations"], arrays["qpos"]
    assert (images.shape, images.dtype) == ((18, 64, 64, 3), np.uint8)
    assert len(np.load(tmp_path / "d-val.npz")["observations"]) == 0
    # the same walk as without pictures
    monkeypatch.setattr(data, "ogbench_data", lambda *args: replace(short, pixels=False))
    states = made(tmp_path / "s.npz", MEDIUM, episodes=3)
    assert (states["qpos"] == positions).all()
    assert (states["actions"] == arrays["actions"]).all()
    # the same picture as where the agent acts
    with closing(official_env(EnvConfig(id=VISUAL)).build(1)) as adapter:
        adapter.reset(0)
        (env,) = adapter.vector_env.unwrapped.envs
        for image, position in zip(images[:4], positions[:4], strict=True):
            env.unwrapped.set_xy(position)
            seen = env.unwrapped.get_ob()
            assert np.abs(seen.astype(int) - image).max() <= 1
        assert (images[0] != images[-1]).any()


def test_mazes_in_pictures_have_the_state_of_those_without(package, tmp_path, monkeypatch):
    for maze, has_chance in (("medium", False), ("teleport", True)):
        name = f"visual-pointmaze-{maze}-navigate"
        short = replace(data.point_maze_data(name, 2), steps=40)
        monkeypatch.setattr(data, "ogbench_data", lambda *args, short=short: short)
        path = tmp_path / f"{maze}.npz"
        made(path, name, episodes=2)
        config = ogbench(EnvConfig(id=name), LoadDataset(path=str(path)))
        assert config.env.plain_rendering
        assert config.perception.state_dim == 2
        assert config.actor.subgoals.stochastic_edges == has_chance
        for stage in ("train_jepa", "train_goal_critic"):
            assert config.stages[stage].exclude_chance == has_chance


CUBE = "cube-single-play"
EFFECTOR, OPENING, BLOCK = slice(12, 15), 17, slice(19, 22)  # positions are in decimetres


def test_data_of_cubes_have_the_layout_that_the_package_reads(package, tmp_path, monkeypatch):
    import ogbench

    monkeypatch.setattr(ogbench_cubes, "STEPS", 21)
    arrays = made(tmp_path / "d.npz", CUBE, episodes=10)
    assert {name: (part.shape, part.dtype.type) for name, part in arrays.items()} == {
        "observations": ((210, 28), np.float32),
        "actions": ((210, 5), np.float32),
        "terminals": ((210,), np.bool_),
        "qpos": ((210, 21), np.float32),
        "qvel": ((210, 20), np.float32),
    }
    theirs, validation = ogbench.make_env_and_datasets(
        f"{CUBE}-v0", dataset_path=str(tmp_path / "d.npz"), dataset_only=True
    )
    assert len(theirs["observations"]) == 200
    assert len(validation["observations"]) == 20


@pytest.mark.parametrize("name", [CUBE, "cube-double-noisy"])
def test_an_episode_of_cubes_depends_on_its_seed_and_index_alone(package, name, monkeypatch):
    monkeypatch.setattr(ogbench_cubes, "STEPS", 130)  # beyond the first block's new place
    recorder = ogbench_data(name).recorder()
    recorder.episode(3, 0)
    after_another, other_seed = recorder.episode(3, 1), recorder.episode(4, 1)
    alone = ogbench_data(name).recorder().episode(3, 1)
    assert all((after_another[part] == alone[part]).all() for part in data.DTYPES)
    assert not (other_seed["actions"] == alone["actions"]).all()


@pytest.mark.parametrize("rule", ["play", "noisy"])
def test_the_arm_carries_the_block_from_place_to_place(package, rule, monkeypatch):
    monkeypatch.setattr(ogbench_cubes, "STEPS", 400)  # about a hundred for each place
    obs = ogbench_data(f"cube-single-{rule}").recorder().episode(0, 0)["observations"]
    is_lifted = obs[:, BLOCK][:, 2] > 0.6
    assert 0.1 < is_lifted.mean() < 0.6
    in_hand = np.linalg.norm(obs[:, EFFECTOR] - obs[:, BLOCK], axis=1)[is_lifted]
    assert np.median(in_hand) < 0.2
    lifts = (is_lifted[1:] & ~is_lifted[:-1]).nonzero()[0]
    places = obs[lifts][:, BLOCK][:, :2]
    assert len(places) >= 4
    assert np.ptp(places, axis=0).max() > 1


def test_noisy_data_are_those_of_the_oracle_with_noise_and_some_random_actions(
    package, monkeypatch
):
    monkeypatch.setattr(ogbench_cubes, "STEPS", 60)
    recorder = ogbench_data("cube-single-noisy").recorder()

    def actions(noise, random_actions):
        monkeypatch.setattr(ogbench_cubes, "NOISE", noise)
        monkeypatch.setattr(ogbench_cubes, "RANDOM_ACTIONS", random_actions)
        return recorder.episode(0, 0)["actions"]

    oracle, noisy, random = actions(0, 0), actions(0.1, 0), actions(0, 1)
    assert 0 < np.abs(noisy - oracle)[0].max() < 2
    assert (np.abs(noisy) <= 1).all()
    assert random.std() == pytest.approx(3**-0.5, abs=0.05)
    assert np.abs(np.diff(oracle, axis=0)).mean() < 0.5 * np.abs(np.diff(random, axis=0)).mean()


def test_the_official_tasks_begin_and_end_where_the_benchmark_says(package):
    env_config = official_env(DEFAULT_DATASET)
    for name, task in list(official_tasks().items())[1:]:
        adapter = env_config.for_task(task).build(2)
        obs, info = adapter.reset(7)
        official = adapter.unwrapped.envs[0].unwrapped.task_infos[int(name[-1]) - 1]
        start, goal = (torch.tensor(official[key]) for key in ("init_xy", "goal_xy"))
        assert (obs - start).abs().max() <= 1
        assert (adapter.goal(info) - goal).abs().max() <= 1
        assert adapter.max_episode_steps()[0] == 1000
        adapter.close()


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # by the package's action space
def test_a_goal_of_the_cubes_is_about_the_positions_of_the_blocks_alone(
    package, tmp_path, monkeypatch
):
    monkeypatch.setattr(ogbench_cubes, "STEPS", 121)
    name = "cube-double-play"
    made(tmp_path / "d.npz", name, episodes=1)
    config = ogbench(EnvConfig(id=name), LoadDataset(path=str(tmp_path / "d.npz")))
    with closing(config.env.for_task(config.tasks["task1"]).build(1)) as env:
        agent = build(config, env.spec)
        obs, info = env.reset(0)
    blocks = [19, 20, 21, 28, 29, 30]
    other = obs.clone()
    other[:, blocks] += 1
    moved = (agent.encode(other) - agent.encode(obs))[0].nonzero()[:, 0]
    assert moved.tolist() == list(range(6))
    goal = env.goal(info)
    same_places = goal + 1
    same_places[:, blocks] = goal[:, blocks]
    state, no_task = agent.encode(obs), obs.new_zeros(1, 0).float()
    acts = [agent.policy(state, agent.encode(g), no_task) for g in (goal, same_places, goal + 1)]
    assert torch.equal(acts[0], acts[1])
    assert not torch.equal(acts[0], acts[2])


def test_names_that_the_package_does_not_have_are_refused_in_one_line(package, capsys):
    line = error_line(capsys, "train", "ogbench", "--env.id", "pointmaze-tiny-navigate")
    assert "OGBench has no data set 'pointmaze-tiny-navigate'" in line
    assert "ami data make ogbench" in error_line(capsys, "train", "ogbench", "--env.id", MEDIUM)


def test_the_oracle_reaches_every_official_goal_and_the_straight_line_does_not(package):
    class Official:
        tasks = official_tasks()
        eval_env = official_env(DEFAULT_DATASET)

    makers = {"oracle": reference_policies()["oracle"]}
    found = evaluate_policies(makers, Official, 5)["oracle"]
    assert found["success"]["mean"] == 1
    assert found["steps"]["mean"] < 200


def test_the_suite_prints_ours_beside_the_published_results(package, tmp_path, monkeypatch, capsys):
    short = {f"stages.{name}.optim.steps": 3 for name in ("train_jepa", "goal_bc")}
    monkeypatch.setattr(suites, "QUICK_EPISODES", 2)
    monkeypatch.setattr(
        suites,
        "QUICK_CHANGES",
        {
            **short,
            "stages.train_goal_critic.optim.steps": 3,
            "stages.select_landmarks.num_candidates": 50,
            "actor.subgoals.num_landmarks": 10,
            "eval_env.max_episode_steps": 3,
        },
    )
    command = ("bench", "suites", "--only", "ogbench", "--quick", "--episodes", "1", "--out")
    argv = [*command, str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    assert main(argv) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "made again by OGBench's own rule, not its published files" in shown
    assert "arXiv 2410.20092" in shown
    for policy in ("plan", "react", "random", "straight line"):
        assert f"evaluate, {policy} " in shown
    found = json.loads((tmp_path / "found.json").read_text())["ogbench"][MEDIUM]
    assert found["published"]["success"]["QRL"] == 0.82
    assert set(found["baselines"]) == {"random", "straight line", "oracle"}
    assert found["seeds"]["0"]["plan"]["by_task"]["task5"]["success"]["mean"] == 0
    monkeypatch.setattr(suites, "train", None)  # a command that is repeated measures nothing again
    assert main(argv) == 0
    monkeypatch.setattr(suites, "QUICK_CHANGES", {"configurator.goal_distance": 3.0})
    line = error_line(capsys, *argv)
    assert "was measured with other settings" in line
    assert "choose another --out" in line
