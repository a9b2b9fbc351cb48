"""The number of processor threads is chosen, written into the manifest, kept on resume and shared
between processes; a program that chose its own keeps it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

import ami_agent.cli.main as cli
from ami_agent.ablation import executors
from ami_agent.ablation.executors import Job, ProcessPool, Ray
from ami_agent.adapters.env import EnvConfig
from ami_agent.cli import command_flags
from ami_agent.config import override
from ami_agent.logger import Logger
from ami_agent.storage import run_dir
from ami_agent.train import train
from modules.types import ConfigError
from tests.conftest import error_line
from tests.test_train import Killed, KilledAt, same_weights

ROOT = Path(__file__).parent.parent
OPENMP = ("OMP_", "MKL_", "GOMP_", "KMP_")


@pytest.fixture(autouse=True)
def _one_thread_afterwards():
    yield
    torch.set_num_threads(1)


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(command_flags, "num_cores", lambda: 2)


# --- on import


@pytest.mark.parametrize(
    ("chosen", "before", "count", "policy"),
    [
        ({}, "", 1, "PASSIVE"),
        ({"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "", 2, "ACTIVE"),
        ({}, "import torch; torch.set_num_threads(3)", 3, None),
    ],
    ids=["nothing chosen", "environment variables", "a program with PyTorch"],
)
def test_the_import_chooses_one_thread_where_nothing_was_chosen(chosen, before, count, policy):
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(OPENMP)}
    program = f"{before}\nimport ami_agent, os, torch\n" + (
        "print(torch.get_num_threads(), os.environ.get('OMP_WAIT_POLICY'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**inherited, **chosen, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "TRUE"},
    )  # fmt: skip
    assert done.stdout.split() == [str(count), chosen.get("OMP_WAIT_POLICY", "None")]
    assert policy is None or f"OMP_WAIT_POLICY = '{policy}'" in done.stderr  # as OpenMP has read it


# --- the flag


@pytest.mark.parametrize("count", ["0", "-1", "1e9", "9" * 30, "3", "x", ""])
def test_a_number_that_can_not_be_is_refused(count, two_cores, capsys):
    assert "--threads" in error_line(capsys, "train", "two-rooms", "--threads", count)


@pytest.mark.parametrize(
    "command", ["train two-rooms", "eval nowhere", "show nowhere", "probe nowhere",
                "ablate two-rooms", "bench env-speed", "bench planning-speed", "bench baselines"],
)  # fmt: skip
def test_every_command_that_computes_has_the_flag(command, two_cores, capsys):
    said = error_line(capsys, *command.split(), "--threads", "3")
    assert "--threads is 3; it must be a whole number from 1 to 2, the cores that" in said


def test_the_threads_of_the_flag_are_those_of_the_run(tiny, two_cores, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(cli, "recipe", lambda name: tiny)
    monkeypatch.setattr(
        cli, "train", lambda *_, **__: found.append(torch.get_num_threads()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "two-rooms", "--out", str(tmp_path / "run"), "--threads", "2"])
    assert found == [2]


# --- a run


def test_a_run_that_is_resumed_keeps_its_threads(tiny, tmp_path):
    tiny = override(tiny, {"stages.train_goal_critic": None, "stages.distill_policy": None})
    torch.set_num_threads(2)
    whole = train(tiny, out=tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny, out=tmp_path / "cut", logger=KilledAt("train_jepa"), save_every=0)
    torch.set_num_threads(1)
    logger = Recorder()
    assert same_weights(whole, train(tiny, out=tmp_path / "cut", resume=True, logger=logger))
    assert logger.threads == {2}
    assert "threads: 2, with which the run began, rather than 1" in logger.messages
    assert torch.get_num_threads() == 1
    for name in ("whole", "cut"):
        assert json.loads((tmp_path / name / "manifest.json").read_text())["threads"] == 2


class Recorder(Logger):
    """Keeps what is said, and with how many threads the stages run."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.threads: set[int] = set()

    def info(self, message: str) -> None:
        self.messages.append(message)

    def log_scalars(self, *_) -> None:
        self.threads.add(torch.get_num_threads())


@pytest.mark.parametrize("threads", [0, -1, 2000, 1.5, "2", None, True, [2]])
def test_a_manifest_with_an_impossible_number_is_refused(threads, tmp_path):
    manifest = {"seed": 0, "seconds": {}, "threads": threads}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(ConfigError, match="threads must be a number from 1 to 1024"),
        run_dir.threads_of(tmp_path),
    ):
        pass


# --- processes beside each other

JOB = Job("base", None, Path("out"), 0, 1, "cpu")  # type: ignore[arg-type]


class Inline:
    """An executor of the standard library that only notes what it is given."""

    threads: list[int]

    def __init__(self, *_) -> None:
        type(self).threads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, work, job, threads) -> Future:
        self.threads.append(threads)
        future: Future = Future()
        future.set_result(None)
        return future


@pytest.mark.parametrize(
    ("own", "cores", "workers", "each"),
    [(1, 8, 2, 1), (8, 8, 2, 4), (3, 8, 2, 3), (8, 8, 3, 2), (8, 2, 5, 1)],
)
def test_the_processes_of_a_study_share_the_cores(own, cores, workers, each, monkeypatch):
    monkeypatch.setattr(executors, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(executors, "num_cores", lambda: cores)
    torch.set_num_threads(own)
    list(ProcessPool(workers).run([JOB, JOB]))
    assert Inline.threads == [each, each]


def test_a_process_of_a_study_takes_the_threads_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "run_job", lambda *_: torch.get_num_threads())
    assert executors.run_job_logged(JOB._replace(out=tmp_path), 2) == 2


def test_a_ray_task_asks_for_a_core_for_each_thread(tmp_path, monkeypatch):
    requested = []

    def remote(**resources):
        requested.append(resources["num_cpus"])
        return lambda work: SimpleNamespace(
            remote=lambda job, threads: requested.append(threads) or 0
        )

    ray = SimpleNamespace(
        remote=remote, init=lambda **_: None, shutdown=lambda: None, get=lambda ref: None,
        wait=lambda pending, timeout: (pending[:1], pending[1:]),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2}}],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    torch.set_num_threads(2)
    list(Ray("local").run([JOB]))
    assert requested == [2, 2]


def test_no_more_workers_run_at_a_time_than_there_are_cores_for(monkeypatch):
    def said(workers: int, threads: int) -> tuple[int, str]:
        torch.set_num_threads(threads)
        console = Console(file=io.StringIO(), width=200)
        return cli._num_workers(workers, console), console.file.getvalue()

    monkeypatch.setattr(cli, "num_cores", lambda: 4)
    assert said(4, 1) == (4, "")
    assert said(2, 2) == (2, "")
    count, message = said(8, 2)
    assert count == 2
    assert message == (
        "2 of 8 workers at a time: this process may use 4 processor cores, and each run takes 2\n"
    )
    assert said(2, 8)[0] == 1


class ShowsThreads(gymnasium.Env):
    """The observation is the number of threads of the process in which it is."""

    observation_space = spaces.Box(0, 1000, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.array([torch.get_num_threads()], np.float32), {}

    def step(self, action):
        return np.array([torch.get_num_threads()], np.float32), 0.0, False, False, {}


def test_the_process_of_an_environment_takes_one_thread():
    gymnasium.register("test/ShowsThreads-v0", entry_point=ShowsThreads)
    torch.set_num_threads(2)
    config = EnvConfig(id="test/ShowsThreads-v0", vectorization_mode="async")
    with closing(config.build(2)) as env:
        obs, _ = env.vector_env.reset(seed=0)
    assert obs.tolist() == [[1], [1]]
