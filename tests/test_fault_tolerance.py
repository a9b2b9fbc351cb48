"""A process that dies costs the running episodes of its environments, and nothing else."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig, behaviour_policy, rollout
from ami_agent.adapters.fault_tolerance import DEATH_WINDOW, MAX_DEATHS, EnvError, WorkerDied
from ami_agent.config import buffer_steps, build, override
from ami_agent.evaluation.evaluate import run_many
from ami_agent.evaluation.policies import make_random_policy
from ami_agent.logger import Logger
from ami_agent.training import CollectBehaviour
from ami_agent.training.optim import OptimConfig
from ami_agent.viewer.record import EpisodeSelection, record_episodes

ROOT = Path(__file__).parent.parent


class Diary(gymnasium.Env):
    """Shows the number of its process and its steps; it may die after some steps, once or
    always, or raise."""

    observation_space = spaces.Box(0, 1e6, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lasts=7, dies_at=-1, once="", raises=False) -> None:
        self.lasts, self.dies_at, self.once, self.raises = lasts, dies_at, once, raises
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.whose, self.moment = int(self.np_random.integers(1e6)), 0
        return self._obs(), {}

    def step(self, action):
        self.moment += 1
        if self.raises:
            raise EOFError("the page is torn")
        self.steps += 1
        if self.steps == self.dies_at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._obs(), float(self.moment), False, self.moment == self.lasts, {}

    def _obs(self):
        return np.array([self.whose, self.moment], np.float32)


gymnasium_id = "ami-test/Diary-v0"


@pytest.fixture(autouse=True)
def _known():
    gymnasium.register(gymnasium_id, entry_point=Diary)
    yield
    del gymnasium.registry[gymnasium_id]


def diary(**options):
    return EnvConfig(id=gymnasium_id, vectorization_mode="async", options=options)


def kill(env, number):
    """As the operating system does where memory runs out."""
    worker = env.unwrapped.processes[number]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def recipe(**options):
    config = ami.recipes.gym(diary(**options))
    few = OptimConfig(steps=0, batch_size=8)
    objective = replace(config.stages["train_jepa"], optim=few)
    return override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=3, steps=40),
            "stages.train_jepa": replace(objective, optim=replace(few, steps=2)),
            "stages.actor_critic.steps": 30,
            "stages.actor_critic.updates_per_step": 0.1,
            "stages.actor_critic.optim": few,
            "stages.actor_critic.train_jepa": objective,
        },
    )


def explorer(config):
    with closing(config.env.build(1)) as env:
        agent = build(
            config, env.spec, num_envs=config.collect.num_envs, buffer_size=buffer_steps(config)
        )
    return config.collect.start(agent, config.env, 1)


def test_training_continues_in_other_episodes_and_the_replay_buffer_joins_none(caplog):
    stage_run = explorer(recipe())
    for step in range(40):
        if step in (4, 25):  # in the middle of an episode
            kill(stage_run.env, 1)
        stage_run.update()
    assert stage_run.step == stage_run.total
    memory = stage_run.agent.replay_buffer
    assert memory.num_added == 3 * (40 + 2)
    message = [record.getMessage() for record in caplog.records]
    expected = (
        f"environment '{gymnasium_id}': worker 1 died (SIGKILL); all 3 environments are made again"
        ", and their episodes restarted"
    )
    assert message == [expected] * 2
    batch = memory.sample(2000, 1, torch.Generator().manual_seed(0))
    before, after = batch.states.unbind(1)
    assert torch.equal(before[:, 0], after[:, 0])  # the same episode
    assert torch.equal(before[:, 1] + 1, after[:, 1])  # the next step
    assert torch.equal(batch.interoception[:, 0, 0], after[:, 1])
    assert not batch.terminated.any()  # an interrupted environment has not terminated
    lengths = [memory.get_episode(n).actions.shape[1] for n in memory.episode_ids()]
    assert sorted(set(lengths)) == [4, 5, 7]  # which were interrupted, and which were not
    stage_run.finish()


def test_random_draws_continue_as_the_seed_determines():
    def drawn(dies):
        with closing(diary().build(2)) as env:
            obs, _ = env.reset(3)
            act = behaviour_policy(env)
            first = act(obs)
            if dies:
                kill(env, 0)
                with pytest.raises(WorkerDied):
                    env.step(obs, first)
            return torch.stack([first, act(obs), act(obs)])

    assert torch.equal(drawn(dies=True), drawn(dies=False))


def test_a_caller_that_does_not_handle_a_death_is_stopped_and_may_reset(caplog):
    with closing(diary().build(2)) as env:
        obs, _ = env.reset(0)
        steps = rollout(behaviour_policy(env), env, obs)
        next(steps)
        kill(env, 0)
        with pytest.raises(WorkerDied, match=r"failed in step: worker 0 died \(SIGKILL\)"):
            next(steps)
        again, _ = env.reset(0)
        assert torch.equal(again, obs)
        assert all(process.is_alive() for process in env.unwrapped.processes)
        kill(env, 1)
        again, _ = env.reset(0)  # a worker that dies before any step has lost no episode
        assert torch.equal(again, obs)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("distance", "ends"), [(1, True), (DEATH_WINDOW, False)])
def test_repeated_deaths_of_a_worker_end_the_run(distance, ends):
    with closing(diary().build(1)) as env:
        for death in range(MAX_DEATHS):
            obs, _ = env.reset(0)
            for _ in islice(rollout(behaviour_policy(env), env, obs), distance):
                pass
            kill(env, 0)
            fatal = ends and death == MAX_DEATHS - 1
            with pytest.raises(EnvError, match="third death" if fatal else "died") as raised:
                env.step(obs, torch.zeros(1, 1))
            assert isinstance(raised.value, WorkerDied) != fatal


def test_errors_of_the_environment_itself_end_the_run_and_are_reported_once(recwarn, caplog):
    env = diary(raises=True).build(2)
    obs, _ = env.reset(0)
    workers = env.unwrapped.processes
    with pytest.raises(EnvError, match="failed in step: EOFError: the page is torn") as raised:
        env.step(obs, torch.zeros(2, 1))
    assert not isinstance(raised.value, WorkerDied)
    assert not any(worker.is_alive() for worker in workers)
    assert not recwarn.list
    assert not caplog.records


def test_an_evaluation_is_repeated_with_the_same_result(tmp_path, caplog):
    once = str(tmp_path / "died")
    found, sound = (run_many(make_random_policy, diary(**o), 3, 0, "cpu") for o in (
        {"dies_at": 5, "once": once}, {}
    ))  # fmt: skip
    assert len(caplog.records) == 1
    for part, other in zip(found, sound, strict=True):
        torch.testing.assert_close(part, other, equal_nan=True)
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(EnvError, match="third death within 100 steps"):
        run_many(make_random_policy, diary(dies_at=5), 3, 0, "cpu")


def test_a_death_while_an_agent_is_timed_or_recorded_ends_nothing(tiny, tmp_path, monkeypatch):
    agent = ami.train(tiny, out=tmp_path / "run")
    for name in (
        "ami_agent.evaluation.evaluate.latency",
        "ami_agent.viewer.record._Recorder",
    ):
        module, _, function = name.rpartition(".")
        find, deaths = getattr(sys.modules[module], function), ["worker 0 died"]

        def dies(*output, find=find, deaths=deaths):
            if deaths:
                raise WorkerDied(deaths.pop())
            return find(*output)

        monkeypatch.setattr(sys.modules[module], function, dies)
    assert ami.evaluate(agent, tiny.eval_env, episodes=2)["ms_per_action"]["mean"] > 0
    selection = EpisodeSelection(episodes=1, mode="react")
    (episodes,) = record_episodes(agent, tiny.eval_env, None, selection, Logger())
    assert len(episodes[0].states) > 0


def test_a_run_saved_after_a_death_is_resumed_in_other_episodes():
    config = recipe()

    def started():
        stage_run = explorer(config)
        for _ in range(40):
            stage_run.update()
        stage_run.finish()
        return config.stages["actor_critic"].start(stage_run.agent, config.env, 2)

    first, second = started(), started()
    for step in range(9):
        if step == 5:
            kill(first.collector.env, 2)
        first.update()
    second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
    assert second.step == 9
    for _ in range(3):
        second.update()
    before, after = second.agent.replay_buffer.sample(
        2000, 1, torch.Generator().manual_seed(0)
    ).states.unbind(1)
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1] + 1, after[:, 1])
    for stage_run in (first, second):
        stage_run.finish()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_seed_decides_every_step_in_worker_processes_as_without_them(name):
    def collect_data(vector, seed):
        config = EnvConfig(id=name, vectorization_mode=vector, max_episode_steps=20)
        with closing(config.build(3)) as env:
            obs, _ = env.reset(seed)
            steps = [
                step.transition for step in islice(rollout(behaviour_policy(env), env, obs), 60)
            ]
        return [torch.stack(part) for part in zip(*steps, strict=True)]

    one, other, another = (
        collect_data("async", 7),
        collect_data("sync", 7),
        collect_data("async", 8),
    )
    assert (one[4] | one[5]).sum() >= 3 * 2  # episodes have ended meanwhile
    for part, same, strange in zip(one[:4], other[:4], another[:4], strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, strange) or name == "CartPole-v1"  # whose reward is always 1


def test_a_death_is_reported_in_one_line_and_the_run_completes(tmp_path):
    (tmp_path / "diary.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import gymnasium\n"
        "from tests.test_fault_tolerance import Diary\n"
        f"gymnasium.register({gymnasium_id!r}, entry_point=Diary)\n"
    )
    argv = [
        "train",
        "gym",
        "--env.import",
        "diary.py",
        "--env.id",
        gymnasium_id,
        "--env.vectorization-mode",
        "async",
        "--env.options",
        "dies_at",
        "45",
        "once",
        str(tmp_path / "died"),
        "--out",
        "run",
        "--collect.steps",
        "60",
        "--train-jepa.optim.steps",
        "3",
        "--actor-critic.steps",
        "5",
        "--actor-critic.optim.batch-size",
        "8",
        "--actor-critic.train-jepa.optim.batch-size",
        "8",
        "--episodes",
        "2",
        "--planner.horizon",
        "2",
        "--planner.iterations",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ami_agent", *argv], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"environment '{gymnasium_id}': worker 0 died (SIGKILL); all 1 environments are made again"
        ", and their episodes restarted\n"
    )


class Ancient(gymnasium.Env):
    """Of the interface before 0.26: four values of a step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, {}


class Leaving(Ancient):
    def step(self, action):
        raise SystemExit(0)


class Paying(Ancient):
    """Its reward is no number."""

    def step(self, action):
        return np.zeros(1, np.float32), np.array([1.0]), False, False, {}


class Growing(Ancient):
    """Its observation is of another shape."""

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Ancient, "step returns an observation, a reward, terminated"),
        (Leaving, "SystemExit: 0"),
        (Paying, "a reward is one number"),
        (Growing, "observation is not of its observation_space"),
    ],
)
def test_a_step_of_the_old_interface_and_an_exit_are_reported_in_one_line(kind, message):
    gymnasium.register("ami-test/Odd-v0", entry_point=kind, disable_env_checker=True)
    try:
        with closing(EnvConfig(id="ami-test/Odd-v0").build(1)) as env:
            obs, _ = env.reset(0)
            with pytest.raises(EnvError, match=message):
                env.step(obs, torch.zeros(1, 1))
    finally:
        del gymnasium.registry["ami-test/Odd-v0"]
