"""Infos count for their own environment alone, at the steps at which they report something."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import ami_agent as ami
from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.vector_env import read_numbers
from ami_agent.bench.sb3 import (
    PlainSpaceWrapper,
    RawEnvAdapter,
    check_action,
    plain_actions,
    plain_observations,
)
from ami_agent.config import build
from ami_agent.evaluation.evaluate import EpisodeResults, run_episodes, run_many, summarize
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker, make_random_policy
from modules.configurator import TaskSpec
from modules.types import ConfigError

f32 = np.float32


class RunLogger(gymnasium.Env):
    """Ends after 4 steps; its seed says whether it succeeds, its options what it reports."""

    observation_space = spaces.Box(-10, 10, (1,), f32)
    action_space = spaces.Box(-1, 1, (1,), f32)

    def __init__(self, how="always", key="is_success"):
        self.how, self.key = how, key

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.good = 0, (seed or 0) % 2 == 0
        return np.zeros(1, f32), {}

    def step(self, action):
        self.t += 1
        done = self.good and self.t >= 2
        reports = {
            "always": {self.key: done},
            "successes": {self.key: True} if done and self.t == 2 else {},
            "last": {self.key: done} if self.t == 4 else {},
            "numbers": {self.key: f32(done)},
            "arrays": {self.key: np.array([done])},
            "lists of one": {self.key: [done]},
            "tensors": {self.key: torch.tensor(done)},
            "kinds": {self.key: done if self.good else 0, "path": np.zeros(2 + self.good)},
            "objects": {self.key: done if self.t > 1 else None},
            "strings": {self.key: "yes"},
            "lists": {self.key: [1, 2]},
            "nothing": {},
        }
        return np.zeros(1, f32), 0.0, False, self.t == 4, reports[self.how]


class Differ(RunLogger):
    """Environments of even seeds report other kinds of values than those of odd seeds."""

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        first = {
            "score": 0, "flag": False, "path": np.zeros(2), "name": np.array(["a"]), "seed": 1,
            "word": 3, "part": {"deep": 1}, "mixed": {"a": 1},
        }  # fmt: skip
        second = {
            "score": 0.75, "flag": 2, "path": np.zeros(3), "name": np.array(["abc"]),
            "seed": 10**30, "word": "three", "part": {"deep": 1.5}, "mixed": 5, "late": 1,
        }  # fmt: skip
        return obs, first if self.good else second


gymnasium.register("ami-test/Report-v0", entry_point=RunLogger)
gymnasium.register("ami-test/Differ-v0", entry_point=Differ)


def found(how: str, **options) -> EpisodeResults:
    config = EnvConfig(id="ami-test/Report-v0", options={"how": how, **options})
    return run_many(make_random_policy, config, 5, 10, "cpu")


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize(
    "how",
    [
        "always",
        "successes",
        "last",
        "numbers",
        "arrays",
        "objects",
        "lists of one",
        "tensors",
        "kinds",
    ],
)
def test_success_counts_for_the_env_that_reports_it_and_is_none_elsewhere(how, key):
    outcome = found(how, key=key)
    results = summarize(outcome, ("reward",), outcome.reports_success)
    assert results["success"]["mean"] == pytest.approx(3 / 5)
    assert results["final_success"]["mean"] == pytest.approx(3 / 5)
    assert results["steps"]["mean"] == (4 if how == "last" else 2)


@pytest.mark.parametrize("how", ["strings", "lists", "nothing"])
def test_a_success_that_is_no_bool_gives_no_rate(how):
    outcome = found(how)
    assert not outcome.reports_success
    assert summarize(outcome, ("reward",), outcome.reports_success)["success"] is None


def test_an_env_that_reports_only_success_has_a_rate_of_none_without_one():
    """Another environment succeeded, so success is reported."""
    outcome = found("successes")
    none = EpisodeResults(*(part[1::2] for part in outcome))
    assert none.success.isnan().all()
    assert summarize(none, ("reward",), True)["success"]["mean"] == 0
    assert summarize(none, ("reward",), False)["success"] is None


def test_an_evaluation_shows_a_rate_where_only_success_is_reported():
    config = EnvConfig(id="ami-test/Report-v0", options={"how": "successes"}, terminal_channel=True)
    recipe = ami.recipes.gym(replace(config, max_episode_steps=9))
    with closing(config.build(1)) as env:
        agent = build(recipe, env.spec).eval()
    results = ami.evaluate(
        agent, replace(config, max_episode_steps=9), mode="react", episodes=4, seed=10
    )
    assert results["success"]["mean"] == results["baselines"]["random"]["success"]["mean"] == 0.5


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_infos_of_environments_lose_nothing_where_they_differ(vector):
    """Gymnasium makes an array of the type and shape of the first value: 0.75 becomes 0."""
    config = EnvConfig(id="ami-test/Differ-v0", vectorization_mode=vector)
    with closing(config.build(2)) as env:
        _, info = env.reset(0)
    assert info["score"].tolist() == [0, 0.75]
    assert info["flag"].tolist() == [0, 2]
    assert [part.tolist() for part in info["path"]] == [[0, 0], [0, 0, 0]]
    assert info["name"].tolist() == [["a"], ["abc"]]
    assert info["seed"].tolist() == [1, 10**30]
    assert info["word"].tolist() == [3, "three"]
    assert info["part"]["deep"].tolist() == [1, 1.5]
    assert info["mixed"].tolist() == [None, 5]
    assert info["_late"].tolist() == [False, True]


def test_numbers_are_read_by_masks_and_at_episode_ends_from_final_info():
    done = torch.tensor([True, False, True])
    info = {
        "success": np.array([False, True, False]), "_success": np.array([True, True, False]),
        "final_info": {"success": np.array([True, False, False]),
                       "_success": np.array([True, False, False])},
    }  # fmt: skip
    output = read_numbers(info, ("success",), done)
    assert output[:2].tolist() == [1, 1]
    assert output[2].isnan()
    before_1_0 = np.array([{"success": 1}, None, {}], dtype=object)
    output = read_numbers({**info, "final_info": before_1_0}, ("success",), done)
    assert output[:2].tolist() == [1, 1]
    assert read_numbers({"a": np.arange(3)}, ("b", "a"), done).tolist() == [0, 1, 2]
    assert read_numbers({"a": torch.arange(3)}, ("a",), done).tolist() == [0, 1, 2]
    for odd in ("yes", None, 3, np.zeros(2), [1, 2], np.array(["a"] * 3), object(), {"a": 1}):
        assert read_numbers({"a": odd}, ("a",), done).isnan().all()


def test_a_batch_that_resets_within_the_step_reports_the_ends_of_episodes():
    class Once(RunLogger):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, info if truncated else {}

    envs = SyncVectorEnv([Once, Once], autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=[2, 3])
    for _ in range(4):
        _, _, terminated, truncated, info = envs.step(np.zeros((2, 1), f32))
    done = torch.as_tensor(terminated | truncated)
    assert read_numbers(info, ("is_success",), done).tolist() == [1, 0]


class Goals(gymnasium.Env):
    """Names its goal when an episode begins, and not later; episodes differ in length."""

    observation_space = spaces.Box(1, 100, (1,), f32)
    action_space = spaces.Box(-1, 1, (1,), f32)

    def __init__(self, form="array"):
        self.form = form

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.number = 0, seed if seed is not None else self.number + 10
        goal = np.full(1, self.number, f32)
        return np.ones(1, f32), {"goal": goal if self.form == "array" else goal.tolist()}

    def step(self, action):
        self.t += 1
        return np.ones(1, f32), 0.0, False, self.t == self.number, {}


gymnasium.register("ami-test/Goals-v0", entry_point=Goals)


@pytest.mark.parametrize("form", ["array", "list"])
def test_a_goal_named_at_the_start_of_an_episode_holds_until_the_next_start(form):
    with closing(EnvConfig(id="ami-test/Goals-v0", options={"form": form}).build(2)) as env:
        obs, info = env.reset(2)  # goals 2 and 3, after as many steps
        subtask = TaskTracker(TaskSpec(goal_source="env"))
        assert subtask.task(EpisodeStart(env, obs, info), "plan").goal.tolist() == [[2], [3]]
        step = env.step(obs, torch.zeros(2, 1))
        scene = EpisodeStart(env, obs, step.info, torch.zeros(2, dtype=torch.bool))
        assert subtask.task(scene, "plan").goal.tolist() == [[2], [3]]
        for _ in range(2):
            step = env.step(obs, torch.zeros(2, 1))
        scene = EpisodeStart(env, obs, step.info, torch.tensor([True, False]))
        assert subtask.task(scene, "plan").goal.tolist() == [[12], [3]]
        nothing = EpisodeStart(env, obs, {}, torch.tensor([False, True]))
        with pytest.raises(ConfigError, match="environment 1 names no goal"):
            subtask.task(nothing, "plan")


class Declares(VectorEnv):
    """A batch that declares a signal, and reports what its options say."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    interoception_names = ("hunger",)
    factor_names = ("x",)

    def __init__(self, num_envs=1, report=None):
        self.num_envs, self.report = num_envs, report
        self.single_observation_space = spaces.Box(-1, 1, (1,), f32)
        self.single_action_space = spaces.Box(-1, 1, (1,), f32)
        self.observation_space = spaces.Box(-1, 1, (num_envs, 1), f32)
        self.action_space = spaces.Box(-1, 1, (num_envs, 1), f32)

    def dynamics_tests(self, seed=0):
        return {}

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), f32), REPORTS[self.report]

    def step(self, actions):
        zero, no = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 1), f32), zero, no, no, REPORTS[self.report]


