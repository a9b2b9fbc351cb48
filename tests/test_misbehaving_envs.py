"""Environments that hang, end the process, exist only once, only as a batch or in a file of their
own: each is stepped correctly, or ends in one line that names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import ami_agent as ami
from ami_agent import hardware
from ami_agent.adapters.env import EnvConfig, behaviour_policy, rollout
from ami_agent.adapters.fault_tolerance import EnvCreationError, EnvError, EnvResetError, WorkerDied
from ami_agent.adapters.imports import import_path
from ami_agent.cli.main import main
from ami_agent.config import override
from ami_agent.evaluation.evaluate import run_many
from ami_agent.evaluation.policies import make_random_policy
from ami_agent.hardware import num_cores
from ami_agent.storage.checkpoint import checkpoints
from ami_agent.storage.run_dir import check_same
from ami_agent.training import CollectBehaviour
from ami_agent.training.optim import OptimConfig
from modules.types import ConfigError

ROOT = Path(__file__).parent.parent
OBS, ACTION = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)


class Plain(gymnasium.Env):
    """The seed decides what it shows; it ends after some steps."""

    observation_space, action_space = OBS, ACTION

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(action), False, self.steps == 5, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Faulty(Plain):
    """Does something else after some steps."""

    def __init__(self, fault="", at=2, where="step", once="") -> None:
        self.fault, self.at, self.where, self.once, self.calls = fault, at, where, once, 0
        if where == "init":
            self._fail()

    def reset(self, *, seed=None, options=None):
        if self.where == "reset":
            self._fail()
        return super().reset(seed=seed)

    def step(self, action):
        self.calls += 1
        if self.where == "step" and self.calls >= self.at:
            self._fail()
        return super().step(action)

    def _fail(self):
        if self.fault == "sleeps":
            time.sleep(1000)
        while self.fault == "spins":
            try:
                time.monotonic()
            except Exception:
                continue
        if self.fault == "asserts":
            raise AssertionError
        if self.fault == "leaves":
            sys.exit(3)
        if self.fault == "interrupts":
            raise KeyboardInterrupt
        if self.fault == "dies":
            os._exit(0)
        if self.fault == "ctrl-c":
            signal.raise_signal(signal.SIGINT)


class Single(Plain):
    """There can be one at a time, or a few: the next one is refused by its constructor or reset."""

    open = 0

    def __init__(self, most=1, where="init") -> None:
        self.most, self.where, self.holds = most, where, False
        if where == "init":
            self._hold()

    def reset(self, *, seed=None, options=None):
        if self.where == "reset":
            self._hold()
        return super().reset(seed=seed)

    def close(self):
        Single.open -= self.holds
        self.holds = False

    def _hold(self):
        if not self.holds and Single.open >= self.most:
            raise OSError("the port is in use")
        Single.open += not self.holds
        self.holds = True


class Endless(VectorEnv):
    """Exists as a batch only, and never ends."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs=1) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBS, ACTION
        self.observation_space = batch_space(OBS, num_envs)
        self.action_space = batch_space(ACTION, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, actions):
        no = np.zeros(self.num_envs, bool)
        return self._obs(), np.ones(self.num_envs), no, no, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, (self.num_envs, 2)).astype(np.float32)


class Odd(Plain):
    """Returns something odd in its second step."""

    def __init__(self, part="reward", value="") -> None:
        self.part, self.value = part, value

    def step(self, action):
        found = list(super().step(action))
        if self.steps == 2:
            found[PARTS.index(self.part)] = UNUSUAL[self.value]
        return tuple(found)


PARTS = ("observation", "reward", "terminated", "truncated")
UNUSUAL = {
    "nan": np.nan, "a word": "False", "long": "x" * 999, "two": 2, "none": None, "huge": 1e300,
    "huge integer": -(10**30), "0": 0, "0.0": 0.0, "[0]": np.array([0]), "np": np.bool_(False),
}  # fmt: skip


KINDS = (Plain, Faulty, Single, Odd)


