"""Recorded episodes in files of others: each layout gives the same episodes, and what can't be read
is refused in one line without loading, executing or allocating anything."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.data.dataset import dataset_of
from ami_agent.data.reader import open_recording
from ami_agent.data.recording import WHOLE
from ami_agent.training import LoadDataset
from modules.types import ConfigError, Trajectory
from tests.conftest import error_line

LENGTHS = (4, 1, 6)
"""Steps of the episodes of every file."""


class Plane(gymnasium.Env):
    """Three numbers and two actions; only the spaces count."""

    observation_space = spaces.Box(-10, 10, (3,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space: str = "box") -> None:
        if space == "dict":
            self.observation_space = spaces.Dict(
                place=spaces.Box(-10, 10, (3,), np.float32), lit=spaces.Discrete(2)
            )
        if space == "picture":
            self.observation_space = spaces.Box(0, 255, (16, 12, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    gymnasium.register("ami-test/Plane-v0", entry_point=Plane, max_episode_steps=50)
    yield
    del gymnasium.registry["ami-test/Plane-v0"]


def h5py():
    return pytest.importorskip("h5py", reason="the extra `hdf5` is not installed")


class Recorded:
    """What every file holds: T + 1 rows of each episode, and what is used of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        rows = sum(LENGTHS) + len(LENGTHS)
        self.obs = rng.normal(size=(rows, 3)).astype(np.float32)
        self.actions = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
        self.rewards = rng.normal(size=rows)
        self.qpos = rng.normal(size=(rows, 5))
        self.ends = np.zeros(rows, bool)
        self.ends[np.cumsum(np.array(LENGTHS) + 1) - 1] = True
        self.actions[self.ends] = np.nan  # not used
        self.rewards[self.ends] = np.nan
        self.bounds = np.flatnonzero(np.append(True, self.ends))

    def rows(self, index: int) -> slice:
        """The rows of an episode."""
        return slice(self.bounds[index], self.bounds[index] + LENGTHS[index] + 1)

    def columns(self) -> dict[str, np.ndarray]:
        return {
            "observations": self.obs, "actions": self.actions, "rewards": self.rewards,
            "terminals": self.ends, "qpos": self.qpos,
        }  # fmt: skip


DATA = Recorded()


def write_ogbench(path: Path, **changes) -> Path:
    columns = {**DATA.columns(), **changes}
    np.savez_compressed(path, **{n: c for n, c in columns.items() if c is not None})
    return path


RENAMED = {"observations": "o", "actions": "a", "rewards": "r", "done": "end"}


def write_renamed(path: Path) -> Path:
    """Columns of which no name is known."""
    columns = zip(RENAMED.values(), DATA.columns().values(), strict=False)
    np.savez(path, **dict(columns))
    return path


def write_renamed_next(path: Path) -> Path:
    """The same with the observations after the steps, and time limits apart from other ends."""
    used, following = ~DATA.ends, np.append(False, ~DATA.ends[:-1])
    ends = np.append(DATA.ends[1:], True)[used]
    np.savez(path, o=DATA.obs[used], o2=DATA.obs[following], a=DATA.actions[used],
             r=DATA.rewards[used], over=np.zeros_like(ends), late=ends)  # fmt: skip
    return path


def write_plain(path: Path) -> Path:
    np.savez(path, **{**DATA.columns(), "terminals": DATA.ends.astype(np.float32)})
    return path


def write_compact(path: Path) -> Path:
    """What OGBench's loader makes of its files with `compact_dataset`."""
    ends = DATA.ends | np.append(DATA.ends[1:], True)
    return write_ogbench(path, terminals=ends, valids=1.0 - DATA.ends)


def write_regular(path: Path) -> Path:
    """What OGBench's loader makes of its files otherwise."""
    used, following = ~DATA.ends, np.append(False, ~DATA.ends[:-1])
    return write_ogbench(
        path, observations=DATA.obs[used], next_observations=DATA.obs[following],
        actions=DATA.actions[used], rewards=DATA.rewards[used],
        terminals=np.append(DATA.ends[1:], True)[used], qpos=None,
    )  # fmt: skip


