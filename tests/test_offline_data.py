"""Offline training: data of others are stored unchanged, and no step is taken."""

from __future__ import annotations

import re
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from inspect import signature
from itertools import islice

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import buffer_steps, build, override
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.storage import checkpoint
from ami_agent.training import (
    CollectBehaviour,
    LoadDataset,
    OfflineActorCritic,
    OnlineActorCritic,
    TrainJEPA,
)
from ami_agent.training.optim import OptimConfig
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError, Trajectory, as_dict
from tests.conftest import error_line
from tests.test_goal_env import ENV as PLANE
from tests.test_replay_buffer import assert_is_one_window, random_steps

minari = pytest.importorskip("minari", reason="the extra `minari` is not installed")


class Shore(gymnasium.Env):
    """Numbers, an image and a switch; two choices at once. Stepping it may be forbidden."""

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
        self.moment, self.checkpoint_dir = 0, self.np_random.uniform(-1, 1, 2)
        return self._obs(), {}

    def step(self, action):
        assert not self.forbidden
        self.moment += 1
        self.checkpoint_dir += np.array([0.2 * action[0] - 0.1, 0.1 * action[1] - 0.1])
        is_done = self.moment == self.lasts
        return self._obs(), float(action[1]), is_done, False, {}

    def _obs(self):
        view = np.full((9, 12, 3), 20 * self.moment, np.uint8)
        return {"place": self.checkpoint_dir.copy(), "view": view, "lit": self.moment % 2}


