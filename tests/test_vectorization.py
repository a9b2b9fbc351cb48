"""However an environment is made and however many are stepped, no two episodes are joined, and an
error in it is reported in one line."""

from __future__ import annotations

from contextlib import closing
from itertools import islice, pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ami_agent.adapters.env import EnvConfig, behaviour_policy, rollout
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.imports import call_function
from ami_agent.adapters.make import ActionRepeat
from ami_agent.evaluation.evaluate import run_many
from ami_agent.evaluation.policies import make_random_policy
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError

OBS_SPACE, ACTION_SPACE = spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Discrete(2)


class Count(gymnasium.Env):
    """Shows its episode and its steps; terminates, or is truncated, after some."""

    observation_space, action_space = OBS_SPACE, ACTION_SPACE
    num_episodes = 0

    def __init__(self, lasts=3, dies=True, fails_at=-1, shows=None) -> None:
        self.lasts, self.dies, self.fails_at, self.shows = lasts, dies, fails_at, shows

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_episodes, self.moment = self.num_episodes + 1, 0
        self.luck = int(self.np_random.integers(1000))
        return self._obs(), {}

    def step(self, action):
        self.moment += 1
        if self.moment == self.fails_at:
            raise RuntimeError("the rope broke")
        done = self.moment == self.lasts
        return self._obs(), float(self.moment), done and self.dies, done and not self.dies, {}

    def _obs(self):
        shown = self.num_episodes if self.shows is None or self.moment < 2 else float(self.shows)
        return np.array([shown, self.moment], np.float32)


class Waits(VectorEnv):
    """The same as a batch that has to be reset (DISABLED)."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs=1) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBS_SPACE, ACTION_SPACE
        self.observation_space, self.action_space = (
            batch_space(space, num_envs) for space in (OBS_SPACE, ACTION_SPACE)
        )
        self.num_episodes, self.moment = np.zeros(num_envs), np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.num_episodes, self.moment = self.num_episodes + mask, np.where(mask, 0, self.moment)
        return self._obs(), {"success": np.zeros(self.num_envs, bool)}

    def step(self, actions):
        self.moment = self.moment + 1
        done = self.moment == 3 + np.arange(self.num_envs)
        return self._obs(), self.moment.copy(), done, np.zeros_like(done), {"success": done}

    def _obs(self):
        return np.stack([self.num_episodes, self.moment], 1).astype(np.float32)


class Joined(Waits):
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012


def strict(num_envs=1):
    """Gymnasium's own that has to be reset: it refuses to step what has ended."""
    return SyncVectorEnv([Count] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class OldStyle(Count):
    def step(self, action):
        return super().step(action)[:4]


KINDS = {"Count": Count, "OldStyle": OldStyle}


@pytest.fixture(autouse=True, scope="module")
def _known():
    for name, kind in KINDS.items():
        gymnasium.register(f"ami-test/{name}-v0", entry_point=kind)
    for batch in (Waits, Joined):
        gymnasium.register(f"ami-test/{batch.__name__}-v0", vector_entry_point=batch)
    gymnasium.register("ami-test/Strict-v0", vector_entry_point=strict)
    yield
    for name in (*KINDS, "Waits", "Joined", "Strict"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def collect_data(env, steps, seed=0):
    with closing(env):
        obs, _ = env.reset(seed)
        return list(islice(rollout(behaviour_policy(env), env, obs), steps))


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig(id="ami-test/Count-v0"),
        EnvConfig(id="ami-test/Count-v0", options={"dies": False}),
        EnvConfig(id="ami-test/Count-v0", vectorization_mode="sync", max_episode_steps=2),
        EnvConfig(id="ami-test/Count-v0", vectorization_mode="async"),
        EnvConfig(id="ami-test/Waits-v0"),
        EnvConfig(id="ami-test/Strict-v0"),
    ],
    ids=str,
)
def test_the_replay_buffer_never_joins_two_episodes(config):
    env = config.build(3)
    steps = collect_data(env, 40)
    for step, following in pairwise(steps):
        is_first = step.done
        assert not following.transition.interoception[is_first].any()
        assert not following.done[is_first].any()
    memory = ReplayBuffer(40, steps[0].transition, "cpu")
    for step in steps:
        memory.add(step.transition)
    batch = memory.sample(600, 1, torch.Generator().manual_seed(0))
    before, after = batch.states[:, 0], batch.states[:, 1]
    assert torch.equal(before[:, 0], after[:, 0])  # the same episode
    assert torch.equal(before[:, 1] + 1, after[:, 1])  # the next step
    assert torch.equal(batch.interoception[:, 0, 0], after[:, 1])  # its interoception came with it
    lasts = 2 if config.max_episode_steps else 3
    dies = not config.max_episode_steps and config.options.get("dies", True)
    if config.id.endswith("Count-v0"):
        assert torch.equal(batch.terminated[:, 0], (after[:, 1] == lasts) & dies)
        assert after[:, 1].max() == lasts