def write_swm(path: Path) -> Path:
    """As stable-worldmodel: rewards came with the observation of their row."""
    lengths = np.array(LENGTHS) + 1
    with h5py().File(path, "w") as file:
        file["observation"], file["action"] = DATA.obs, DATA.actions
        file["reward"] = np.roll(DATA.rewards, 1)
        file["ep_len"] = lengths.astype(np.int32)
        file["ep_offset"] = np.cumsum(lengths) - lengths
        file["qpos"] = DATA.qpos
        file.create_dataset("note", data=["text"] * len(DATA.obs), dtype=h5py().string_dtype())
    return path


def write_robomimic(path: Path, with_next: bool = True) -> Path:
    """Two parts of an observation, which `--data.keys` joins."""
    with h5py().File(path, "w") as file:
        for index, steps in enumerate(LENGTHS):
            rows, group = DATA.rows(index), file.create_group(f"data/demo_{index}")
            obs, num_rows = DATA.obs[rows], steps + (not with_next)
            group["actions"] = DATA.actions[rows][:num_rows]
            group["rewards"] = DATA.rewards[rows][:num_rows]
            group["dones"] = np.zeros(num_rows, np.int64)
            group["obs/hand"], group["obs/thing"] = obs[:num_rows, :2], obs[:num_rows, 2:]
            if with_next:
                group["next_obs/hand"], group["next_obs/thing"] = obs[1:, :2], obs[1:, 2:]
    return path


def write_folder(path: Path) -> Path:
    path.mkdir()
    for index, steps in enumerate(LENGTHS):
        rows = {name: column[DATA.rows(index)] for name, column in DATA.columns().items()}
        del rows["terminals"]
        rows["rewards"], rows["actions"] = rows["rewards"][:steps], rows["actions"][:steps]
        np.savez(path / f"part-{index + 8}.npz", **rows)  # 10 follows 9
    return path


JOINED = {"observations": "hand+thing"}
LAYOUTS = {
    "OGBench": ("data.npz", write_ogbench, {}),
    "OGBench, uncompressed": ("data.npz", write_plain, {}),
    "OGBench, compact": ("data.npz", write_compact, {}),
    "OGBench, regular": ("data.npz", write_regular, {}),
    "renamed": ("renamed.npz", write_renamed, RENAMED),
    "renamed, with next": (
        "renamed.npz",
        write_renamed_next,
        {
            "observations": "o",
            "actions": "a",
            "rewards": "r",
            "terminated": "over",
            "timeouts": "late",
            "next_observations": "o2",
        },
    ),
    "stable-worldmodel": ("data.h5", write_swm, {}),
    "robomimic": ("data.hdf5", write_robomimic, JOINED),
    "robomimic without next": ("data.hdf5", lambda path: write_robomimic(path, False), JOINED),
    "folder": ("data", write_folder, {}),
}