gymnasium.register("ami-test/Declares-v0", vector_entry_point=Declares)
HALF = np.full((2, 1), 0.5)
REPORTS = {
    "right": {"interoception": HALF, "factors": HALF},
    "missing": {},
    "for one": {"interoception": HALF, "_interoception": np.array([True, False])},
    "flat": {"interoception": np.zeros(2)},
    "nan": {"interoception": np.full((2, 1), np.nan)},
    "object": {"interoception": np.array([[None], [None]])},
    "string": {"interoception": "hungry"},
    "none": {"interoception": None},
}


def declares(report: str) -> EnvAdapter:
    return EnvConfig(id="ami-test/Declares-v0", options={"report": report}).build(2)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("missing", r"info\['interoception'\] of the environment 0 is missing; it must be there"),
        ("for one", r"info\['interoception'\] of the environment 1 is missing"),
        ("none", "environment 0 is missing"),
        ("flat", r"is of shape \(2,\); it must be of shape \(2, 1\)"),
        ("string", r"is a str; it must be of shape \(2, 1\)"),
        ("object", "holds object; it must hold numbers"),
        ("nan", "holds NaN or infinity"),
    ],
)
def test_a_declared_signal_that_is_missing_is_reported_in_one_line(report, message):
    with closing(declares(report)) as env:
        obs, _ = env.reset(0)
        with pytest.raises(EnvError, match=message):
            env.step(obs, torch.zeros(2, 1))


