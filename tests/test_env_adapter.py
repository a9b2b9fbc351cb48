"""Environments that the agent can't handle are refused in one line that names a remedy."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Sequence, Text

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory, make_random_policy
from envs import ENVS
from modules.configurator import TaskSpec
from modules.types import ConfigError

SIGHT = Box(0, 255, (2, 8, 8), np.uint8)
REACH = Box(-1, 1, (2,), np.float32)


class Room(gymnasium.Env):
    """Any spaces; its third observation is not a number, where its space holds any."""

    metadata = {"render_modes": [], "description": "A room <b>."}  # noqa: RUF012

    def __init__(self, observation_space=SIGHT, action_space=REACH) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moments = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.moments += 1
        obs = self.observation_space.sample()
        if self.moments == 2 and obs.dtype == np.float32:
            obs[0] = np.nan
        return obs, 0.0, False, False, {}


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Room-v0", entry_point=Room)
    yield
    del gymnasium.registry["ami-test/Room-v0"]


def make_room(**spaces):
    return EnvConfig(id="ami-test/Room-v0").build(2, **spaces)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"observation_space": Dict(a=SIGHT, b=Sequence(SIGHT))},
            "'b' is Sequence.*the agent observes Box",
        ),
        ({"observation_space": Text(3)}, "observations are Text.*the agent observes Box"),
        ({"action_space": Text(3)}, "actions are Text.*the agent acts in Box"),
        ({"action_space": Box(-np.inf, np.inf, (2,))}, "have no bounds"),
    ],
)
def test_spaces_that_the_agent_cannot_handle_are_named(spaces, message):
    with pytest.raises(ConfigError, match=message):
        make_room(**spaces)


def test_an_observation_that_is_not_a_number_is_refused_on_arrival():
    env = make_room(observation_space=Box(-1, 1, (3,), np.float32))
    obs, info = env.reset(0)
    act = make_random_policy(EpisodeStart(env, obs, info), 0)
    obs = env.step(obs, act(obs)).transition.next_obs
    with pytest.raises(ConfigError, match="holds NaN"):
        env.step(obs, act(obs))


def test_several_modalities_arrive_by_name_unchanged():
    space = Dict(sight=SIGHT, touch=Box(-1, 1, (3,), np.float32))
    env = make_room(observation_space=space)
    assert env.spec.shapes == {"sight": (2, 8, 8), "touch": (3,)}
    obs, info = env.reset(0)
    act = make_random_policy(EpisodeStart(env, obs, info), 0)
    for observed in (obs, env.step(obs, act(obs)).transition.next_obs, env.spec.zeros(2)):
        assert {name: (tuple(part.shape), part.dtype) for name, part in observed.items()} == {
            "sight": ((2, 2, 8, 8), torch.uint8),
            "touch": ((2, 3), torch.float32),
        }


def test_an_env_without_a_goal_is_refused(tmp_path):
    agent = ami.load("runs/reference/two-rooms")
    env = make_room()
    scene = EpisodeStart(env, *env.reset(0))
    with pytest.raises(ConfigError, match="names no goal"):
        agent_policy_factory(agent, "plan", TaskSpec(goal_source="env"))(scene, 0)
    with pytest.raises(ConfigError, match=r"\(2, 8, 8\).*but the agent is made for \(2, 65, 65\)"):
        ami.evaluate(agent, "ami-test/Room-v0", episodes=2)


def test_random_actions_cover_the_action_space_and_the_seed_decides_them():
    env = EnvConfig(id="ami/TwoRooms-v0", variant="fixed").build(64)
    sampled = []
    for seed in (3, 3, 4):
        obs, info = env.reset(seed)
        act = make_random_policy(EpisodeStart(env, obs, info), seed)
        sampled.append(torch.stack([act(obs) for _ in range(50)]))
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    assert sampled[0].abs().max() <= 1
    assert sampled[0].mean().abs() < 0.05
    assert sampled[0].std() == pytest.approx(3**-0.5, abs=0.05)


def test_an_env_of_ours_is_made_without_importing_it_first():
    import subprocess
    import sys
    from pathlib import Path

    code = "import gymnasium; gymnasium.make('ami_agent:ami/TwoRooms-v0').reset(seed=0)"
    subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, timeout=120
    )


@pytest.mark.parametrize("vector", ["auto", "sync", "async"])
def test_interoception_and_factors_of_an_env_are_known_in_every_vectorization_mode(vector):
    config = EnvConfig(id="ami-test/Room-v0", vectorization_mode=vector)
    with closing(config.build(2)) as env:
        assert env.description == "A room <b>."


@pytest.mark.parametrize("name", sorted(ENVS))
def test_every_env_of_ours_describes_its_pictures(name):
    pytest.importorskip("mujoco")
    single = EnvConfig(id=name, vectorization_mode="sync")
    with closing(EnvConfig(id=name).build(2)) as many, closing(single.build(1)) as one:
        assert many.description == one.description
        assert "(blue)" in many.description


def test_envs_say_whether_they_are_deterministic():
    def about(name, **options):
        with closing(EnvConfig(id=name, options=options).build(1)) as env:
            return env.description

    assert about("ami/Maze-v0", maze_seed=3) != about("ami/Maze-v0")
    assert about("ami/TwoRooms-v0", variant="fixed") != about("ami/TwoRooms-v0", variant="random")
