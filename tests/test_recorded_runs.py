"""Runs on recorded data: recorded steps are not saved again, a run that is resumed reads them
again, and a replay buffer in a file trains as one in memory."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ami_agent as ami
from ami_agent import memory_estimate
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config, override
from ami_agent.storage import checkpoint, memory_map, run_dir
from ami_agent.storage.memory_map import MappedStorage
from ami_agent.train import Trainer
from ami_agent.training import LoadDataset, OnlineActorCritic
from ami_agent.training.base import encode_buffer
from ami_agent.training.optim import OptimConfig
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError
from tests.conftest import error_line

EPISODES, STEPS = 5, 20


class Line(gymnasium.Env):
    """A position on a line; being near 0 is rewarded."""

    observation_space = spaces.Box(-3, 3, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.9, 0.9, 1).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.place = np.clip(self.place + 0.1 * action, -3, 3).astype(np.float32)
        return self.place, 1 - abs(float(self.place[0])), False, False, {}


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register("ami-test/Line-v1", entry_point=Line, max_episode_steps=STEPS)
    yield
    del gymnasium.registry["ami-test/Line-v1"]


@pytest.fixture
def path(tmp_path):
    """Episodes of random actions."""
    env, rows = Line(), []
    rng = np.random.default_rng(0)
    for seed in range(EPISODES):
        obs, _ = env.reset(seed=seed)
        for _ in range(STEPS):
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            next_obs, reward, *_ = env.step(action)
            rows.append((obs, action, reward, False))
            obs = next_obs
        rows.append((obs, np.zeros(1, np.float32), 0.0, True))
    names = ("observations", "actions", "rewards", "terminals")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    np.savez(tmp_path / "line.npz", **columns)
    return tmp_path / "line.npz"


def config_of(path, online: int = 0, **data) -> Config:
    """Tiny; with so many steps online after the data."""
    stage = LoadDataset(path=str(path), **data)
    config = ami.recipes.gym(EnvConfig(id="ami-test/Line-v1"), stage)
    optim = OptimConfig(steps=0, batch_size=8)
    objective = replace(config.stages["train_jepa"], optim=optim)
    changes = {
        "stages.train_jepa.optim": replace(optim, steps=6),
        "stages.actor_critic.updates": 6,
        "stages.actor_critic.optim": optim,
        "stages.actor_critic.train_jepa": objective,
    }
    if online:
        changes = {
            "stages.train_jepa.optim": replace(optim, steps=6),
            "stages.actor_critic": OnlineActorCritic(
                steps=online, optim=optim, train_jepa=objective, updates_per_step=0.2
            ),
        }
    return override(config, changes)


class Stopped(Exception):
    """Ends a run at a certain moment."""


def stopped_at(monkeypatch, stage: str, step: int) -> None:
    """From now on training ends at that step of a stage, just after a checkpoint."""
    do = Trainer._update

    def update(self, name, stage_run):
        if (name, stage_run.step) == (stage, step):
            self._save_stage(stage_run)
            raise Stopped
        do(self, name, stage_run)

    monkeypatch.setattr(Trainer, "_update", update)


def weights_of(run):
    return checkpoint.load(checkpoint.latest(run), prefix=run_dir.PREFIX)[0]


@pytest.mark.parametrize(
    ("stage", "step", "online"),
    [("collect", 3, 0), ("train_jepa", 2, 0), ("actor_critic", 3, 0), ("actor_critic", 9, 24)],
)
def test_killed_and_resumed_it_ends_as_if_never_killed(
    stage, step, online, path, tmp_path, monkeypatch
):
    config = config_of(path, online)
    ami.train(config, out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        stopped_at(patched, stage, step)
        with pytest.raises(Stopped):
            ami.train(config, out=tmp_path / "cut")
    chunks = sum(1 for _ in (tmp_path / "cut" / "replay").glob("*-*"))
    assert (chunks > 0) == (online > 0)  # recorded steps are not saved again
    ami.train(config, out=tmp_path / "cut", resume=True)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_a_run_is_not_resumed_with_other_data(path, tmp_path, monkeypatch):
    config = config_of(path)
    with monkeypatch.context() as patched:
        stopped_at(patched, "train_jepa", 2)
        with pytest.raises(Stopped):
            ami.train(config, out=tmp_path / "run")
    columns = dict(np.load(path))
    columns["rewards"][7] += 1e-3
    np.savez(path, **columns)
    with pytest.raises(ConfigError, match="not those with which the run began"):
        ami.train(config, out=tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(ConfigError, match=r"line\.npz is missing"):
        ami.train(config, out=tmp_path / "run", resume=True)


def test_a_replay_buffer_in_a_file_trains_the_same(path, tmp_path):
    for choice in ("yes", "no"):
        agent = ami.train(config_of(path, in_memory=choice), out=tmp_path / choice)
        assert (agent.replay_buffer._storage is None) == (choice == "yes")
    memory, file = weights_of(tmp_path / "yes"), weights_of(tmp_path / "no")
    assert all(memory[name].equal(file[name]) for name in memory)
    encoded = encode_buffer(agent)
    assert encoded.sample(4, 2, torch.Generator().manual_seed(0)).states.isfinite().all()
    files = {entry.name for entry in (tmp_path / "no").iterdir()}
    assert not [name for name in files if name.startswith(("tmp", "memory", "replay"))]
    with pytest.raises(ConfigError, match=r"--keep-replay-buffer would write recorded data again"):
        ami.train(config_of(path, in_memory="no"), out=tmp_path / "x", keep_replay_buffer=True)


def test_a_run_keeps_recorded_steps_in_memory_where_that_is_requested(path, tmp_path):
    ami.train(config_of(path), out=tmp_path / "run", keep_replay_buffer=True)
    heir = config_of(tmp_path / "run")
    assert heir.collect.steps == EPISODES * STEPS + EPISODES - 1


def test_data_that_take_half_of_the_memory_lie_in_a_file(path, monkeypatch):
    config = config_of(path)
    with closing(config.env.build(1)) as env:
        spec = env.spec
    assert not memory_estimate.is_in_file(config, spec)
    size = memory_estimate.buffer_size(config, spec)
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: 2 * size - 1)
    assert memory_estimate.is_in_file(config, spec)
    assert memory_estimate.describe_buffer(config, spec).endswith(", in a file")
    assert not memory_estimate.is_in_file(config_of(path, in_memory="yes"), spec)


def test_a_full_disk_is_reported_before_anything_is_trained(path, tmp_path, monkeypatch, capsys):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = error_line(
        capsys, "train", "gym", "--env.id", "ami-test/Line-v1", "--data", path,
        "--collect.in-memory", "no", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "a replay buffer in a file needs" in message
    assert "choose another --out" in message


@pytest.mark.parametrize("advice", [True, False])
def test_a_mapped_buffer_holds_the_windows_of_one_in_memory(advice, tmp_path, monkeypatch):
    if not advice:  # another kernel, or one that does not allow it
        monkeypatch.setattr(memory_map, "PROCESS_MADVISE", 10**6)
    from tests.test_replay_buffer import random_steps

    steps = [step for step, _ in zip(random_steps(3, num_envs=2), range(90), strict=False)]
    storage = MappedStorage(tmp_path / "files")
    buffers = [ReplayBuffer(60, steps[0]), ReplayBuffer(60, steps[0], storage=storage)]
    for step in steps:
        for buffer in buffers:
            buffer.add(step)
    first, second = (b.sample(64, 3, torch.Generator().manual_seed(1)) for b in buffers)
    for one, other in zip(first, second, strict=True):
        assert one is other is None or one.equal(other)
    assert buffers[0].values("interoception").equal(buffers[1].values("interoception"))
    assert list((tmp_path / "files").iterdir()) == []  # without a name


def test_advice_is_taken_by_this_kernel(tmp_path):
    """Else `prefetch` would do nothing, unnoticed."""
    storage = MappedStorage(tmp_path)
    if storage._advise is None:
        pytest.skip("no process_madvise here")
    part = storage.zeros((5000, 1, 64), torch.float32)
    storage.prefetch(part, torch.arange(0, 5000, 2)[None])
    assert storage._advise is not None


def test_reference_observations_are_drawn_from_recorded_ones(path, tmp_path, monkeypatch):
    config = override(
        config_of(path), {"memory.num_reference_obs": 16, "stages.actor_critic": None}
    )
    with monkeypatch.context() as patched:
        stopped_at(patched, "train_jepa", 2)
        with pytest.raises(Stopped):
            ami.train(config, out=tmp_path / "run")
    agent = ami.train(config, out=tmp_path / "run", resume=True)
    recorded = np.load(path)["observations"]
    kept = agent.reference_obs.observations()
    assert np.isin(kept.numpy(), recorded).all()
    assert len(kept.unique()) > 8
