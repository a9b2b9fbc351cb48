"""Who learns from what others lived: all of it is remembered as it was, and nothing is lived."""

from __future__ import annotations

import re
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from itertools import islice

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ami_agent as ami
from ami_agent import checkpoint, settings
from ami_agent.build import build, capacity
from ami_agent.evaluate import judge
from ami_agent.learning import Learning
from ami_agent.lessons import Interact, Live, Predict, Recorded, Rehearse
from ami_agent.life import WorldConfig
from modules.memory import Memory
from modules.types import Trajectory, UnusableInput, by_sense
from tests.conftest import refuse
from tests.test_memory import assert_is_one_stretch, life

minari = pytest.importorskip("minari", reason="the extra `minari` is not installed")


class Shore(gymnasium.Env):
    """Numbers, a picture and a switch; two choices at once. It may be out of bounds to step."""

    observation_space = spaces.Dict(
        place=spaces.Box(-10, 10, (2,), np.float64),
        view=spaces.Box(0, 255, (9, 12, 3), np.uint8),
        lit=spaces.Discrete(2),
    )
    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, lasts=6, forbidden=False) -> None:
        self.lasts, self.forbidden = lasts, forbidden

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moment, self.place = 0, self.np_random.uniform(-1, 1, 2)
        return self._seen(), {}

    def step(self, action):
        assert not self.forbidden
        self.moment += 1
        self.place += np.array([0.2 * action[0] - 0.1, 0.1 * action[1] - 0.1])
        over = self.moment == self.lasts
        return self._seen(), float(action[1]), over, False, {}

    def _seen(self):
        view = np.full((9, 12, 3), 20 * self.moment, np.uint8)
        return {"place": self.place.copy(), "view": view, "lit": self.moment % 2}