@pytest.fixture(autouse=True)
def _registered():
    for kind in KINDS:
        gymnasium.register(f"ami-test/{kind.__name__}-v0", entry_point=kind)
    gymnasium.register("ami-test/Endless-v0", vector_entry_point=Endless)
    gymnasium.register("ami-test/Returns-v0", vector_entry_point=Returns)
    gymnasium.register("ami-test/Mute-v0", entry_point=RaisesMute)
    Single.open = 0
    yield
    for name in (*(kind.__name__ for kind in KINDS), "Endless", "Returns", "Mute"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def faulty(fault, vector="auto", timeout=0.5, **options):
    return EnvConfig(
        id="ami-test/Faulty-v0", vectorization_mode=vector, step_timeout=timeout,
        options={"fault": fault, **options},
    )  # fmt: skip


def run(config, steps=9, count=1):
    with closing(config.build(count)) as env:
        obs, _ = env.reset(0)
        return list(islice(rollout(behaviour_policy(env), env, obs), steps))


def odd(part, value, vector="auto"):
    options = {"part": part, "value": value}
    return EnvConfig(id="ami-test/Odd-v0", vectorization_mode=vector, options=options)


@pytest.mark.parametrize("vector", ["auto", "async"])
@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("terminated", "nan", "failed in step: ValueError: its terminated is nan; it must be True"),
        ("terminated", "a word", "its terminated is 'False'; it must be True or False"),
        ("truncated", "two", "its truncated is 2; it must be True or False"),
        ("truncated", "none", "its truncated is None; it must be True or False"),
        ("truncated", "long", "its truncated is 'x+; it must be True or False"),
        ("reward", "huge", r"reward holds a number beyond 1e\+19, too large"),
        ("reward", "huge integer", r"reward holds a number beyond 1e\+19, too large"),
        ("reward", "nan", "reward holds NaN or infinity"),
    ],
)
def test_flags_and_rewards_that_would_be_misread_are_refused(part, value, message, vector):
    with pytest.raises(EnvError, match=message) as error:
        run(odd(part, value, vector))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", ["0", "0.0", "[0]", "np"])
def test_a_flag_may_be_of_any_kind_that_means_no(value):
    assert len(run(odd("terminated", value))) == 9


@pytest.mark.parametrize("fault", ["sleeps", "spins"])
@pytest.mark.parametrize("where", ["init", "reset", "step"])
def test_a_call_that_does_not_return_is_named_with_its_line(fault, where):
    start_time = time.monotonic()
    name = "its constructor" if where == "init" else where
    message = (
        rf"Faulty-v0': {name} did not return within 0\.5 s \(--env\.step-timeout\) "
        r"\(test_misbehaving_envs\.py:\d+\)$"
    )
    with pytest.raises(EnvError, match=message):
        run(faulty(fault, where=where))
    assert time.monotonic() - start_time < 4


def test_a_worker_that_does_not_return_is_named_and_ended():
    config = faulty("spins", "async", timeout=2)
    with closing(config.build(2)) as env:
        workers = env.unwrapped.processes
        obs, _ = env.reset(0)
        with pytest.raises(EnvError, match=r"step did not return within 2 s .*\(worker 0, 1\)"):
            for _ in rollout(behaviour_policy(env), env, obs):
                pass
        assert not any(worker.is_alive() for worker in workers)


def test_no_limit_and_a_call_in_time_raise_nothing():
    assert len(run(faulty("", timeout=0))) == 9
    assert len(run(faulty("", timeout=0.5))) == 9
    with pytest.raises(ConfigError, match="step_timeout is -1"):
        faulty("", timeout=-1)


def test_what_was_learnt_before_a_step_that_does_not_return_is_saved(tmp_path):
    few = OptimConfig(steps=2, batch_size=8)
    config = ami.recipes.gym(faulty("sleeps", at=42, timeout=0.5))
    objective = replace(config.stages["train_jepa"], optim=few)
    config = override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=40),
            "stages.train_jepa": objective,
            "stages.actor_critic.steps": 60,
            "stages.actor_critic.updates_per_step": 0.05,
            "stages.actor_critic.optim": few,
            "stages.actor_critic.train_jepa": objective,
        },
    )
    with pytest.raises(EnvError, match="did not return within"):
        ami.train(config, out=tmp_path / "run", save_every=1e6)
    assert checkpoints(tmp_path / "run")
    patient = replace(config.env, step_timeout=60.0)
    check_same(tmp_path / "run", replace(config, env=patient, eval_env=patient), 0)


