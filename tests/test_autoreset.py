"""A batch may reset its sub-environments with the next step, within the step or not at all: the
replay buffer holds the same transitions, and a batch that does not do what it declares is refused
in one line."""

from __future__ import annotations

from contextlib import closing
from enum import Enum
from functools import partial
from itertools import islice, pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ami_agent.adapters.env import EnvConfig, behaviour_policy, rollout
from ami_agent.adapters.fault_tolerance import EnvError, EpisodesRestarted, WorkerDied
from ami_agent.evaluation.evaluate import run_many
from ami_agent.evaluation.policies import make_random_policy
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError

OBS, ACTION = spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Discrete(2)
MODES = tuple(mode.value for mode in AutoresetMode)


class Episode(gymnasium.Env):
    """Shows the number of its episode and of its step; the seed decides how long episodes last."""

    observation_space, action_space = OBS, ACTION

    def __init__(self, as_dict=False) -> None:
        self.as_dict, self.episodes = as_dict, 0
        if as_dict:
            self.observation_space = spaces.Dict(here=OBS, there=spaces.Discrete(3))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.steps = self.episodes + 1, 0
        self.lasts = int(self.np_random.integers(1, 5))
        return self._obs(), {"success": 0.0, "goal": self.episodes}

    def step(self, action):
        self.steps += 1
        done = self.steps == self.lasts
        info = {"success": float(done), "goal": self.episodes}
        return self._obs(), 10.0 + self.steps, done, False, info

    def _obs(self):
        here = np.array([self.episodes, self.steps], np.float32)
        return {"here": here, "there": self.steps % 3} if self.as_dict else here


class Simulator(VectorEnv):
    """A batch of no class of Gymnasium, which may not declare its mode or declare another."""

    def __init__(self, envs, declared, old_names) -> None:
        self.envs, self.old_names, self.num_envs = envs, old_names, envs.num_envs
        self.metadata = {"autoreset_mode": declared} if declared else {}
        self.single_observation_space = envs.single_observation_space
        self.single_action_space = envs.single_action_space
        self.observation_space, self.action_space = envs.observation_space, envs.action_space

    def reset(self, *, seed=None, options=None):
        return self.envs.reset(seed=seed, options=options)

    def step(self, actions):
        *found, info = self.envs.step(actions)
        if self.old_names and "final_obs" in info:
            info["final_observation"], info["_final_observation"] = (
                info.pop(n) for n in ("final_obs", "_final_obs")
            )
            last = info["final_info"]
            pairs = zip(last["success"], last["goal"], strict=True)
            each = [{"success": success, "goal": goal} for success, goal in pairs]
            info["final_info"] = np.array(each, dtype=object)
        return *found, info


class Other(Enum):
    SAME_STEP = 1


def batch(num_envs=1, mode="NextStep", declared=None, kind="sync", as_dict=False, old=False):
    """`declared`: its mode as declared; None: a batch of Gymnasium; "itself": the true mode."""
    mode = AutoresetMode(mode)
    types = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
    envs = types[kind]([partial(Episode, as_dict)] * num_envs, autoreset_mode=mode)
    enums = {"itself": mode, "other": Other.SAME_STEP}
    return envs if declared is None else Simulator(envs, enums.get(declared, declared), old)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    gymnasium.register("ami-test/Batch-v0", vector_entry_point=batch)
    gymnasium.register("ami-test/Episode-v0", entry_point=Episode)
    yield
    for name in ("Batch", "Episode"):
        del gymnasium.registry[f"ami-test/{name}-v0"]


def config(**options):
    return EnvConfig(id="ami-test/Batch-v0", options=options)


def steps_of(config, count, steps, seed=3):
    with closing(config.build(count)) as env:
        obs, _ = env.reset(seed)
        return list(islice(rollout(behaviour_policy(env), env, obs), steps))


def transitions(config, count=1, steps=30):
    """What is stored, and what the info said about it."""
    found = steps_of(config, count, steps)
    return [
        [*(part.tolist() for part in step.transition[2:]), *map(list, _reports(step))]
        for step in found
    ]


def _reports(step):
    return step.info["success"], step.info["goal"]


REFERENCE = EnvConfig(id="ami-test/Episode-v0", vectorization_mode="sync")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_gymnasium_batches_of_every_autoreset_mode_give_the_same_transitions(kind, mode):
    expected = transitions(REFERENCE, 3)
    assert transitions(config(mode=mode, kind=kind), 3) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("declares", [True, False])
