"""The random baseline is independent of the environment, its random numbers included."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from ami_agent.adapters.env import EnvConfig
from ami_agent.evaluation.evaluate import run_many
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


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register("ami-test/Guess-v0", entry_point=Guess, max_episode_steps=10)
    yield
    del gymnasium.registry["ami-test/Guess-v0"]


def test_random_actions_are_right_by_chance_alone_where_the_environment_draws_with_the_same_seed():
    returns = run_many(
        make_random_policy, EnvConfig(id="ami-test/Guess-v0"), 40, 1_000_000, "cpu"
    ).signal_sums
    assert 4 < float(returns[:, 0].mean()) < 6
