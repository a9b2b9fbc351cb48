"""`ami data`: what it prints of recorded episodes, and that every conversion keeps them."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from rich.console import Console

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.cli.main import main
from ami_agent.config import override
from ami_agent.data import convert as conversion
from ami_agent.data.convert import convert
from ami_agent.data.plot import has_one_scale
from ami_agent.data.reader import open_recording
from ami_agent.data.recording import Recording
from ami_agent.logger import ConsoleLogger, Logger
from ami_agent.training import CollectBehaviour
from ami_agent.training.optim import OptimConfig
from tests.conftest import error_line
from tests.test_data_files import DATA, LENGTHS, h5py, write_ogbench


@pytest.fixture
def source(tmp_path):
    """A file as OGBench's, with its validation set beside it."""
    path = write_ogbench(tmp_path / "walks.npz")
    write_ogbench(tmp_path / "walks-val.npz")
    return path


def same_episodes(one: Recording, other: Recording) -> None:
    pairs = zip(one.episodes(extra=True), other.episodes(extra=True), strict=True)
    for a, b in pairs:
        for parts in ((a.obs, b.obs), (a.extra, b.extra)):
            assert parts[0].keys() == parts[1].keys()
            assert all(np.array_equal(parts[0][name], parts[1][name]) for name in parts[0])
        for first, second in zip(a[1:4], b[1:4], strict=True):
            assert first.dtype == second.dtype
            assert np.array_equal(first, second)