def test_cartpole_stepped_in_batches_gives_the_episodes_of_cartpole_stepped_alone():
    ways = ("auto", "sync")
    found = [
        collect_data(EnvConfig(id="CartPole-v1", vectorization_mode=way).build(2), 60)
        for way in ways
    ]
    ends = [torch.stack([step.transition.terminated for step in steps]) for steps in found]
    assert all(end.any() for end in ends)
    for steps in found:
        for step, following in pairwise(steps):
            is_first = step.transition.terminated
            moved = following.transition.next_obs - following.transition.obs
            assert (moved[~is_first].abs() < 1).all()


def test_the_final_observation_of_an_episode_is_not_lost_in_a_reset():
    results = run_many(make_random_policy, EnvConfig(id="ami-test/Waits-v0"), 3, 0, "cpu")
    assert results.length.tolist() == [3, 4, 5]
    assert results.success.tolist() == [1, 1, 1]
    assert results.final_success.tolist() == [1, 1, 1]
    unknown = run_many(make_random_policy, EnvConfig(id="ami-test/Count-v0"), 3, 0, "cpu")
    assert unknown.success.isnan().all()
    assert unknown.signal_sums[:, 0].tolist() == [1 + 2 + 3] * 3


def test_a_truncation_is_no_termination_and_only_the_terminal_channel_shows_one():
    env = EnvConfig(id="ami-test/Count-v0", max_episode_steps=2, terminal_channel=True).build(1)
    assert env.spec.interoception == ("reward", "alive")
    first, last, *_ = collect_data(env, 3)
    assert last.transition.truncated.item()
    assert not last.transition.terminated.item()
    assert first.transition.interoception.tolist() == [[1, 1]]
    assert last.transition.interoception.tolist() == [[2, 1]]
    dead = collect_data(EnvConfig(id="ami-test/Count-v0", terminal_channel=True).build(1), 3)[-1]
    assert dead.transition.interoception.tolist() == [[3, 0]]


def test_a_repeated_action_adds_up_its_rewards_and_ends_with_the_episode():
    env = EnvConfig(id="ami-test/Count-v0", action_repeat=2).build(1)
    first, second = collect_data(env, 2)
    assert first.transition.interoception.item() == 1 + 2
    assert second.transition.interoception.item() == 3
    assert second.transition.terminated.item()


def test_what_is_reported_while_an_action_is_held_is_not_lost():
    class Rings(gymnasium.Wrapper):
        def step(self, action):
            *found, _ = self.env.step(action)
            return *found, {"rings": found[1]} if found[1] == 1 else {}

    env = ActionRepeat(Rings(gymnasium.make("ami-test/Count-v0")), 2)
    env.reset(seed=0)
    action = env.action_space.sample()
    assert env.step(action)[-1] == {"rings": 1}
    assert env.step(action)[-1] == {}


def test_frames_are_stacked_the_latest_last():
    env = EnvConfig(id="ami-test/Count-v0", frame_stack=3).build(1)
    assert env.spec.shapes == {"obs": (6,)}
    observed = [step.transition.next_obs[0].tolist() for step in collect_data(env, 2)]
    assert observed[1][1::2] == [0, 1, 2]


def test_the_seed_decides_the_episode_in_every_vectorization_mode():
    def drawn(vector, seed):
        return collect_data(
            EnvConfig(id="Pendulum-v1", vectorization_mode=vector).build(2), 5, seed
        )[-1].transition

    for vector in ("sync", "async"):
        one, same, other = drawn(vector, 7), drawn("sync", 7), drawn(vector, 8)
        assert torch.equal(one.next_obs, same.next_obs)
        assert not torch.equal(one.next_obs, other.next_obs)