def test_declared_signals_and_factors_are_read_unchanged():
    with closing(declares("right")) as env:
        obs, info = env.reset(0)
        collected = env.step(obs, torch.zeros(2, 1))
        assert collected.transition.interoception.tolist() == [[0, 0.5], [0, 0.5]]
        assert env.factors(info).tolist() == [[0.5], [0.5]]
        with pytest.raises(EnvError, match=r"info\['factors'\] of the environment 0 is missing"):
            env.factors({})


RIVALS = {
    "choices": (spaces.Discrete(3, start=7), spaces.Discrete(3), 1, 8),
    "several": (
        spaces.MultiDiscrete([2, 3], start=[1, 10]), spaces.MultiDiscrete([2, 3]), [1, 2], [2, 12],
    ),
    "folded": (
        spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])), spaces.MultiDiscrete([2, 3, 4, 2]),
        [1, 2, 3, 0], [[1, 2], [3, 0]],
    ),
    "switches": (
        spaces.MultiBinary((2, 2)), spaces.MultiBinary(4), [1, 0, 0, 1], [[1, 0], [0, 1]],
    ),
    "whole": (spaces.Box(-3, 8, (2,), np.int64), spaces.Box(-3, 8, (2,), f32), [1.6, 9], [2, 8]),
    "short": (
        spaces.Box(-1, 1, (1,), np.float16), spaces.Box(-1, 1, (1,), f32), [1.01], [1],
    ),
    "scalar": (spaces.Box(0, 2, (), f32), spaces.Box(0, 2, (1,), f32), [1.5], 1.5),
    "plain": (spaces.Box(-1, 1, (2,), f32), spaces.Box(-1, 1, (2,), f32), [1, -1], [1, -1]),
}  # fmt: skip


