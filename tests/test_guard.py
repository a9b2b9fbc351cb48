"""A process that dies costs the episodes that were going on in its worlds, and nothing else."""

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
from ami_agent.build import build, capacity
from ami_agent.evaluate import play_many
from ami_agent.guard import SOON, TIMES, Died, Failed
from ami_agent.learning import Learning
from ami_agent.lessons import Live
from ami_agent.life import WorldConfig, live, walk
from ami_agent.players import aimless
from ami_agent.report import Silence
from ami_agent.show.camera import Dark
from ami_agent.show.episodes import watch

ROOT = Path(__file__).parent.parent


class Diary(gymnasium.Env):
    """Shows who this life belongs to and how many steps it has; may die after some steps, once or
    always, or raise."""

    observation_space = spaces.Box(0, 1e6, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lasts=7, dies_at=-1, once="", raises=False) -> None:
        self.lasts, self.dies_at, self.once, self.raises = lasts, dies_at, once, raises
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.whose, self.moment = int(self.np_random.integers(1e6)), 0
        return self._seen(), {}

    def step(self, action):
        self.moment += 1
        if self.raises:
            raise EOFError("the page is torn")
        self.steps += 1
        if self.steps == self.dies_at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._seen(), float(self.moment), False, self.moment == self.lasts, {}

    def _seen(self):
        return np.array([self.whose, self.moment], np.float32)


gymnasium_id = "ami-test/Diary-v0"


@pytest.fixture(autouse=True)
def _known():
    gymnasium.register(gymnasium_id, entry_point=Diary)
    yield
    del gymnasium.registry[gymnasium_id]


def diary(**options):
    return WorldConfig(id=gymnasium_id, vector="async", options=options)


def kill(world, number):
    """As the system does where memory runs out."""
    worker = world.inner.processes[number]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def recipe(**options):
    config = ami.recipes.gym(diary(**options))
    few = Learning(steps=0, batch=8)
    objective = replace(config.objective, learning=few)
    return replace(
        config, life=Live(worlds=3, steps=40),
        objective=replace(objective, learning=replace(few, steps=2)),
        interact=replace(config.interact, steps=30, ratio=0.1, learning=few, objective=objective),
    )  # fmt: skip


def explorer(config):
    with closing(config.world.build(1)) as world:
        agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    return config.life.begin(agent, config.world, 1)


def test_life_goes_on_in_other_episodes_and_memory_joins_none(caplog):
    pupil = explorer(recipe())
    for step in range(40):
        if step in (4, 25):  # in the middle of an episode
            kill(pupil.world, 1)
        pupil.update()
    assert pupil.step == pupil.total
    memory = pupil.agent.memory
    assert memory.lived == 3 * (40 + 2)
    said = [record.getMessage() for record in caplog.records]
    assert (
        said
        == [f"world '{gymnasium_id}': worker 1 died (SIGKILL); restarted, all 3 begin anew"] * 2
    )
    batch = memory.sample(2000, 1, torch.Generator().manual_seed(0))
    before, after = batch.states.unbind(1)
    assert torch.equal(before[:, 0], after[:, 0])  # the same life
    assert torch.equal(before[:, 1] + 1, after[:, 1])  # the next moment
    assert torch.equal(batch.interoception[:, 0, 0], after[:, 1])
    assert not batch.terminated.any()  # who was cut did not die
    lengths = [memory.recall(n).actions.shape[1] for n in memory.episodes()]
    assert sorted(set(lengths)) == [4, 5, 7]  # what was cut, and what was not
    pupil.finish()


def test_what_is_drawn_at_random_goes_on_as_the_seed_wants_it():
    def drawn(dies):
        with closing(diary().build(2)) as world:
            obs, _ = world.reset(3)
            act = walk(world)
            first = act(obs)
            if dies:
                kill(world, 0)
                with pytest.raises(Died):
                    world.step(obs, first)
            return torch.stack([first, act(obs), act(obs)])

    assert torch.equal(drawn(dies=True), drawn(dies=False))


def test_whoever_does_not_expect_it_is_stopped_and_may_begin_again(caplog):
    with closing(diary().build(2)) as world:
        obs, _ = world.reset(0)
        steps = live(walk(world), world, obs)
        next(steps)
        kill(world, 0)
        with pytest.raises(Died, match=r"failed in step: worker 0 died \(SIGKILL\)"):
            next(steps)
        again, _ = world.reset(0)
        assert torch.equal(again, obs)
        assert all(process.is_alive() for process in world.inner.processes)
        kill(world, 1)
        again, _ = world.reset(0)  # who dies before anything has begun has lost nothing
        assert torch.equal(again, obs)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("apart", "ends"), [(1, True), (SOON, False)])
def test_too_many_deaths_are_no_accident(apart, ends):
    with closing(diary().build(1)) as world:
        for death in range(TIMES):
            obs, _ = world.reset(0)
            for _ in islice(live(walk(world), world, obs), apart):
                pass
            kill(world, 0)
            fatal = ends and death == TIMES - 1
            with pytest.raises(Failed, match="third death" if fatal else "died") as caught:
                world.step(obs, torch.zeros(1, 1))
            assert isinstance(caught.value, Died) != fatal


