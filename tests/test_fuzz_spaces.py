"""Environments with random spaces: the agent is built and acts, or one line says why not."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import event
from hypothesis import strategies as st

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build
from modules.types import ConfigError
from tests.fuzz import fuzzed

FLOATS, INTS = (np.float16, np.float32, np.float64), (np.int8, np.uint8, np.int32, np.int64)

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(8, 20), st.integers(8, 20)),
    st.tuples(st.integers(8, 20), st.integers(8, 20), st.sampled_from([1, 3, 4])),
    st.tuples(st.sampled_from([1, 3, 4]), st.integers(8, 20), st.integers(8, 20)),
)


@st.composite
def boxes(draw: Any, shape: Any = shapes) -> spaces.Box:
    """Boxes of any dtype, with bounds that are narrow, wide, one-sided or missing."""
    if draw(st.booleans()):
        dtype = draw(st.sampled_from(INTS))
        low, high = sorted(draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
        return spaces.Box(low, high, draw(shape), dtype)
    dtype = draw(st.sampled_from(FLOATS))
    low, high = draw(
        st.sampled_from(
            [(-1, 1), (0, 1), (-1e-6, 1e-6), (-5e4, 5e4), (0, np.inf), (-np.inf, np.inf), (2, 2)]
        )
    )
    return spaces.Box(low, high, draw(shape), dtype)


leaves = st.one_of(
    boxes(),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)
    ),
    st.builds(
        lambda nvec: spaces.MultiDiscrete(nvec), st.lists(st.integers(1, 5), min_size=1, max_size=3)
    ),
    st.builds(spaces.MultiBinary, st.integers(1, 5)),
    st.builds(spaces.Text, st.integers(1, 5)),
)
observation_spaces = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(
            st.sampled_from(["a", "b", "obs", "a.b", "ä"]), inner, min_size=1, max_size=3
        ).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=4,
)
action_spaces = st.one_of(
    boxes(st.one_of(st.just(()), st.tuples(st.integers(1, 4)))),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)
    ),
    st.builds(
        lambda nvec: spaces.MultiDiscrete(nvec), st.lists(st.integers(1, 5), min_size=1, max_size=3)
    ),
    st.builds(spaces.MultiBinary, st.integers(1, 5)),
)


class Sampled(gymnasium.Env):
    """Observations are samples of the space."""

    observation_space: spaces.Space = spaces.Discrete(1)
    action_space: spaces.Space = spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register(
        "fuzz/Sampled-v0",
        entry_point=lambda: Sampled(),
        max_episode_steps=20,
        disable_env_checker=True,
    )
    yield
    del gymnasium.registry["fuzz/Sampled-v0"]


@fuzzed(observation_spaces, action_spaces, examples=150)
def test_an_agent_is_built_for_the_spaces_and_acts_or_one_line_says_why_not(observed, acted):
    Sampled.observation_space, Sampled.action_space = observed, acted
    try:
        config = ami.recipes.gym(EnvConfig(id="fuzz/Sampled-v0"))
        with closing(config.env.build(1)) as env:
            agent = build(config, env.spec).eval()
    except ConfigError as error:
        if "\n" in str(error):
            pytest.fail(str(error))
        event("refused")
        return
    event("built")
    env = gymnasium.make("fuzz/Sampled-v0")
    obs, _ = env.reset(seed=0)
    controller = agent.controller(
        num_envs=None, task=ami.Task(drives={"reward": 1.0}, mode="react")
    )
    for _ in range(2):
        obs, *_ = env.step(controller.act(obs).env_action)