class Line(gymnasium.Env):
    """A place on a line; to be near 0 is rewarded."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, forbidden=False) -> None:
        self.forbidden = forbidden

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        assert not self.forbidden
        self.place += 0.1 * float(action[0])
        over = abs(self.place) > 1
        return np.array([self.place], np.float32), 1 - abs(self.place), over, False, {}


@pytest.fixture(autouse=True)
def _known(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    gymnasium.register("ami-test/Shore-v0", entry_point=Shore)
    gymnasium.register("ami-test/Line-v0", entry_point=Line, max_episode_steps=20)
    yield
    for name in ("Shore", "Line"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def stacked(space, moments):
    if isinstance(space, spaces.Dict):
        return {name: np.stack([moment[name] for moment in moments]) for name in space}
    return np.stack(moments)


def record(name, env_id, episodes, spoil=lambda buffer: buffer):
    """Some episodes of random action, written by Minari; what was lived, as it was."""
    env, told = gymnasium.make(env_id), []
    env.action_space.seed(0)
    for number in range(episodes):
        seen, steps, over = [env.reset(seed=number)[0]], [], False
        while not over:
            action = env.action_space.sample()
            obs, reward, ended, late, _ = env.step(action)
            seen.append(obs)
            steps.append((action, reward, ended, late))
            over = ended or late
        done, felt, ends, lates = (np.array(part) for part in zip(*steps, strict=True))
        told.append(spoil(minari.data_collector.EpisodeBuffer(
            id=number, observations=stacked(env.observation_space, seen), actions=done,
            rewards=felt, terminations=ends, truncations=lates,
        )))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author
        minari.create_dataset_from_buffers(
            name, told, observation_space=env.observation_space, action_space=env.action_space,
            jpeg_encoding=False,
        )  # fmt: skip
    return told


def offline(env_id, data, updates=6, **options):
    """Tiny; the world that is lived in may be forbidden, the one that judges is not."""
    learning = Learning(steps=0, batch=8)
    config = ami.recipes.gym(WorldConfig(id=env_id), data)
    return replace(
        config,
        world=replace(config.world, options=options),
        objective=replace(config.objective, learning=replace(learning, steps=3)),
        interact=replace(
            config.interact, updates=updates, learning=learning,
            objective=replace(config.objective, learning=learning),
        ),
    )  # fmt: skip


def remembering(config):
    """An agent that has taken the first lesson."""
    with closing(config.world.build(1)) as world:
        agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    pupil = config.life.begin(agent, config.world, 0)
    while pupil.step < pupil.total:
        pupil.update()
    pupil.finish()
    return agent


@pytest.mark.parametrize("room", [300, 31])
def test_an_episode_at_once_is_remembered_as_one_that_was_lived_step_by_step(room):
    steps = list(islice(life(3, worlds=1), 60))
    steps[-1] = steps[-1]._replace(truncated=~steps[-1].terminated)  # an episode that is done
    lived, told, episode = Memory(room, steps[0], "cpu"), Memory(room, steps[0], "cpu"), []
    over = False
    for step in steps:
        lived.remember(step)
        if not over:
            episode.append(step)
        over = bool(step.terminated | step.truncated)
        if over or step is steps[-1]:
            obs = torch.stack([episode[0].obs, *(s.next_obs for s in episode)], 1)
            parts = (
                torch.stack([getattr(s, name) for s in episode], 1)
                for name in ("action", "interoception", "terminated")
            )
            told.recollect(Trajectory(obs, *parts, torch.zeros(())))
            episode = []
    for length in (1, 3):
        windows = [m.sample(500, length, torch.Generator().manual_seed(0)) for m in (lived, told)]
        torch.testing.assert_close(*(w._replace(valid=w.lasts) for w in windows), rtol=0, atol=0)
        assert_is_one_stretch(windows[1])
    assert len(lived) == len(told)
    following = steps[0]._replace(obs=steps[-1].next_obs)
    told.remember(following)  # nothing follows on what was lived elsewhere
    assert_is_one_stretch(told.sample(500, 1, torch.Generator().manual_seed(0)))


def test_a_record_is_remembered_as_the_mind_would_have_sensed_it():
    told = record("shore/random-v0", "ami-test/Shore-v0", 4)
    config = ami.recipes.gym(
        WorldConfig(id="ami-test/Shore-v0"), Recorded(minari="shore/random-v0")
    )
    assert config.life.steps == 4 * 6 + 3
    assert isinstance(config.interact, Rehearse)
    memory = remembering(config).memory
    assert len(memory) == 4 * 6
    numbers = memory.episodes()
    with closing(config.world.build(1)) as world:
        for number, buffer in zip(numbers, told, strict=True):
            kept = memory.recall(number)
            obs, _ = world.reset(int(buffer.id))
            for moment in range(6):
                action = world.from_world(buffer.actions[moment][None])
                assert torch.equal(kept.actions[:, moment], action)
                for name, part in by_sense(obs).items():
                    assert torch.equal(by_sense(kept.obs)[name][:, moment], part), name
                lived = world.step(obs, action).transition
                assert torch.equal(kept.interoception[:, moment], lived.interoception)
                assert torch.equal(kept.terminated[:, moment], lived.terminated)
                obs = lived.next_obs
            world.step(obs, action)  # only resets


def test_of_more_than_there_is_room_for_the_last_is_remembered():
    told = record("shore/random-v0", "ami-test/Shore-v0", 4)
    data = Recorded(minari="shore/random-v0", steps=13)
    memory = remembering(offline("ami-test/Shore-v0", data)).memory
    assert len(memory) == 2 * 6
    last = by_sense(memory.recall(memory.episodes()[-1]).obs)["place"][0]
    assert np.array_equal(last.numpy(), told[-1].observations["place"])


def test_nothing_is_lived(tmp_path):
    record("shore/random-v0", "ami-test/Shore-v0", 3)
    config = offline("ami-test/Shore-v0", Recorded(minari="shore/random-v0"), forbidden=True)
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert agent.memory.lived == 3 * 6 + 2
    _, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"), "cpu")
    assert facts["updates"] == 3 + 3 + 6  # episodes, of the world model alone, of all
    assert not (tmp_path / "run" / "memory").exists()


def test_put_away_and_taken_up_again_it_learns_the_same(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 5)
    config = offline("ami-test/Line-v0", Recorded(minari="line/random-v0"), updates=20)
    whole, first = (config.interact.begin(remembering(config), config.world, 2) for _ in range(2))
    for _ in range(20):
        whole.update()
    for _ in range(9):
        first.update()
    checkpoint.save(tmp_path / "put-away", first.state_dict(), {})
    agent = remembering(config)
    second = config.interact.begin(agent, config.world, 2)
    agent.load_state_dict(first.actor.agent.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "put-away", "cpu")[0])
    assert second.step == 9
    for _ in range(11):
        second.update()
    for name, part in whole.actor.agent.state_dict().items():
        assert part.equal(agent.state_dict()[name]), name


def test_a_run_learns_from_what_another_has_lived(tmp_path):
    base = ami.recipes.gym(WorldConfig(id="ami-test/Line-v0"))
    learning = Learning(steps=0, batch=8)
    few = replace(base.objective, learning=learning)
    config = replace(
        base, life=Live(worlds=2, steps=50),
        objective=replace(few, learning=replace(learning, steps=2)),
        interact=replace(base.interact, steps=30, ratio=0.1, learning=learning, objective=few),
    )  # fmt: skip
    one = ami.train(config, out=tmp_path / "one", seed=0, keep_memory=True)
    heir = remembering(offline("ami-test/Line-v0", Recorded(run=str(tmp_path / "one"))))
    assert len(heir.memory) == len(one.memory) > 100
    for mine, theirs in zip(heir.memory.episodes(), one.memory.episodes(), strict=True):
        kept, lived = heir.memory.recall(mine), one.memory.recall(theirs)
        for part, other in zip(kept[:4], lived[:4], strict=True):
            assert torch.equal(part, other)
    ami.train(config, out=tmp_path / "other", seed=0)
    with pytest.raises(UnusableInput, match=r"other has kept no memory.*--keep-memory"):
        offline("ami-test/Line-v0", Recorded(run=str(tmp_path / "other")))
    with pytest.raises(UnusableInput, match=r"trained with \(1,\).*environment here has"):
        offline("Pendulum-v1", Recorded(run=str(tmp_path / "one")))


def test_a_record_can_be_where_life_begins(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 5)
    config = offline("ami-test/Line-v0", Recorded(minari="line/random-v0"))
    learning = Learning(steps=0, batch=8)
    config = replace(config, interact=Interact(
        steps=12, learning=learning, objective=replace(config.objective, learning=learning)
    ))  # fmt: skip
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert agent.memory.lived == config.life.steps + 1 + 12
    batch = agent.memory.sample(500, 1, torch.Generator().manual_seed(0))
    assert (batch.states[:, 1] - batch.states[:, 0]).abs().max() < 0.11  # none joins two lives


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data.minari", "line/none-v0"), "no Minari .*line/none-v0.*there are shore/random-v0"),
        (("--data.minari", "shore/random-v0"), r"observations of dataset .*Dict.*world's are Box"),
        (("--data.run", "nowhere"), "nowhere is no run folder"),
        (("--data.run", "x", "--data.minari", "y"), "not both"),
        (("--data.steps", "-1"), "steps is -1"),
    ],
)  # fmt: skip
def test_data_that_can_not_be_learnt_from_are_refused_in_one_line(flags, said, tmp_path, capsys):
    record("shore/random-v0", "ami-test/Shore-v0", 1)
    told = refuse(
        capsys, "train", "gym", "--env.id", "ami-test/Line-v0", "--out", tmp_path / "run", *flags
    )
    assert re.search(said, told)
    assert not (tmp_path / "run").exists()


def spoilt(part, value):
    def spoil(buffer):
        numbers = getattr(buffer, part).copy()
        numbers[1] = value
        return replace(buffer, **{part: numbers})

    return spoil


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("observations", np.nan, "episode 0 of dataset .*obs holds NaN"),
        ("observations", 7.0, "episode 0 of dataset .*an observation holds 7 .*outside"),
        ("rewards", np.inf, "episode 0 of dataset .*rewards holds NaN or infinity"),
        ("actions", np.nan, "episode 0 of dataset .*actions holds NaN"),
    ],
)
def test_what_was_recorded_badly_is_named(part, value, said, tmp_path):
    record("line/spoilt-v0", "ami-test/Line-v0", 2, spoilt(part, value))
    config = offline("ami-test/Line-v0", Recorded(minari="line/spoilt-v0"))
    config = replace(config, world=replace(config.world, out_of_bounds="refuse"))
    with pytest.raises(UnusableInput, match=said):
        ami.train(config, out=tmp_path / "run")


def test_a_choice_that_there_is_not_is_named(tmp_path):
    record("shore/spoilt-v0", "ami-test/Shore-v0", 2, spoilt("actions", [0, 3]))
    config = offline("ami-test/Shore-v0", Recorded(minari="shore/spoilt-v0"))
    with pytest.raises(UnusableInput, match=r"episode 0 of dataset .*an action is 3, outside"):
        ami.train(config, out=tmp_path / "run")


def test_where_minari_or_its_files_are_missing_it_is_said(tmp_path, monkeypatch):
    def ask():
        return offline("ami-test/Line-v0", Recorded(minari="line/random-v0"))

    with pytest.raises(UnusableInput, match=r"there are none .MINARI_DATASETS_PATH"):
        ask()
    record("line/random-v0", "ami-test/Line-v0", 1)
    (tmp_path / "datasets" / "line" / "random-v0" / "data" / "main_data.hdf5").unlink()
    with pytest.raises(
        UnusableInput, match=r"dataset line/random-v0 can't be read: .*main_data\.hdf5"
    ):
        ask()
    monkeypatch.setitem(sys.modules, "minari", None)  # as if it were not installed
    with pytest.raises(UnusableInput, match=r"pip install 'ami-agent\[minari\]'"):
        ask()


def test_settings_from_before_there_were_records_are_still_read():
    config = ami.recipes.gym(WorldConfig(id="ami-test/Line-v0"))
    written = settings.to_json(config)
    assert written["life"].pop("is") == "Live"
    assert settings.from_json(written, "here") == config


@pytest.mark.long
def test_from_random_life_alone_it_learns_to_stay_where_it_is_rewarded(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 40)
    data = Recorded(minari="line/random-v0")
    config = ami.recipes.gym(WorldConfig(id="ami-test/Line-v0"), data)
    of_model = Predict(
        weights=config.objective.weights, learning=Learning(steps=0, batch=64), length=3
    )
    config = replace(config, interact=Rehearse(updates=400, objective=of_model))
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    found = judge(agent, config.evaluation, episodes=50)
    best = 20 - 0.05 * 20  # at 0 but for the way there
    random = found["plan"]["baselines"]["random"]["return"]["mean"]
    for mode in ("plan", "react"):
        assert found[mode]["return"]["mean"] > max(0.85 * best, random + 3), mode