def test_inspect_prints_and_writes_what_there_is(source, tmp_path, capsys):
    picture, figures = tmp_path / "walks.png", tmp_path / "walks.json"
    assert (
        main(["data", "inspect", str(source), "--out", str(picture), "--json", str(figures)]) == 0
    )
    text = capsys.readouterr().out
    for expected in (
        "rows as OGBench's", "1 / 4 / 6", "walks-val.npz", "qpos", r"\(5,\)", "float32",
    ):  # fmt: skip
        assert re.search(expected, text), expected
    found = json.loads(figures.read_text())
    assert (found["episodes"], found["steps"], found["terminated"]) == (3, sum(LENGTHS), 0)
    obs = found["columns"]["observations"]
    assert obs["min"] == pytest.approx(DATA.obs.min())
    assert obs["max"] == pytest.approx(DATA.obs.max())
    assert (
        found["columns"]["actions"]["not_finite"] == 0
    )  # the last rows, which are NaN, are unused
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_the_dtypes_of_the_file(tmp_path, capsys):
    rewards, ends = DATA.rewards.astype(np.float32), np.zeros(14, np.int64)
    path = write_ogbench(tmp_path / "a.npz", rewards=rewards, terminated=ends)
    out = tmp_path / "a.json"
    assert main(["data", "inspect", str(path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["columns"]
    assert (found["rewards"]["dtype"], found["terminated"]["dtype"]) == ("float32", "int64")


def test_numbers_of_unlike_ranges_are_not_drawn_to_one_scale():
    place = np.linspace(-1, 1, 9)
    assert has_one_scale([np.stack([place, 0.5 * place], 1), np.full((1, 2), np.nan)])
    assert not has_one_scale([np.stack([place, 0.07 * place], 1)])  # a position and a velocity


def test_inspect_counts_numbers_that_are_not_finite_and_draws_pictures(tmp_path, capsys):
    pixels = np.zeros((14, 12, 16, 3), np.uint8)
    actions = DATA.actions.copy()
    actions[1] = np.inf
    path = write_ogbench(tmp_path / "film.npz", observations=pixels, actions=actions)
    assert main(["data", "inspect", str(path), "--out", str(tmp_path / "film.png")]) == 0
    assert "actions holds 2 numbers that are NaN or infinite" in capsys.readouterr().out
    assert (tmp_path / "film.png").stat().st_size > 1000


@pytest.mark.parametrize("flag", ["--keys", "--data.keys"])
def test_the_keys_have_one_name_in_every_command(flag, tmp_path, capsys):
    columns = dict(zip("oare", DATA.columns().values(), strict=False))
    columns["a"] = np.nan_to_num(columns["a"])
    np.savez(tmp_path / "a.npz", **columns)
    keys = (flag, "observations", "o", "actions", "a", "done", "e")
    assert main(["data", "inspect", str(tmp_path / "a.npz"), *keys]) == 0
    assert main(["data", "convert", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), *keys]) == 0
    assert open_recording(str(tmp_path / "b.npz"), {}).lengths.tolist() == list(LENGTHS)
    data = ("--env.id", "CartPole-v1", "--data", tmp_path / "a.npz")
    message = error_line(capsys, "train", "gym", *data, *keys)  # it has read them
    assert "observations of" in message
    assert "but the environment's are" in message


def test_every_conversion_keeps_the_episodes(source, tmp_path):
    h5py()
    names = ["walks.npz", "rows.h5", "folder", "again.npz", "twice.hdf5"]
    for before, after in pairwise(names):
        assert main(["data", "convert", str(tmp_path / before), str(tmp_path / after)]) == 0
        same_episodes(*(open_recording(str(tmp_path / name), {}) for name in (before, after)))
    assert not list(tmp_path.glob(".*"))
    assert main(["data", "convert", str(source), str(tmp_path / "copy.npz")]) == 0
    same_episodes(*(open_recording(str(tmp_path / f"{n}-val.npz"), {}) for n in ("walks", "copy")))


def test_parts_of_an_observation_are_kept_by_a_conversion(tmp_path):
    columns = {**DATA.columns(), "observations/a": DATA.obs, "observations/b": DATA.qpos[:, 0]}
    del columns["observations"]
    np.savez(tmp_path / "a.npz", **columns)
    for target in ("b.npz", "folder"):
        convert(open_recording(str(tmp_path / "a.npz"), {}), tmp_path / target, Logger())
        same_episodes(*(open_recording(str(tmp_path / n), {}) for n in ("a.npz", target)))


def test_a_conversion_that_was_interrupted_continues(source, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "SAVE_EVERY", 1)
    recording, out = open_recording(str(source), {}), tmp_path / "out"
    episodes = type(recording).episodes
    read: list[int] = []

    def some(self, first=0, extra=False):
        for index, episode in enumerate(episodes(self, first, extra), start=first):
            if read == [0, 1]:
                read.append(-1)
                raise KeyboardInterrupt
            read.append(index)
            yield episode

    monkeypatch.setattr(type(recording), "episodes", some)
    with pytest.raises(KeyboardInterrupt):
        convert(recording, out, Logger())
    assert not out.exists()
    convert(recording, out, Logger())
    assert read == [0, 1, -1, 2]  # none twice
    monkeypatch.undo()
    same_episodes(recording, open_recording(str(out), {}))


def test_what_another_conversion_has_left_is_not_continued(source, tmp_path, monkeypatch):
    draft = tmp_path / ".out.parts"
    draft.mkdir()
    (draft / "progress.json").write_text('{"done": 2, "source": "elsewhere"}')
    (draft / "000.raw").write_bytes(b"junk")
    recording = open_recording(str(source), {})
    convert(recording, tmp_path / "out", ConsoleLogger(Console(quiet=True)))
    same_episodes(recording, open_recording(str(tmp_path / "out"), {}))


def test_a_run_becomes_a_file_from_which_another_run_learns(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="CartPole-v1"))
    optim = OptimConfig(steps=1, batch_size=8)
    config = override(config, {
        "stages.collect": CollectBehaviour(num_envs=2, steps=40), "stages.train_jepa.optim": optim,
        "stages.actor_critic": None,
    })  # fmt: skip
    agent = ami.train(config, out=tmp_path / "run", keep_replay_buffer=True)
    run = open_recording(str(tmp_path / "run"), {})
    assert run.num_steps == len(agent.replay_buffer)
    convert(run, tmp_path / "pole.npz", Logger())
    recording = open_recording(str(tmp_path / "pole.npz"), {})
    same_episodes(run, recording)
    space = gymnasium.make("CartPole-v1").action_space
    assert all(space.contains(action) for e in recording.episodes() for action in e.actions)
    assert any(e.terminated[-1] for e in recording.episodes())


def test_a_minari_dataset_is_inspected_and_converted(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the extra `minari` is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    box = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    obs = [DATA.obs[DATA.rows(index)] for index in range(len(LENGTHS))]
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=index, observations=obs[index], actions=obs[index][1:], rewards=np.ones(steps),
            terminations=np.ones(steps, bool), truncations=np.zeros(steps, bool),
        )
        for index, steps in enumerate(LENGTHS)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it requires an author
        minari.create_dataset_from_buffers(
            "test/walks-v0", buffers, observation_space=box, action_space=box
        )
    recording = open_recording("test/walks-v0", {})
    assert recording.lengths.tolist() == list(LENGTHS)
    convert(recording, tmp_path / "walks.h5", Logger())
    same_episodes(recording, open_recording(str(tmp_path / "walks.h5"), {}))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data"], "needs a COMMAND first"),
        (["data", "fly"], "there are ami data inspect PATH, ami data convert A B"),
        (["data", "inspect"], "needs PATH first: ami data inspect PATH"),
        (["data", "convert", "walks.npz"], "needs A and B first: ami data convert A B"),
        (["data", "convert", "walks.npz", "x.csv"], "x.csv ends in .csv; it must end in .npz"),
        (["data", "convert", "walks.npz", "walks.npz"], "walks.npz exists: remove it"),
        (["data", "inspect", "walks.npz", "--keys", "actions", "x"], "holds no 'x', but"),
        (["data", "make", "atari", "pong"], "'atari' can't be made; those of ogbench can"),
    ],
)
def test_unusable_input_is_one_line(argv, message, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capsys, *argv)


@pytest.mark.parametrize("command", ["inspect", "convert", "make"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit):
        main(["data", command, "--help"])
    assert f"usage: ami data {command}" in capsys.readouterr().out


def test_data_of_ogbench_are_made_and_read(tmp_path):
    pytest.importorskip("ogbench", reason="ogbench is not installed")
    out = tmp_path / "maze.npz"
    names = ["ogbench", "pointmaze-medium-stitch"]
    assert main(["data", "make", *names, "--out", str(out), "--episodes", "10"]) == 0
    recording = open_recording(str(out), {})
    assert recording.lengths.tolist() == [200] * 10
    assert set(recording.extra) == {"qpos", "qvel"}
    assert open_recording(str(tmp_path / "maze-val.npz"), {}).lengths.tolist() == [200]