def test_other_batches_of_one_give_the_same_transitions_declared_or_not(mode, declares):
    if mode == "Disabled" and not declares:
        return  # such a batch refuses to be stepped after an end: nothing is stored by mistake
    declared = "itself" if declares else ""
    assert transitions(config(mode=mode, declared=declared)) == transitions(REFERENCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("as_dict", [False, True])
def test_no_transition_joins_two_episodes_in_batches_of_several(mode, as_dict):
    built = config(mode=mode, declared="itself", as_dict=as_dict).build(3)
    with closing(built) as env:
        memory, found = None, []
        while len(found) < 60:
            obs, _ = env.reset(3)
            try:
                for step in rollout(behaviour_policy(env), env, obs):
                    memory = memory or ReplayBuffer(200, step.transition, "cpu")
                    memory.add(step.transition)
                    found.append(step)
                    if len(found) >= 60:
                        break
            except EpisodesRestarted as restarted:
                if isinstance(restarted, WorkerDied):  # no worker died
                    raise
                memory.break_episodes()
    sampled = memory.sample(900, 1, torch.Generator().manual_seed(0))
    states = sampled.obs["here"] if as_dict else sampled.obs
    before, after = states[:, 0], states[:, 1]
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1] + 1, after[:, 1])
    assert torch.equal(sampled.interoception[:, 0, 0], 10 + after[:, 1])
    assert sampled.terminated.any()
    assert before[:, 1].min() == 0  # episodes begin with the observation of the reset
    for step, following in pairwise(found[-20:]):
        assert not following.done[step.done].any()


def test_names_of_gymnasium_before_1_0_are_read_too():
    same = config(mode="SameStep", declared="", old=True)
    found = steps_of(same, 1, 30)
    for step, expected in zip(found, steps_of(REFERENCE, 1, 30), strict=True):
        for part, other in zip(step.transition, expected.transition, strict=True):
            assert torch.equal(part, other) or part is step.transition.action
        assert step.info["success"][0] == expected.info["success"][0]


@pytest.mark.parametrize("count", [1, 4])
def test_evaluation_is_the_same_in_every_autoreset_mode(count):
    found = [
        run_many(make_random_policy, c, count, 0, "cpu")
        for c in (REFERENCE, *(config(mode=m, declared="itself") for m in MODES))
    ]
    for results in found[1:]:
        for part, other in zip(results, found[0], strict=True):
            torch.testing.assert_close(part, other, equal_nan=True)
    assert found[0].final_success.tolist() == [1] * count


@pytest.mark.parametrize("declared", ["SameStep", "same_step", "AutoresetMode.SAME_STEP", "other"])
def test_a_mode_is_declared_by_its_name_its_value_or_an_enum(declared):
    same = config(mode="SameStep", declared=declared)
    assert transitions(same, 1) == transitions(REFERENCE, 1)


@pytest.mark.parametrize(
    ("mode", "declared", "message"),
    [
        ("SameStep", "NextStep", r"declares autoreset_mode NextStep, but its final_obs"),
        ("SameStep", "Disabled", r"declares autoreset_mode Disabled, but its final_obs"),
        ("NextStep", "SameStep", r"declares autoreset_mode SameStep, but gives no final_obs"),
        ("NextStep", "sometimes", r"declares autoreset_mode 'sometimes'.*NextStep, SameStep, Dis"),
    ],
)
def test_a_batch_that_declares_one_mode_and_does_another_is_refused(mode, declared, message):
    with pytest.raises(ConfigError, match=message) as raised:
        steps_of(config(mode=mode, declared=declared), 1, 30)
    assert "\n" not in str(raised.value)


class Silent(VectorEnv):
    """Resets within the step without saying so; or resets all where a mask names one."""

    def __init__(self, num_envs=1, disabled=False) -> None:
        self.num_envs, self.disabled = num_envs, disabled
        self.metadata = {"autoreset_mode": "Disabled"} if disabled else {}
        self.single_observation_space, self.single_action_space = OBS, ACTION
        self.observation_space = batch_space(OBS, num_envs)
        self.action_space = batch_space(ACTION, num_envs)
        self.at = np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        self.at = -np.arange(self.num_envs)
        return self._obs(), {}

    def step(self, actions):
        self.at = self.at + 1
        done = self.at == 4
        if not self.disabled:
            self.at[done] = 0
        return self._obs(), np.ones(self.num_envs), done, np.zeros_like(done), {}

    def _obs(self):
        return np.stack([self.at, self.at], 1).astype(np.float32)


@pytest.mark.parametrize(
    ("disabled", "count", "message"),
    [
        (False, 1, "declares no mode, but the step after an episode's end gives reward 1"),
        (True, 2, r"Disabled, but its reset changes sub-environments that .*reset_mask"),
    ],
)
def test_a_batch_that_shows_final_observations_only_in_the_next_step_is_refused(
    disabled, count, message
):
    gymnasium.register("ami-test/Silent-v0", vector_entry_point=Silent)
    try:
        with pytest.raises(EnvError, match=message):
            steps_of(EnvConfig(id="ami-test/Silent-v0", options={"disabled": disabled}), count, 9)
    finally:
        del gymnasium.registry["ami-test/Silent-v0"]
