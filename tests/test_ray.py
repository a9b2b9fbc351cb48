"""A study on a Ray cluster of two nodes, of which one dies; what a run may take of a node."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from rich.console import Console

import ami_agent as ami
from ami_agent.ablation import Ray, Study, StudyPlan, executors, parse_resources, run_study
from ami_agent.ablation.executors import Job
from ami_agent.adapters.env import EnvConfig
from ami_agent.interrupt import Interrupted, handled
from ami_agent.storage.files import LOCK, locked
from ami_agent.train import stage_seed
from modules.types import ConfigError
from tests.conftest import error_line, tiny_gym

ROOT = Path(__file__).parents[1]
STARTED = "started.txt"


class Line(gymnasium.Env):
    """A position on a line. Every start from a seed is written down, with the Ray node on which it
    happens and what it takes of it; the first episode of the stage actor_critic waits while a file
    `wait` is there."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, folder: str) -> None:
        self.folder, self.waits = Path(folder), False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            import ray

            place = ray.get_runtime_context()
            taken = place.get_assigned_resources()
            with (self.folder / STARTED).open("a") as file:
                file.write(f"{seed} {place.get_node_id()} {taken['CPU']:g} {taken['GPU']:g}\n")
            self.waits = seed in STAGE_SEEDS["actor_critic"]
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action):
        while self.waits and (self.folder / "wait").exists():
            time.sleep(0.05)
        return np.array([0.1 * action[0]], np.float32), 0.5, False, False, {}


gymnasium.register("ami-test/NodeLine-v0", entry_point=Line, max_episode_steps=10)
STAGE_SEEDS = {name: [stage_seed(s, name) for s in (0, 1)] for name in ("collect", "actor_critic")}


def config_of(folder: Path) -> ami.Config:
    env = EnvConfig(
        id="ami-test/NodeLine-v0", imports=("tests.test_ray",), options={"folder": str(folder)}
    )
    return tiny_gym(env)


def starts(folder: Path, stage: str) -> list[list[str]]:
    """By the seed of the run, the nodes on which that stage began."""
    text = (folder / STARTED).read_text() if (folder / STARTED).exists() else ""
    rows = [line.split() for line in text.splitlines()]
    assert {(cpu, gpu) for _, _, cpu, gpu in rows} <= {("1", "0.5")}
    return [[node for seed, node, *_ in rows if int(seed) == s] for s in STAGE_SEEDS[stage]]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)


def is_free(folder: Path) -> bool:
    """Whether no process trains in the folder."""
    try:
        with locked(folder):
            return True
    except ConfigError:
        return False


@pytest.fixture
def cluster(monkeypatch):
    """A function that starts a cluster of a node for each given set of resources."""
    pytest.importorskip("ray", reason="Ray is an extra")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    started = []

    def start(*nodes: dict[str, float]) -> Cluster:
        first, *others = nodes
        cluster = Cluster(initialize_head=True, head_node_args=first)
        started.append(cluster)
        for node in others:
            cluster.add_node(**node)
        return cluster

    yield start
    for one in started:
        one.shutdown()


@pytest.mark.slow
def test_a_run_whose_node_dies_continues_on_another_one_from_its_checkpoint(tmp_path, cluster):
    nodes = cluster(*2 * [{"num_cpus": 1, "num_gpus": 1}])
    head, (other,) = nodes.head_node, nodes.worker_nodes
    plan = StudyPlan(name="line", configs={"one": config_of(tmp_path)}, seeds=2, episodes=2)

    def study_with(**resources: float) -> Study:
        executor, quiet = Ray(nodes.address, resources=resources), Console(quiet=True)
        return run_study(plan, out=tmp_path / "study", executor=executor, console=quiet)

    with pytest.raises(ConfigError, match=r"GPU 2, and no node .*there are CPU 1, GPU 1; CPU 1"):
        study_with(GPU=2)
    (tmp_path / "wait").touch()

    def kill_a_node() -> None:
        """When each node is in the middle of a run."""
        wait_for(lambda: all(starts(tmp_path, "actor_critic")))
        nodes.remove_node(other, allow_graceful=False)
        runs = [tmp_path / "study" / "one" / str(seed) for seed in (0, 1)]
        wait_for(lambda: any(map(is_free, runs)))  # the process ends some time after its node
        (tmp_path / "wait").unlink()

    thread = threading.Thread(target=kill_a_node)
    thread.start()
    study = study_with(GPU=0.5)
    thread.join()
    assert all(result.metrics for result in study.all_results), study.all_results
    by_seed = starts(tmp_path, "collect")
    lost = by_seed.index([other.node_id])
    assert by_seed[1 - lost] == [head.node_id]
    by_seed = starts(tmp_path, "actor_critic")
    assert by_seed[lost] == [other.node_id, head.node_id]
    assert by_seed[1 - lost] == [head.node_id]