def test_what_a_world_does_wrong_itself_ends_it_and_only_we_speak_of_it(recwarn, caplog):
    world = diary(raises=True).build(2)
    obs, _ = world.reset(0)
    workers = world.inner.processes
    with pytest.raises(Failed, match="failed in step: EOFError: the page is torn") as caught:
        world.step(obs, torch.zeros(2, 1))
    assert not isinstance(caught.value, Died)
    assert not any(worker.is_alive() for worker in workers)
    assert not recwarn.list
    assert not caplog.records


def test_an_evaluation_begins_again_and_finds_the_same(tmp_path, caplog):
    once = str(tmp_path / "died")
    found, sound = (play_many(aimless, diary(**o), 3, 0, "cpu") for o in (
        {"dies_at": 5, "once": once}, {}
    ))  # fmt: skip
    assert len(caplog.records) == 1
    for part, other in zip(found, sound, strict=True):
        torch.testing.assert_close(part, other, equal_nan=True)
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(Failed, match="third death within 100 steps"):
        play_many(aimless, diary(dies_at=5), 3, 0, "cpu")


def test_a_death_while_a_thought_is_timed_or_watched_ends_nothing(tiny, tmp_path, monkeypatch):
    agent = ami.train(tiny, out=tmp_path / "run")
    for name in ("ami_agent.evaluate.latency", "ami_agent.show.episodes._longest"):
        module, _, function = name.rpartition(".")
        find, deaths = getattr(sys.modules[module], function), ["worker 0 died"]

        def dies(*told, find=find, deaths=deaths):
            if deaths:
                raise Died(deaths.pop())
            return find(*told)

        monkeypatch.setattr(sys.modules[module], function, dies)
    assert ami.evaluate(agent, tiny.evaluation, episodes=2)["ms_per_action"]["mean"] > 0
    (lives,) = watch(
        agent, tiny.evaluation, Dark(), 1, ("react",), 0,
        agent.assigned(""), Silence(),
    )  # fmt: skip
    assert len(lives[0].states) > 0


def test_put_away_after_a_death_it_is_taken_up_in_other_episodes():
    config = recipe()

    def begun():
        pupil = explorer(config)
        for _ in range(40):
            pupil.update()
        pupil.finish()
        return config.interact.begin(pupil.agent, config.world, 2)

    first, second = begun(), begun()
    for step in range(9):
        if step == 5:
            kill(first.life.world, 2)
        first.update()
    second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
    assert second.step == 9
    for _ in range(3):
        second.update()
    before, after = second.agent.memory.sample(
        2000, 1, torch.Generator().manual_seed(0)
    ).states.unbind(1)
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1] + 1, after[:, 1])
    for pupil in (first, second):
        pupil.finish()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_seed_decides_every_step_in_processes_as_without_them(name):
    def lived(vector, seed):
        config = WorldConfig(id=name, vector=vector, limit=20)
        with closing(config.build(3)) as world:
            obs, _ = world.reset(seed)
            steps = [step.transition for step in islice(live(walk(world), world, obs), 60)]
        return [torch.stack(part) for part in zip(*steps, strict=True)]

    one, other, another = lived("async", 7), lived("sync", 7), lived("async", 8)
    assert (one[4] | one[5]).sum() >= 3 * 2  # episodes have ended meanwhile
    for part, same, strange in zip(one[:4], other[:4], another[:4], strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, strange) or name == "CartPole-v1"  # which always earns 1


def test_a_run_is_told_in_one_line_and_ends_well(tmp_path):
    (tmp_path / "diary.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import gymnasium\n"
        "from tests.test_guard import Diary\n"
        f"gymnasium.register({gymnasium_id!r}, entry_point=Diary)\n"
    )
    argv = [
        "train", "gym", "--env.import", "diary.py", "--env.id", gymnasium_id, "--env.vector",
        "async", "--env.options", "dies_at", "45", "once", str(tmp_path / "died"), "--out", "run",
        "--life.steps", "60", "--objective.learning.steps", "3", "--interact.steps", "5",
        "--interact.learning.batch", "8", "--interact.objective.learning.batch", "8",
        "--episodes", "2", "--planner.horizon", "2", "--planner.steps", "1",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "ami_agent", *argv], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == (
        f"world '{gymnasium_id}': worker 0 died (SIGKILL); restarted, all 1 begin anew\n"
    )


class Ancient(gymnasium.Env):
    """Of another time: four values of a step."""

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
    ("kind", "said"),
    [
        (Ancient, "step returns an observation, a reward, terminated"),
        (Leaving, "SystemExit: 0"),
        (Paying, "a reward is one number"),
        (Growing, "observation is not of its observation_space"),
    ],
)
def test_a_world_of_another_time_and_one_that_leaves_are_told_in_a_line(kind, said):
    gymnasium.register("ami-test/Odd-v0", entry_point=kind, disable_env_checker=True)
    try:
        with closing(WorldConfig(id="ami-test/Odd-v0").build(1)) as world:
            obs, _ = world.reset(0)
            with pytest.raises(Failed, match=said):
                world.step(obs, torch.zeros(1, 1))
    finally:
        del gymnasium.registry["ami-test/Odd-v0"]