def test_environments_of_a_file_are_registered_by_its_import(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "import gymnasium\n"
        "gymnasium.register('ami-test/Own-v0', entry_point='gymnasium.envs.classic_control:"
        "PendulumEnv', max_episode_steps=9)\n"
    )
    with pytest.raises(ConfigError, match=r"Own.*--env\.import"):
        EnvConfig(id="ami-test/Own-v0").build(1)
    assert EnvConfig(id="ami-test/Own-v0", imports=(str(own),)).build(1).spec.action_dim == 1
    del gymnasium.registry["ami-test/Own-v0"]


@pytest.mark.parametrize("raised", ["Odd('so')", "KeyboardInterrupt", "SystemExit(3)", "1 / 0"])
def test_whatever_a_file_raises_is_named_with_its_line(tmp_path, raised):
    own = tmp_path / "own.py"
    own.write_text(f"class Odd(BaseException): pass\nraise {raised}\n")
    with pytest.raises(ConfigError, match=r"own\.py' can't be imported: .*\(own\.py:2\)"):
        EnvConfig(id="CartPole-v1", imports=(str(own),)).build(1)
    own.write_text(f"class Odd(BaseException): pass\ndef make():\n    raise {raised}\n")
    with pytest.raises(ConfigError, match=r"failed: .*\(own\.py:3\)"):
        call_function(f"{own}:make", "anything")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            EnvConfig(id="CartPole-v1", imports=("no_such_module",)),
            "'no_such_module' can't be imp",
        ),
        (EnvConfig(id="CartPole-v1", imports=("no_such.py",)), "no file no_such.py"),
        (EnvConfig(id="ami-test/Count-v0", options={"colour": 3}), "can't be made.*colour"),
        (EnvConfig(id="not an id"), "can't be made"),
    ],
)
def test_envs_that_can_not_be_made_are_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        config.build(2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vector", ["sync", "async"])
def test_an_env_that_fails_within_an_episode_is_reported(vector):
    config = EnvConfig(id="ami-test/Count-v0", vectorization_mode=vector, options={"fails_at": 2})
    with pytest.raises(EnvError, match=r"failed in step: RuntimeError: .*the rope broke"):
        collect_data(config.build(2), 3)


@pytest.mark.filterwarnings("ignore")  # Gymnasium warns about such environments
def test_an_env_of_the_old_interface_and_one_outside_its_space_are_reported_apart():
    with pytest.raises(EnvError, match=r"failed in step: .*`info` returned"):
        collect_data(EnvConfig(id="ami-test/OldStyle-v0").build(1), 1)
    for shown, message in ((np.nan, "holds NaN"), (5e6, "holds 5e.06.* outside its space")):
        config = EnvConfig(
            id="ami-test/Count-v0", options={"shows": str(shown)}, out_of_bounds="refuse"
        )
        with pytest.raises(EnvError, match=message):
            collect_data(config.build(1), 3)


@pytest.mark.parametrize(
    "output", [{"max_episode_steps": 30}, {"action_repeat": 2}, {"frame_stack": 2}]
)
def test_wrappers_that_hide_the_reference_policies_are_refused_unless_requested(output):
    with pytest.raises(ConfigError, match=r"one by one, without the ref.*max_episode_steps 30"):
        EnvConfig(id="ami/TwoRooms-v0", **output).build(2)
    EnvConfig(id="ami/TwoRooms-v0", vectorization_mode="sync", **output).build(2).close()
    EnvConfig(id="CartPole-v1", **output).build(
        2
    ).close()  # has a vector version, and nothing to hide


@pytest.mark.parametrize("text", ["raise ValueError('oh')", "import sys; sys.exit(0)"])
def test_a_function_of_the_users_own_that_fails_is_reported_in_one_line(tmp_path, text):
    file = tmp_path / "own.py"
    file.write_text(f"def make():\n    {text}\n")
    with pytest.raises(ConfigError, match=r"own\.py:make failed: (ValueError: oh|SystemExit: 0)"):
        call_function(f"{file}:make", "settings")
    file = tmp_path / "other_own.py"
    file.write_text(text)
    for _ in range(2):  # the second error is not cut in half
        with pytest.raises(ConfigError, match=r"own\.py' can't be imported: (Value|SystemExit)"):
            call_function(f"{file}:make", "settings")
    with pytest.raises(ConfigError, match=r"'foo' must be FILE\.py:FUNCTION"):
        call_function("foo", "settings")
