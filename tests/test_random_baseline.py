"""The random baseline is independent of the environment, its random numbers included."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest

from ami_agent.adapters.env import EnvConfig
from ami_agent.evaluation.evaluate import run_episodes, run_many
from ami_agent.evaluation.policies import make_random_policy


class Guess(gymnasium.Env):
    """The observation shows a random choice of two; repeating it has reward 1."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        reward = float(action == self.choice)
        return self._draw(), reward, False, False, {}

    def _draw(self):
        self.choice = int(self.np_random.integers(2))
        return np.array([self.choice], np.float32)


class Returned(gymnasium.Env):
    """The reward is the action; environments of odd seeds have short episodes."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, short=2):
        self.short, self.length = short, 0

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.length = self.short if seed % 2 else 6
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float(action[0]), False, self.steps == self.length, {}


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register("ami-test/Guess-v0", entry_point=Guess, max_episode_steps=10)
    gymnasium.register("ami-test/Returned-v0", entry_point=Returned, max_episode_steps=9)
    yield
    del gymnasium.registry["ami-test/Guess-v0"]
    del gymnasium.registry["ami-test/Returned-v0"]


def test_random_actions_are_right_by_chance_alone_where_the_environment_draws_with_the_same_seed():
    returns = run_many(
        make_random_policy, EnvConfig(id="ami-test/Guess-v0"), 40, 1_000_000, "cpu"
    ).signal_sums
    assert 4 < float(returns[:, 0].mean()) < 6


def test_random_actions_do_not_depend_on_when_episodes_end_elsewhere():
    def returns(**options) -> list[float]:
        with closing(EnvConfig(id="ami-test/Returned-v0", options=options).build(2)) as env:
            results = run_episodes(make_random_policy, env, 0, per_env=3)
        return results.signal_sums[:3, 0].tolist()  # of environment 0

    assert returns(short=2) == returns(short=3) == returns(short=6)