def env():
    return closing(EnvConfig(id="ami-test/Plane-v0").build(1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_episodes(layout, tmp_path):
    name, write, keys = LAYOUTS[layout]
    recording = open_recording(str(write(tmp_path / name)), keys)
    assert recording.lengths.tolist() == list(LENGTHS)
    for first in (0, 2):
        episodes = list(recording.episodes(first, extra=True))
        assert len(episodes) == len(LENGTHS) - first
        for index, episode in enumerate(episodes, start=first):
            rows, steps = DATA.rows(index), LENGTHS[index]
            assert np.array_equal(episode.obs[WHOLE], DATA.obs[rows])
            assert np.array_equal(episode.actions, DATA.actions[rows][:steps])
            assert np.array_equal(episode.rewards, DATA.rewards[rows][:steps])
            assert not episode.terminated.any()
            if "qpos" in recording.extra:
                assert np.array_equal(episode.extra["qpos"], DATA.qpos[rows])
    with env() as plane:
        dataset = dataset_of(recording, plane)
        assert dataset.steps == sum(LENGTHS) + len(LENGTHS) - 1
        trajectories = list(dataset.episodes(0))
    for index, trajectory in enumerate(trajectories):
        assert trajectory.obs.shape == (1, LENGTHS[index] + 1, 3)
        expected = DATA.actions[DATA.rows(index)][:-1]
        assert np.allclose(trajectory.actions[0].numpy(), expected, atol=1e-6)


def test_episodes_are_those_that_the_loader_of_ogbench_gives(tmp_path):
    utils = pytest.importorskip("ogbench.utils", reason="ogbench is not installed")
    path = write_ogbench(tmp_path / "data.npz")
    loaded = utils.load_dataset(str(path))
    episodes = list(open_recording(str(path), {}).episodes())
    before = np.concatenate([e.obs[WHOLE][:-1] for e in episodes])
    after = np.concatenate([e.obs[WHOLE][1:] for e in episodes])
    assert np.array_equal(before, loaded["observations"])
    assert np.array_equal(after, loaded["next_observations"])
    actions = np.concatenate([e.actions for e in episodes])
    assert np.array_equal(actions, loaded["actions"])


def test_terminals_of_d4rl_terminate_and_timeouts_and_the_end_of_the_recording_do_not(tmp_path):
    terminals, timeouts = np.zeros_like(DATA.ends), np.zeros_like(DATA.ends)
    timeouts[DATA.rows(0).stop - 1] = terminals[DATA.rows(1).stop - 1] = True
    path = tmp_path / "data.h5"
    with h5py().File(path, "w") as file:
        for name, column in {
            "observations": DATA.obs[:, :3], "next_observations": DATA.obs[:, :3],
            "actions": DATA.actions, "rewards": DATA.rewards, "terminals": terminals,
            "timeouts": timeouts,
        }.items():  # fmt: skip
            file[name] = column
    episodes = list(open_recording(str(path), {}).episodes())
    assert [len(e.rewards) for e in episodes] == [steps + 1 for steps in LENGTHS]
    assert [e.terminated.any() for e in episodes] == [False, True, False]
    assert all(not e.terminated[:-1].any() for e in episodes)


def test_the_last_done_of_robomimic_terminates(tmp_path):
    path = write_robomimic(tmp_path / "data.hdf5")
    with h5py().File(path, "a") as file:
        file["data/demo_0/dones"][...] = 1
        file["data/demo_2/dones"][0] = 1
    ends = [e.terminated.tolist() for e in open_recording(str(path), JOINED).episodes()]
    assert ends == [[False] * 3 + [True], [False], [False] * 6]


def test_parts_of_a_dict_are_found_by_their_names(tmp_path):
    rows = len(DATA.obs)
    columns = {
        "observations/place": DATA.obs, "observations/lit": np.arange(rows) % 2,
        "actions": np.zeros((rows, 2), np.float32), "terminals": DATA.ends,
    }  # fmt: skip
    np.savez(tmp_path / "data.npz", **columns)
    config = EnvConfig(id="ami-test/Plane-v0", options={"space": "dict"})
    with closing(config.build(1)) as plane:
        trajectory = next(
            dataset_of(open_recording(str(tmp_path / "data.npz"), {}), plane).episodes(0)
        )
    assert isinstance(trajectory, Trajectory)
    assert np.array_equal(trajectory.obs["place"][0].numpy(), DATA.obs[:5])
    assert trajectory.obs["lit"][0].argmax(-1).tolist() == [0, 1, 0, 1, 0]


def test_actions_beyond_a_box_are_clipped_and_missing_rewards_are_zero(tmp_path):
    path = write_ogbench(tmp_path / "data.npz", actions=3 * np.ones((14, 2)), rewards=None)
    with env() as plane:
        trajectory = next(dataset_of(open_recording(str(path), {}), plane).episodes(0))
    assert (trajectory.actions == 1).all()
    assert (trajectory.interoception == 0).all()


def test_a_run_trains_on_a_path(tmp_path):
    path = write_ogbench(
        tmp_path / "data.npz", actions=np.nan_to_num(DATA.actions),
        rewards=np.nan_to_num(DATA.rewards),
    )  # fmt: skip
    config = ami.recipes.gym(EnvConfig(id="ami-test/Plane-v0"), LoadDataset(path=str(path)))
    assert config.collect.steps == sum(LENGTHS) + len(LENGTHS) - 1


def pickled(path: Path) -> None:
    """An array of objects, whose loading would create a file."""

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "executed"),)

    write_ogbench(path, qpos=np.array([Harm()] * 14, dtype=object))


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"observations": [1, 2]}))