def test_native_code_that_never_returns_ends_the_process_with_one_line(tmp_path):
    program = tmp_path / "stuck.py"
    program.write_text(
        textwrap.dedent("""
            import ctypes, gymnasium
            from ami_agent.adapters import fault_tolerance
            from ami_agent.adapters.env import EnvConfig
            from tests.test_misbehaving_envs import Plain

            class Stuck(Plain):
                def step(self, action):
                    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
                    libc.pthread_mutex_lock(lock)
                    libc.pthread_mutex_lock(lock)  # for ever, whatever signals come

            fault_tolerance.GRACE = 0.5
            gymnasium.register("test/Stuck-v0", entry_point=Stuck)
            env = EnvConfig(id="test/Stuck-v0", step_timeout=0.5).build(1)
            env.reset(0)
            env.vector_env.step(env.vector_env.action_space.sample())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "\nami: environment 'test/Stuck-v0': step did not return within 0.5 s "
        "(--env.step-timeout); what was checkpointed is kept\n"
    )


@pytest.mark.parametrize("vector", ["auto", "async"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [("asserts", "AssertionError"), ("leaves", "SystemExit: 3"), ("interrupts", "KeyboardInterr")],
)
def test_what_an_environment_raises_is_named_with_file_and_line(vector, fault, message):
    at = rf"{message}\w* \(test_misbehaving_envs\.py:\d+\)$"
    with pytest.raises(EnvError, match=f"failed in step: {at}"):
        run(faulty(fault, vector, timeout=60))
    with pytest.raises(EnvCreationError, match=f"can't be made: {at}"):
        run(faulty(fault, vector, timeout=60, where="init"))


def test_ctrl_c_in_a_step_is_still_an_interruption():
    with pytest.raises(KeyboardInterrupt):
        run(faulty("ctrl-c"))


def test_a_worker_whose_environment_ends_the_process_is_named():
    with pytest.raises(WorkerDied, match=r"worker 0 died \(exit code 0\)"):
        run(faulty("dies", "async", timeout=60))


def test_where_not_all_envs_can_be_made_none_stays_open():
    with pytest.raises(EnvCreationError, match=r"OSError: the port is in use \(test_misbehaving"):
        EnvConfig(id="ami-test/Single-v0", vectorization_mode="sync").build(3)
    assert Single.open == 0


@pytest.mark.parametrize("where", ["init", "reset"])
@pytest.mark.parametrize("most", [1, 3])
def test_an_evaluation_is_the_same_for_every_number_of_open_envs(most, where):
    single = EnvConfig(id="ami-test/Single-v0", options={"most": most, "where": where})
    found = run_many(make_random_policy, single, 7, 11, "cpu")
    expected = run_many(make_random_policy, EnvConfig(id="ami-test/Plain-v0"), 7, 11, "cpu")
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, equal_nan=True)
    assert Single.open == 0


def test_an_env_that_can_not_be_opened_at_all_is_reported():
    with pytest.raises((EnvCreationError, EnvResetError), match="the port is in use"):
        run_many(
            make_random_policy, EnvConfig(id="ami-test/Single-v0", options={"most": 0}), 4, 0, "cpu"
        )


def test_as_many_envs_are_opened_as_the_machine_allows():
    plain, processes = (
        EnvConfig(id="ami-test/Plain-v0", vectorization_mode=v) for v in ("auto", "async")
    )
    assert plain.max_open_envs(100) == 16
    assert processes.max_open_envs(100) == num_cores() <= (os.cpu_count() or 1)
    assert EnvConfig(id="CartPole-v1").max_open_envs(100) == 100  # a batch of its own
    assert EnvConfig(id="CartPole-v1", max_episode_steps=9).max_open_envs(100) == 16
    assert EnvConfig(id="ami/TwoRooms-v0").max_open_envs(100) == 100


def test_training_is_evaluated_where_only_one_env_can_be_open(tmp_path):
    few = OptimConfig(steps=2, batch_size=8)
    config = ami.recipes.gym(EnvConfig(id="ami-test/Single-v0"))
    objective = replace(config.stages["train_jepa"], optim=few)
    config = override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=40),
            "stages.train_jepa": objective,
            "stages.actor_critic.steps": 20,
            "stages.actor_critic.eval_every": 8,
            "stages.actor_critic.updates_per_step": 0.1,
            "stages.actor_critic.optim": few,
            "stages.actor_critic.train_jepa": objective,
        },
    )
    agent = ami.train(config, out=tmp_path / "run", eval_episodes=2)
    assert Single.open == 0
    memory = agent.replay_buffer
    assert memory.num_added >= 40 + 20
    assert len(memory.episode_ids(5)) > 4
    ami.evaluate(agent, config.eval_env, episodes=2, mode="react")
    assert Single.open == 0


@pytest.mark.parametrize("vector", ["auto", "sync", "async"])
def test_a_time_limit_applies_to_envs_that_exist_only_as_a_batch(vector):
    config = EnvConfig(id="ami-test/Endless-v0", max_episode_steps=3, vectorization_mode=vector)
    steps = [step.transition for step in run(config, 8, 2)]
    assert [step.truncated.tolist() for step in steps] == [[i in (2, 6)] * 2 for i in range(8)]
    assert not steps[3].interoception.any()  # only resets
    assert run_many(make_random_policy, config, 3, 0, "cpu").length.tolist() == [3] * 3


def test_an_episode_without_end_names_the_limit_to_set(monkeypatch):
    monkeypatch.setattr(sys.modules["ami_agent.evaluation.evaluate"], "MAX_STEPS", 200)
    with pytest.raises(
        ConfigError, match=r"no episode ended within 200 .*--env\.max-episode-steps"
    ):
        run_many(make_random_policy, EnvConfig(id="ami-test/Endless-v0"), 3, 0, "cpu")
    assert ami.recipes.gym(EnvConfig(id="ami-test/Endless-v0")).env.max_episode_steps == 1000


FILE = """
import gymnasium
import neighbour_of_own

class Own(neighbour_of_own.Base):
    class OwnText(str):
        "Known by this file only."

    def reset(self, *, seed=None, options=None):
        from late_neighbour_of_own import INFO

        obs, info = super().reset(seed=seed)
        return obs, {**info, "text": self.OwnText(INFO)}

gymnasium.register("test/Own-v0", entry_point=Own)
"""


def test_a_file_with_neighbours_is_imported_in_workers_of_every_start_method(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "own.py").write_text(FILE)
    (folder / "late_neighbour_of_own.py").write_text("INFO = 'late'\n")
    (folder / "random.py").write_text("raise AssertionError('hides the standard library')\n")
    (folder / "neighbour_of_own.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv as Base\n"
    )
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
            import multiprocessing
            from ami_agent.adapters.env import EnvConfig

            if __name__ == "__main__":
                config = EnvConfig(
                    id="test/Own-v0", imports=("home/own.py",), vectorization_mode="async"
                )
                for method in ("spawn", "forkserver"):
                    multiprocessing.set_start_method(method, force=True)
                    env = config.build(1)
                    obs, info = env.reset(0)
                    env.vector_env.step(env.vector_env.action_space.sample())
                    env.close()
                    print(method, info["text"][0], tuple(obs.shape))
        """)
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("spawn late (1, 3)\nforkserver late (1, 3)\n", "")


def test_a_file_s_folder_comes_last_on_the_path(tmp_path):
    (tmp_path / "own_alone.py").write_text("import json\n")
    (tmp_path / "json.py").write_text("raise AssertionError\n")
    path = list(sys.path)
    try:
        import_path(str(tmp_path / "own_alone.py"))
        assert sys.path == [*path, str(tmp_path)]
    finally:
        sys.path[:] = path


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_the_cores_of_a_container_are_those_of_its_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(8)))
    assert num_cores() == 8
    for quota, left in (("300000 100000", 3), ("50000 100000", 1), ("max 100000", 8)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert num_cores() == left


class Returns(VectorEnv):
    """A batch whose episodes last 2 steps; `odd` replaces parts of what it returns."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, odd=None):
        self.odd = ODD.get(odd, {})
        self.num_envs = num_envs + self.odd.get("more", 0)
        self.single_observation_space, self.single_action_space = OBS, ACTION
        self.observation_space = batch_space(OBS, num_envs)
        self.action_space = batch_space(ACTION, num_envs)

    def reset(self, *, seed=None, options=None):
        self.t = -1
        return self.step(None)[0], {}

    def step(self, actions):
        self.t += 1
        done = np.full(self.num_envs, self.t % 3 == 2)
        parts = {
            "obs": np.zeros((self.num_envs, 2), np.float32),
            "reward": np.full(self.num_envs, float(self.t % 3 > 0)),
            "terminated": done, "truncated": np.zeros_like(done), "info": {},
        }  # fmt: skip
        return tuple(self.odd.get(name, lambda part: part)(part) for name, part in parts.items())


ODD = {
    "columns": {name: lambda p: p[:, None] for name in ("reward", "terminated", "truncated")},
    "integers": {name: lambda p: p.astype(int) for name in ("reward", "terminated", "truncated")},
    "bytes": {"terminated": lambda part: part.astype(np.uint8)},
    "floats": {"terminated": lambda part: part.astype(float)},
    "lists": {name: list for name in ("reward", "terminated", "truncated")},
    "objects": {name: lambda p: p.astype(object) for name in ("reward", "terminated")},
    "gradients": {"reward": lambda part: torch.as_tensor(part).requires_grad_()},
    "words": {"reward": lambda part: ["much"] * len(part)},
    "one reward": {"reward": lambda part: 1.0},
    "too many rewards": {"reward": lambda part: np.append(part, 0.0)},
    "no flag": {"terminated": lambda part: None},
    "one flag": {"truncated": lambda part: False},
    "NaN for a flag": {"terminated": lambda part: np.full(len(part), np.nan)},
    "a list of infos": {"info": lambda part: [{}, {}]},
    "too many observations": {"obs": lambda part: np.zeros((len(part) + 1, 2), np.float32)},
    "too many environments": {"more": 1},
}


@pytest.mark.parametrize(
    "odd", ["columns", "integers", "bytes", "floats", "lists", "objects", "gradients"]
)
def test_what_a_batch_returns_is_read_whatever_kind_of_array_it_is(odd):
    config = EnvConfig(id="ami-test/Returns-v0", options={"odd": odd}, terminal_channel=True)
    steps = [step.transition for step in run(config, 6, 2)]
    assert [step.interoception.tolist() for step in steps] == [
        [[1, 1]] * 2, [[1, 0]] * 2, [[0, 1]] * 2
    ] * 2  # fmt: skip
    assert [step.terminated.tolist() for step in steps] == [[i in (1, 4)] * 2 for i in range(6)]
    assert not any(step.truncated.any() for step in steps)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("words", r"its reward is a list of shape \(2,\); it must be numbers of shape \(2,\)"),
        ("one reward", r"its reward is a float of shape \(\)"),
        ("too many rewards", r"its reward is a ndarray of shape \(3,\)"),
        ("no flag", "its terminated is a NoneType"),
        ("one flag", r"its truncated is a bool of shape \(\); it must be bools of shape \(2,\)"),
        ("NaN for a flag", r"its terminated is \[nan nan\]; it must be bools"),
        ("a list of infos", "its info is a list; it must be a dict"),
        ("too many observations", "have 3 rows; they must have one for each of 2 env"),
        ("too many environments", "is a batch of 3 where num_envs is 2"),
    ],
)
def test_what_a_batch_returns_that_means_nothing_is_refused(odd, message):
    with pytest.raises(ConfigError, match=f"ami-test/Returns-v0.*{message}"):
        run(EnvConfig(id="ami-test/Returns-v0", options={"odd": odd}), 6, 2)


def test_an_error_that_can_not_describe_itself_is_named():
    with pytest.raises(EnvError, match=r"failed in step: Mute \(test_misbehaving_envs\.py:\d+\)"):
        run(EnvConfig(id="ami-test/Mute-v0"), 1)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


class RaisesMute(Plain):
    def step(self, action):
        raise Mute


class OldStep(gymnasium.Env):
    """Returns four values from step, as before Gymnasium 0.26, and other numbers than it states."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float64), {}

    def step(self, action):
        return np.zeros(2), 0.0, False, {}


def test_a_first_step_that_fails_is_found_before_the_run_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gymnasium.register("ami-test/OldStep-v0", entry_point=OldStep, max_episode_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(["train", "gym", "--env.id", "ami-test/OldStep-v0"])
    del gymnasium.registry["ami-test/OldStep-v0"]
    *warned, message = capsys.readouterr().err.splitlines()
    assert code
    assert "failed in step: ValueError: not enough values to unpack (expected 5, got 4)" in message
    assert not (tmp_path / "runs").exists()
    assert warned
    assert len(set(warned)) == len(warned)
    assert all(line.startswith("warning: ") and ".py:" not in line for line in warned)