JOB = Job("one", ami.recipes.two_rooms(), Path("out"), seed=0, episodes=1, device="cpu")


@pytest.fixture
def requests(monkeypatch):
    """The requests to a Ray that has two nodes; nothing runs."""
    found: list[dict[str, Any]] = []

    def remote(**options: Any) -> Callable[..., Any]:
        found.append(options)
        return lambda work: SimpleNamespace(remote=lambda job, threads: job.seed)

    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "big": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    ray = SimpleNamespace(
        remote=remote, init=lambda **_: None, shutdown=lambda: None, get=lambda ref: None,
        wait=lambda pending, **_: (pending[:1], pending[1:]), nodes=lambda: nodes,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    return found


@pytest.mark.parametrize(
    ("device", "resources", "expected"),
    [
        ("cpu", {}, (1, 0, {})),
        ("cuda", {}, (1, 1, {})),
        ("cuda", {"GPU": 0.25, "CPU": 2, "big": 0.5}, (2, 0.25, {"big": 0.5})),
    ],
)
def test_a_run_asks_for_the_resources_that_it_is_given(requests, device, resources, expected):
    list(Ray("local", resources=resources).run([JOB._replace(device=device)]))
    (found,) = requests
    assert (found["num_cpus"], found["num_gpus"], found["resources"]) == expected
    assert found["max_retries"] > 0


@pytest.mark.parametrize(
    ("device", "resources", "message"),
    [
        ("cpu", {"CPU": 8}, "a run takes CPU 8, and no node of the cluster has that"),
        ("cpu", {"CPU": 4, "GPU": 0.5}, "a run takes CPU 4, GPU 0.5, and no node"),
        ("cuda", {"GPU": 2}, "a run takes CPU 1, GPU 2, and no node"),
        ("cuda", {"GPU": 1.5}, "GPU=1.5: above 1 it must be a whole number"),
        ("cuda", {"GPU": 0}, "runs on cuda need a GPU, or a fraction"),
        ("cuda:1", {}, "Ray chooses the GPU of a run; use cuda"),
        ("cpu", {"red": 1}, "red 1, and no node of the cluster has that .there are CPU 4, GPU 0"),
    ],
)
def test_resources_that_no_node_has_are_refused_at_once(requests, device, resources, message):
    with pytest.raises(ConfigError, match=message):
        list(Ray("local", resources=resources).run([JOB._replace(device=device)]))
    assert not requests


def test_a_signal_to_a_study_is_named_and_ends_its_tasks(requests, monkeypatch):
    cancelled: list[int] = []

    def wait(pending: list[int], **options: Any) -> tuple[list[int], list[int]]:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise KeyboardInterrupt from None  # as Ray does
        return [], pending

    monkeypatch.setattr(sys.modules["ray"], "wait", wait)
    monkeypatch.setattr(sys.modules["ray"], "cancel", cancelled.append, raising=False)
    with handled(), pytest.raises(KeyboardInterrupt) as caught:
        list(Ray("local").run([JOB._replace(seed=seed) for seed in (3, 4)]))
    assert isinstance(caught.value, Interrupted)
    assert caught.value.message == "interrupted by SIGTERM"
    assert cancelled == [3, 4]


@pytest.mark.parametrize("word", ["GPU", "GPU=", "=1", "GPU=-1", "GPU=nan", "GPU=inf", "GPU=half"])
def test_resources_are_names_with_amounts(capsys, word):
    assert parse_resources(["GPU=0.25", "CPU=2"]) == {"GPU": 0.25, "CPU": 2}
    ablate = ("ablate", "two-rooms", "--without", "goal_critic")
    said = error_line(capsys, *ablate, "--ray", "local", "--resources", word)
    assert "it must be NAME=AMOUNT, as CPU=2 or GPU=0.25" in said
    assert "give --ray too" in error_line(capsys, *ablate, "--resources", "CPU=2")


def test_a_run_waits_for_the_process_of_the_node_that_died(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="locks are those of POSIX")
    job = JOB._replace(out=tmp_path / "run")
    job.out.mkdir()
    lock = (job.out / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process would hold it
    monkeypatch.setattr(executors, "run_job_logged", lambda *_: is_free(job.out))
    threading.Timer(1.0, lock.close).start()
    assert not is_free(job.out)
    assert executors.run_job_on_node(job, 1)