@pytest.mark.parametrize("case", RIVALS)
def test_baselines_act_in_plain_spaces_and_the_env_gets_its_own_actions(case):
    space, plain, chosen, taken = RIVALS[case]
    found = plain_actions(space)
    assert found.space == plain
    chosen = np.asarray(chosen, plain.dtype)
    for action, target in ((chosen, taken), (np.stack([chosen, chosen]), [taken, taken])):
        acted = found.convert(action)
        assert acted.tolist() == target
        assert acted.dtype == space.dtype
    check_action(found.convert(chosen), space, "PPO")
    for _ in range(5):
        check_action(found.convert(found.space.sample()), space, "PPO")


def test_baselines_observe_in_plain_spaces():
    space = spaces.Dict(
        a=spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiDiscrete([[2, 3]])]),
        forward=spaces.Box(0, 1, (), f32),
        word=spaces.Text(4),
    )
    found = plain_observations(space)
    assert set(found.space.spaces) == {"a/0", "a/1", "forward_"}
    for _ in range(5):
        assert found.space.contains(found.convert(space.sample()))
    same = spaces.Dict(
        observation=spaces.Box(0, 1, (2,), f32), desired_goal=spaces.Box(0, 1, (2,), f32)
    )
    assert plain_observations(same).space == same


class Named(gymnasium.Env):
    """Three choices, 7, 8 and 9; 9 has reward 1."""

    observation_space = spaces.Discrete(2, start=5)
    action_space = spaces.Discrete(3, start=7)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 5, {}

    def step(self, action):
        self.t += 1
        assert self.action_space.contains(action)
        return 6, float(action == 9), False, self.t == 5, {}


gymnasium.register("ami-test/Named-v0", entry_point=Named)


def test_baselines_are_trained_and_evaluated_in_the_same_spaces():
    env = PlainSpaceWrapper(Named(), "PPO")
    assert env.reset(seed=0)[0] == 0
    assert env.step(2)[:2] == (1, 1.0)
    with pytest.raises(ConfigError, match=r"PPO chose 10, which is not in .*Discrete\(3, start=7"):
        env.step(3)
    config = EnvConfig(id="ami-test/Named-v0")
    with closing(RawEnvAdapter(config, 2, torch.device("cpu"), config.make_kwargs)) as bare:
        observed = []

        def begin(scene, seed):
            return lambda obs: (observed.append(obs.tolist()), torch.tensor([2, 0]))[1]

        assert run_episodes(begin, bare, 0).signal_sums[:, 0].tolist() == [5, 0]
        assert observed[:2] == [[0, 0], [1, 1]]
        with pytest.raises(ConfigError, match=r"the algorithm chose .* not in the env"):
            bare.to_env(torch.tensor([3, 0]))