def truncated(path: Path) -> None:
    data = write_plain(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path: Path) -> None:
    data = bytearray(write_plain(path).read_bytes())
    data[data.index(DATA.obs.tobytes()[:16])] ^= 1
    path.write_bytes(data)


def edited_header(path: Path, old: bytes, new: bytes) -> None:
    """Another header of `observations`, of the same length."""
    buffer = io.BytesIO()
    np.save(buffer, DATA.obs)
    assert old in buffer.getvalue()
    write_ogbench(path, observations=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", buffer.getvalue().replace(old, new))


def bomb(path: Path) -> None:
    edited_header(path, b"'shape': (14, 3), ", b"'shape': (9**9,3),")


BAD_NPZ = {
    "pickle inside": (pickled, r"qpos holds pickled Python objects, which are never loaded"),
    "pickle": (bare_pickle, r"is neither a \.npz nor an HDF5 file; data are"),
    "truncated": (truncated, r"is not a whole \.npz file"),
    "bit": (flipped, r"is not a whole \.npz file \(BadZipFile: Bad CRC-32"),
    "newer": (
        lambda path: edited_header(path, b"NUMPY\x01", b"NUMPY\x07"),
        r"observations is of version 7\.0 of the \.npy format",
    ),
    "shape": (
        lambda path: edited_header(path, b"(14, 3), }", b"(99, 3), }"),
        r"observations is float32 \(99, 3\), and its 168 bytes are another number",
    ),
    "expression": (bomb, r"is not a whole \.npz file \(ValueError: "),
    "by column": (
        lambda path: write_ogbench(path, observations=np.asfortranarray(DATA.obs)),
        r"observations is stored column by column: save numpy\.ascontiguousarray",
    ),
    "no ends": (
        lambda path: write_ogbench(path, terminals=None),
        r"holds no done, but observations, .*--data\.keys done NAME\); done says where its "
        "episodes end",
    ),
    "no last end": (
        lambda path: write_ogbench(path, terminals=np.zeros(14)), r"its last episode has no end",
    ),
    "ends NaN": (
        lambda path: write_ogbench(path, terminals=np.full(14, np.nan)),
        r"terminals holds others than 0 and 1",
    ),
    "one row": (
        lambda path: write_ogbench(path, terminals=np.ones(14)), r"episode 0 has no step",
    ),
    "rows": (
        lambda path: write_ogbench(path, actions=DATA.actions[:-1]),
        r"actions has 13 rows, and observations 14",
    ),
    "no actions": (
        lambda path: write_ogbench(path, actions=None),
        r"holds no actions, but observations, rewards, terminals, qpos: .*--data\.keys actions "
        "NAME",
    ),
    "nothing that is known": (
        lambda path: write_renamed(path),
        r"holds no observations, no actions and no done, but o, a, r, end: name the columns that "
        r"are \(--data\.keys observations NAME actions NAME done NAME\).*; roles are "
        r"observations, actions, rewards, terminated, done, timeouts, next_observations, and",
    ),
    "two observations": (
        lambda path: write_ogbench(path, pixels=np.zeros((14, 8, 8, 3), np.uint8)),
        r"holds observations and pixels: choose one of them \(--data\.keys observations",
    ),
    "text": (
        lambda path: write_ogbench(path, observations=np.array(["a"] * 14)),
        r"observations is <U1 \(\); it must hold numbers",
    ),
    "empty": (
        lambda path: write_ogbench(path, **{n: c[:0] for n, c in DATA.columns().items()}),
        r"is empty",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", BAD_NPZ)
def test_a_npz_file_that_can_not_be_read_is_refused_in_one_line(harm, tmp_path):
    make, message = BAD_NPZ[harm]
    make(path := tmp_path / "data.npz")
    with pytest.raises(ConfigError, match=message) as refused:
        list(open_recording(str(path), {}).episodes())
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def changed(**changes):
    return lambda path: write_ogbench(path, **changes)


WRONG_NUMBERS = {
    "shape": (changed(observations=DATA.obs[:, :2]),
              r"observations of .* are float32 \(2,\), but the environment's are Box\(.*\(3,\)"),
    "dtype": (changed(actions=np.zeros((14, 2), complex)), r"actions is complex128 .*numbers"),
    "obs nan": (changed(observations=np.full((14, 3), np.nan)), r"episode 0 of .*holds NaN"),
    "action nan": (changed(actions=np.full((14, 2), np.nan)), r"episode 0 of .*actions holds NaN"),
    "one nan": (
        changed(obs=np.where(np.arange(42).reshape(14, 3) == 25, np.inf, 0.0), observations=None),
        r"episode 2 of .* \(rows 7 to 13\): observations \(obs\) holds NaN or infinity at step 1, "
        "number 1",
    ),
    "reward nan": (changed(rewards=np.full(14, np.nan)), r"episode 0 of .*rewards holds NaN"),
    "actions": (changed(actions=np.zeros(14)), r"actions of .* are float64 \(\), but"),
}  # fmt: skip


@pytest.mark.parametrize("harm", WRONG_NUMBERS)
def test_other_numbers_than_the_environments_are_refused_in_one_line(harm, tmp_path):
    make, message = WRONG_NUMBERS[harm]
    make(path := tmp_path / "data.npz")
    with env() as plane, pytest.raises(ConfigError, match=message) as refused:
        list(dataset_of(open_recording(str(path), {}), plane).episodes(0))
    assert str(path) in str(refused.value)


def test_numbers_are_no_picture(tmp_path):
    path = write_ogbench(tmp_path / "data.npz", observations=np.zeros((14, 16, 12, 3), np.float32))
    config = EnvConfig(id="ami-test/Plane-v0", options={"space": "picture"})
    with (
        closing(config.build(1)) as plane,
        pytest.raises(ConfigError, match=r"are float32 \(16, 12, 3\), but the environment's are"),
    ):
        dataset_of(open_recording(str(path), {}), plane)


def set_array(name, values):
    def harm(file):
        del file[name]
        file[name] = values

    return harm


def nested(file):
    """Forty groups, each with two names in the one above: 2**40 ways lead to the last."""
    group = file.create_group("group")
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


BAD_HDF5 = {
    "names": (nested, r"/group/a has several names; a group has one"),
    "link": (lambda f: f.__setitem__("more", h5py().ExternalLink("/etc/passwd", "/")), "is a link"),
    "claim": (
        lambda f: f.create_dataset("more", (2**40,), "u1", chunks=True), r"more claims .* bytes"
    ),
    "lengths": (set_array("ep_len", [5, 2, 6]), r"ep_len and ep_offset are not those of 14 rows"),
    "negative": (set_array("ep_len", [5, -2, 11]), r"ep_len and ep_offset are not those"),
    "huge": (set_array("ep_len", [2**62, 2**62, 2**62]), r"ep_len and ep_offset are not those"),
    "offsets": (lambda f: f.__delitem__("ep_offset"), r"holds ep_len without ep_offset"),
    "no ends": (
        lambda f: [f.__delitem__(n) for n in ("ep_len", "ep_offset")], r"where its episodes end"
    ),
    "no actions": (lambda f: f.__delitem__("action"), r"holds no actions"),
}  # fmt: skip


@pytest.mark.parametrize("harm", BAD_HDF5)
def test_a_hdf5_file_that_can_not_be_read_is_refused_in_one_line(harm, tmp_path):
    change, message = BAD_HDF5[harm]
    path = write_swm(tmp_path / "data.h5")
    with h5py().File(path, "a") as file:
        change(file)
    with pytest.raises(ConfigError, match=message) as refused:
        list(open_recording(str(path), {}).episodes())
    assert str(path) in str(refused.value)


def test_demos_must_hold_the_same_columns(tmp_path):
    path = write_robomimic(tmp_path / "data.hdf5")
    with h5py().File(path, "a") as file:
        del file["data/demo_1/next_obs/hand"]
    with pytest.raises(ConfigError, match=r"data/demo_1/next_obs/hand is missing"):
        open_recording(str(path), JOINED)
    with pytest.raises(ConfigError, match=r"holds no 'hnd', but hand, thing"):
        open_recording(str(path), {"observations": "hnd"})
    with pytest.raises(ConfigError, match=r"--data\.keys names 'obs'; there are observations,"):
        open_recording(str(path), {"obs": "hand"})


def test_several_observations_are_not_taken_for_one(tmp_path):
    path = write_robomimic(tmp_path / "data.hdf5")
    with env() as plane, pytest.raises(ConfigError, match=r"hand, thing, but .*A\+B joins two"):
        dataset_of(open_recording(str(path), {}), plane)


def test_an_unknown_layout_of_hdf5_is_refused(tmp_path):
    with h5py().File(tmp_path / "data.h5", "w") as file:
        file["episodes/first/actions"] = np.zeros(3)
    with pytest.raises(ConfigError, match="unknown layout: it holds episodes"):
        open_recording(str(tmp_path / "data.h5"), {})


def test_files_of_a_folder_must_be_alike(tmp_path):
    folder = write_folder(tmp_path / "data")
    shutil.copy(write_ogbench(tmp_path / "other.npz", qpos=None), folder / "part-11.npz")
    with pytest.raises(ConfigError, match=r"part-11\.npz: qpos is missing, and in part-8\.npz"):
        open_recording(str(folder), {})
    np.savez(folder / "part-11.npz", observations=DATA.obs, actions=DATA.actions[:5],
             rewards=DATA.rewards[:5], qpos=DATA.qpos)  # fmt: skip
    with pytest.raises(ConfigError, match=r"part-11\.npz has 14 observations and 5 actions"):
        open_recording(str(folder), {})


def test_a_missing_h5py_is_reported_with_the_line_that_installs_it(tmp_path, monkeypatch):
    path = write_swm(tmp_path / "data.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=r"h5py is not installed: pip install 'ami-agent\[hdf5\]'"
    ):
        open_recording(str(path), {})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none.npz", "none.npz is missing; data are a .npz file as OGBench's"),
        ("folder", "holds neither .npz files nor a run"),
        ("pipe", "is a pipe, a socket or a device"),
        ("text.csv", r"is neither a \.npz nor an HDF5 file"),
    ],
)
def test_a_place_without_data_is_refused_in_one_line(place, message, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.csv").write_text("1,2,3")
    flags = ("--env.id", "ami-test/Plane-v0", "--data", tmp_path / place)
    assert message.replace("\\", "") in error_line(capsys, "train", "gym", *flags)
    assert message.replace("\\", "") in error_line(capsys, "data", "inspect", tmp_path / place)


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path):
    for name, write, _ in LAYOUTS.values():
        if "." in name and not (tmp_path / name).exists():
            write(tmp_path / name)
    refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        source = rng.choice(sorted(tmp_path.glob("data.*")))
        data = bytearray(source.read_bytes())
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / f"mutated{source.suffix}"
        path.write_bytes(data)
        message = error_of(path)
        refused += bool(message)
        assert not message or (str(path) in message and "\n" not in message)
        assert len(message) < 2000
    assert refused > 75


def error_of(path: Path) -> str:
    """Why the file is refused; empty where it is read."""
    try:
        list(open_recording(str(path), {}).episodes(extra=True))
    except ConfigError as error:
        return str(error)
    return ""