class Line(gymnasium.Env):
    """A position on a line; being near 0 is rewarded."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, forbidden=False) -> None:
        self.forbidden = forbidden

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.checkpoint_dir = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.checkpoint_dir], np.float32), {}

    def step(self, action):
        assert not self.forbidden
        self.checkpoint_dir += 0.1 * float(action[0])
        is_done = abs(self.checkpoint_dir) > 1
        return (
            np.array([self.checkpoint_dir], np.float32),
            1 - abs(self.checkpoint_dir),
            is_done,
            False,
            {},
        )


@pytest.fixture(autouse=True)
def _known(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    gymnasium.register("ami-test/Shore-v0", entry_point=Shore)
    gymnasium.register("ami-test/Line-v0", entry_point=Line, max_episode_steps=20)
    yield
    for name in ("Shore", "Line"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def stacked(space, projected_steps):
    if isinstance(space, spaces.Dict):
        return {
            name: np.stack([projected_step[name] for projected_step in projected_steps])
            for name in space
        }
    return np.stack(projected_steps)


def record(name, env_id, episodes, spoil=lambda buffer: buffer):
    """Some episodes of random actions, written by Minari; their observations, unchanged."""
    env, output = gymnasium.make(env_id), []
    env.action_space.seed(0)
    for number in range(episodes):
        observed, steps, is_done = [env.reset(seed=number)[0]], [], False
        while not is_done:
            action = env.action_space.sample()
            obs, reward, ended, late, _ = env.step(action)
            observed.append(obs)
            steps.append((action, reward, ended, late))
            is_done = ended or late
        done, interoception, ends, lates = (np.array(part) for part in zip(*steps, strict=True))
        output.append(spoil(minari.data_collector.EpisodeBuffer(
            id=number, observations=stacked(env.observation_space, observed), actions=done,
            rewards=interoception, terminations=ends, truncations=lates,
        )))  # fmt: skip
    make = minari.create_dataset_from_buffers
    exact = {"jpeg_encoding": False} if "jpeg_encoding" in signature(make).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it requires an author
        make(
            name, output, observation_space=env.observation_space, action_space=env.action_space,
            **exact,
        )  # fmt: skip
    return output


def offline(env_id, data, updates=6, **options):
    """Tiny; stepping the training environment may be forbidden, not the evaluation one."""
    optim = OptimConfig(steps=0, batch_size=8)
    config = ami.recipes.gym(EnvConfig(id=env_id), data)
    return override(
        config,
        {
            "env.options": options,
            "stages.train_jepa.optim": replace(optim, steps=3),
            "stages.actor_critic.updates": updates,
            "stages.actor_critic.optim": optim,
            "stages.actor_critic.train_jepa": replace(config.stages["train_jepa"], optim=optim),
        },
    )


def remembering(config):
    """An agent that has completed the first stage."""
    with closing(config.env.build(1)) as env:
        agent = build(
            config,
            env.spec,
            num_envs=config.stages["collect"].num_envs,
            buffer_size=buffer_steps(config),
        )
    stage_run = config.stages["collect"].start(agent, config.env, 0)
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()
    return agent


@pytest.mark.parametrize("room", [300, 31])
def test_an_episode_added_at_once_is_stored_as_one_collected_step_by_step(room):
    steps = list(islice(random_steps(3, num_envs=1), 60))
    steps[-1] = steps[-1]._replace(truncated=~steps[-1].terminated)  # an episode that has ended
    collected, output, episode = (
        ReplayBuffer(room, steps[0], "cpu"),
        ReplayBuffer(room, steps[0], "cpu"),
        [],
    )
    is_done = False
    for step in steps:
        collected.add(step)
        if not is_done:
            episode.append(step)
        is_done = bool(step.terminated | step.truncated)
        if is_done or step is steps[-1]:
            obs = torch.stack([episode[0].obs, *(s.next_obs for s in episode)], 1)
            parts = (
                torch.stack([getattr(s, name) for s in episode], 1)
                for name in ("action", "interoception", "terminated")
            )
            output.add_episode(Trajectory(obs, *parts, torch.zeros(())))
            episode = []
    for length in (1, 3):
        windows = [
            m.sample(500, length, torch.Generator().manual_seed(0)) for m in (collected, output)
        ]
        torch.testing.assert_close(
            *(w._replace(valid=w.num_valid) for w in windows), rtol=0, atol=0
        )
        assert_is_one_window(windows[1])
    assert len(collected) == len(output)
    following = steps[0]._replace(obs=steps[-1].next_obs)
    output.add(following)  # nothing continues an episode that was collected elsewhere
    assert_is_one_window(output.sample(500, 1, torch.Generator().manual_seed(0)))


def test_a_dataset_is_stored_as_the_agent_would_have_observed_it():
    output = record("shore/random-v0", "ami-test/Shore-v0", 4)
    config = ami.recipes.gym(
        EnvConfig(id="ami-test/Shore-v0"), LoadDataset(minari="shore/random-v0")
    )
    assert config.stages["collect"].steps == 4 * 6 + 3
    assert isinstance(config.stages["actor_critic"], OfflineActorCritic)
    memory = remembering(config).replay_buffer
    assert len(memory) == 4 * 6
    numbers = memory.episode_ids()
    with closing(config.env.build(1)) as env:
        for number, buffer in zip(numbers, output, strict=True):
            kept = memory.get_episode(number)
            obs, _ = env.reset(int(buffer.id))
            for projected_step in range(6):
                action = env.from_env(buffer.actions[projected_step][None])
                assert torch.equal(kept.actions[:, projected_step], action)
                for name, part in as_dict(obs).items():
                    assert torch.equal(as_dict(kept.obs)[name][:, projected_step], part), name
                collected = env.step(obs, action).transition
                assert torch.equal(kept.interoception[:, projected_step], collected.interoception)
                assert torch.equal(kept.terminated[:, projected_step], collected.terminated)
                obs = collected.next_obs
            env.step(obs, action)  # only resets


def test_of_more_steps_than_there_is_room_for_the_last_are_stored():
    output = record("shore/random-v0", "ami-test/Shore-v0", 4)
    data = LoadDataset(minari="shore/random-v0", steps=13)
    memory = remembering(offline("ami-test/Shore-v0", data)).replay_buffer
    assert len(memory) == 2 * 6
    last = as_dict(memory.get_episode(memory.episode_ids()[-1]).obs)["place"][0]
    assert np.array_equal(last.numpy(), output[-1].observations["place"])


def test_no_step_is_collected(tmp_path):
    record("shore/random-v0", "ami-test/Shore-v0", 3)
    config = offline("ami-test/Shore-v0", LoadDataset(minari="shore/random-v0"), forbidden=True)
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert agent.replay_buffer.num_added == 3 * 6 + 2
    _, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"), "cpu")
    assert facts["updates"] == 3 + 3 + 6  # episodes, of the world model alone, of all
    assert not (tmp_path / "run" / "memory").exists()


def test_saved_and_restored_it_learns_the_same(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 5)
    config = offline("ami-test/Line-v0", LoadDataset(minari="line/random-v0"), updates=20)
    whole, first = (
        config.stages["actor_critic"].start(remembering(config), config.env, 2) for _ in range(2)
    )
    for _ in range(20):
        whole.update()
    for _ in range(9):
        first.update()
    checkpoint.save(tmp_path / "put-away", first.state_dict(), {})
    agent = remembering(config)
    second = config.stages["actor_critic"].start(agent, config.env, 2)
    agent.load_state_dict(first.actor.agent.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "put-away", "cpu")[0])
    assert second.step == 9
    for _ in range(11):
        second.update()
    for name, part in whole.actor.agent.state_dict().items():
        assert part.equal(agent.state_dict()[name]), name


def test_a_run_learns_from_the_steps_of_another(tmp_path):
    base = ami.recipes.gym(EnvConfig(id="ami-test/Line-v0"))
    optim = OptimConfig(steps=0, batch_size=8)
    few = replace(base.stages["train_jepa"], optim=optim)
    config = override(
        base,
        {
            "stages.collect": CollectBehaviour(num_envs=2, steps=50),
            "stages.train_jepa": replace(few, optim=replace(optim, steps=2)),
            "stages.actor_critic.steps": 30,
            "stages.actor_critic.updates_per_step": 0.1,
            "stages.actor_critic.optim": optim,
            "stages.actor_critic.train_jepa": few,
        },
    )
    one = ami.train(config, out=tmp_path / "one", seed=0, keep_replay_buffer=True)
    heir = remembering(offline("ami-test/Line-v0", LoadDataset(run=str(tmp_path / "one"))))
    assert len(heir.replay_buffer) == len(one.replay_buffer) > 100
    for mine, theirs in zip(
        heir.replay_buffer.episode_ids(), one.replay_buffer.episode_ids(), strict=True
    ):
        kept, collected = (
            heir.replay_buffer.get_episode(mine),
            one.replay_buffer.get_episode(theirs),
        )
        for part, other in zip(kept[:4], collected[:4], strict=True):
            assert torch.equal(part, other)
    ami.train(config, out=tmp_path / "other", seed=0)
    with pytest.raises(ConfigError, match=r"other has kept no replay buffer.*--keep-replay-buffer"):
        offline("ami-test/Line-v0", LoadDataset(run=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"trained with \(1,\).*environment here has"):
        offline("Pendulum-v1", LoadDataset(run=str(tmp_path / "one")))


def test_recorded_episodes_of_a_goal_environment_are_learnt_from_without_their_desired_goals():
    output = record("plane/random-v0", PLANE, 3)
    config = ami.recipes.goals(EnvConfig(id=PLANE), LoadDataset(minari="plane/random-v0"))
    assert config.env.goal_from_obs
    memory = remembering(config).replay_buffer
    for number, buffer in zip(memory.episode_ids(), output, strict=True):
        kept = as_dict(memory.get_episode(number).obs)
        assert set(kept) == {"achieved_goal", "observation"}
        achieved = torch.as_tensor(buffer.observations["achieved_goal"])
        torch.testing.assert_close(kept["achieved_goal"][0, :4], achieved[:4])


def test_a_dataset_may_precede_collection(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 5)
    config = offline("ami-test/Line-v0", LoadDataset(minari="line/random-v0"))
    optim = OptimConfig(steps=0, batch_size=8)
    config = override(config, {"stages.actor_critic": OnlineActorCritic(
        steps=12, optim=optim, train_jepa=replace(config.stages["train_jepa"], optim=optim)
    )})  # fmt: skip
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert agent.replay_buffer.num_added == config.stages["collect"].steps + 1 + 12
    batch = agent.replay_buffer.sample(500, 1, torch.Generator().manual_seed(0))
    assert (batch.states[:, 1] - batch.states[:, 0]).abs().max() < 0.11  # none joins two episodes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.minari", "line/none-v0"), "no Minari .*line/none-v0.*there are shore/random-v0"),
        (("--data.minari", "shore/random-v0"), r"of dataset .*Dict.*environment's are Box"),
        (("--data.run", "nowhere"), "nowhere is not a run folder"),
        (("--data.run", "x", "--data.minari", "y"), "not both"),
        (("--data.steps", "-1"), "steps is -1"),
    ],
)  # fmt: skip
def test_data_that_can_not_be_learnt_from_are_refused_in_one_line(flags, message, tmp_path, capsys):
    record("shore/random-v0", "ami-test/Shore-v0", 1)
    output = error_line(
        capsys, "train", "gym", "--env.id", "ami-test/Line-v0", "--out", tmp_path / "run", *flags
    )
    assert re.search(message, output)
    assert not (tmp_path / "run").exists()


def corrupted(part, value):
    def spoil(buffer):
        numbers = getattr(buffer, part).copy()
        numbers[1] = value
        return replace(buffer, **{part: numbers})

    return spoil


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "observations",
            np.nan,
            r"episode 0 of dataset \S+: observations holds NaN or .* at step 1",
        ),
        ("observations", 7.0, "episode 0 of dataset .*observation holds 7 .*outside"),
        ("rewards", np.inf, "episode 0 of dataset .*rewards holds NaN or infinity at step 1"),
        ("actions", np.nan, "episode 0 of dataset .*actions holds NaN or infinity at step 1"),
    ],
)
def test_invalid_data_are_named(part, value, message, tmp_path):
    record("line/spoilt-v0", "ami-test/Line-v0", 2, corrupted(part, value))
    config = offline("ami-test/Line-v0", LoadDataset(minari="line/spoilt-v0"))
    config = replace(config, env=replace(config.env, out_of_bounds="refuse"))
    with pytest.raises(ConfigError, match=message):
        ami.train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_action_outside_the_space_is_named(tmp_path):
    record("shore/spoilt-v0", "ami-test/Shore-v0", 2, corrupted("actions", [0, 3]))
    config = offline("ami-test/Shore-v0", LoadDataset(minari="shore/spoilt-v0"))
    with pytest.raises(ConfigError, match=r"episode 0 of dataset .*an action is 3, outside"):
        ami.train(config, out=tmp_path / "run")


def test_a_missing_minari_or_dataset_is_reported(tmp_path, monkeypatch):
    def run_cli():
        return offline("ami-test/Line-v0", LoadDataset(minari="line/random-v0"))

    with pytest.raises(ConfigError, match=r"there are none .MINARI_DATASETS_PATH"):
        run_cli()
    record("line/random-v0", "ami-test/Line-v0", 1)
    (tmp_path / "datasets" / "line" / "random-v0" / "data" / "main_data.hdf5").unlink()
    with pytest.raises(
        ConfigError, match=r"dataset line/random-v0 can't be read: .*main_data\.hdf5"
    ):
        run_cli()
    monkeypatch.setitem(sys.modules, "minari", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'ami-agent\[minari\]'"):
        run_cli()


@pytest.mark.long
def test_from_random_episodes_alone_it_learns_to_stay_where_it_is_rewarded(tmp_path):
    record("line/random-v0", "ami-test/Line-v0", 40)
    data = LoadDataset(minari="line/random-v0")
    config = ami.recipes.gym(EnvConfig(id="ami-test/Line-v0"), data)
    of_model = TrainJEPA(
        weights=config.stages["train_jepa"].weights,
        optim=OptimConfig(steps=0, batch_size=64),
        length=3,
    )
    config = override(
        config, {"stages.actor_critic": OfflineActorCritic(updates=400, train_jepa=of_model)}
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    found = evaluate_modes(agent, config.eval_env, episodes=50)
    best = 20 - 0.05 * 20  # at 0 but for the way there
    random = found["plan"]["baselines"]["random"]["return"]["mean"]
    for mode in ("plan", "react"):
        assert found[mode]["return"]["mean"] > max(0.85 * best, random + 3), mode
