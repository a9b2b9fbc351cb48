"""Goal environments in Gymnasium's form: the desired goal in their observations is what the agent
plans for."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, MultiDiscrete

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.goal_env import goal_size
from ami_agent.cli.main import _recipe
from ami_agent.config import build, override
from ami_agent.recipes import goals
from modules.memory.short_term import GRUMemoryConfig
from modules.types import ConfigError
from tests.conftest import small

ENV = "tests/Plane-v0"
NEAR = 0.2


class Plane(gymnasium.Env):
    """A point that moves in a square, and a place where it should be; its age is no part of a
    goal."""

    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, age_name: str = "observation") -> None:
        place = Box(-2, 2, (2,), np.float32)
        age = Box(0, 100, (1,), np.float32)
        self.age_name = age_name
        self.observation_space = Dict(
            {"achieved_goal": place, "desired_goal": place, age_name: age}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age, (self.place, self.goal) = 0, self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {}

    def step(self, action):
        self.age, self.place = self.age + 1, (self.place + 0.2 * action).clip(-1, 1)
        success = float(np.linalg.norm(self.place - self.goal)) < NEAR
        return self._observe(), float(success), False, False, {"is_success": success}

    def _observe(self):
        place, goal, age = (np.array(x, np.float32) for x in (self.place, self.goal, [self.age]))
        return {"achieved_goal": place, "desired_goal": goal, self.age_name: age}


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Plane, max_episode_steps=4)

CONFIG = EnvConfig(id=ENV, goal_from_obs=True)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_desired_goal_is_named_at_every_reset_and_never_observed(mode):
    env = EnvConfig(id=ENV, goal_from_obs=True, vectorization_mode=mode)
    with closing(env.build(3)) as adapter, closing(EnvConfig(id=ENV).build(3)) as plain:
        assert list(adapter.spec.shapes) == ["achieved_goal", "observation"]
        obs, info = adapter.reset(7)
        expected, _ = plain.reset(7)
        goal = adapter.goal(info)
        torch.testing.assert_close(goal["achieved_goal"], expected["desired_goal"])
        torch.testing.assert_close(obs["achieved_goal"], expected["achieved_goal"])
        assert torch.equal(goal["observation"], torch.zeros(3, 1))
        for _ in range(5):  # the fifth step resets
            result = adapter.step(obs, torch.zeros(3, 2))
            expected = plain.step(expected, torch.zeros(3, 2)).next_obs
            obs = result.next_obs
        new = adapter.goal(result.info)
        torch.testing.assert_close(new["achieved_goal"], expected["desired_goal"])
        assert not torch.equal(new["achieved_goal"], goal["achieved_goal"])


@pytest.mark.parametrize("age_name", ["observation", "a_clock"])
def test_goals_are_compared_in_the_part_that_they_are_about(age_name):
    """Also where the name of another part comes before."""
    config = goals(EnvConfig(id=ENV, options={"age_name": age_name}))
    assert config.env.goal_from_obs
    assert config.eval_env.goal_from_obs
    with closing(config.env.build(1)) as adapter:
        agent = build(small(config), adapter.spec)
    place = torch.rand(4, 2)
    state = agent.encode({"achieved_goal": place, age_name: torch.zeros(4, 1)})
    older = agent.encode({"achieved_goal": place, age_name: torch.full((4, 1), 50.0)})
    assert not torch.equal(state, older)
    distance = agent.cost.goal_critic.distance
    assert torch.equal(distance.embed(state), distance.embed(older))
    other = agent.encode({"achieved_goal": place + 1, age_name: torch.zeros(4, 1)})
    assert (distance(state, other) > 0).all()
    no_task = torch.zeros(4, 0)
    assert torch.equal(agent.policy(state, state, no_task), agent.policy(state, older, no_task))


@pytest.mark.parametrize("path", ["configurator.goal_dims", "actor.policy.goal_dims"])
def test_a_goal_is_about_no_more_numbers_than_a_state_has(path):
    config = override(small(goals(EnvConfig(id=ENV))), {path: 4})
    with (
        closing(config.env.build(1)) as adapter,
        pytest.raises(ConfigError, match="goal_dims is 4, but a state has 3 numbers"),
    ):
        build(config, adapter.spec)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("perception.vector_dim", 16),
        ("memory.short_term", GRUMemoryConfig()),
        ("actor.subgoals.stochastic_edges", True),
    ],
)
def test_what_mixes_the_numbers_of_a_goal_with_others_is_refused(path, value):
    config = override(small(goals(EnvConfig(id=ENV))), {path: value})
    with (
        closing(config.env.build(1)) as adapter,
        pytest.raises(ConfigError, match=f"goal_dims is not 0.*{path} must be "),
    ):
        build(config, adapter.spec)


def test_a_goal_that_is_not_read_as_the_numbers_it_holds_is_refused():
    ignored = EnvConfig(id=ENV, obs_layout={"achieved_goal": "ignore"})
    with pytest.raises(ConfigError, match="goals of 2 numbers, and 'achieved_goal' is no vector"):
        goals(ignored)
    grid = Dict(achieved_goal=MultiDiscrete([4, 5]), desired_goal=MultiDiscrete([4, 5]))
    assert goal_size(grid) == 0


def test_an_agent_trains_and_acts_where_the_goal_is_in_the_observation(tmp_path):
    config = small(goals(EnvConfig(id=ENV)))
    agent = ami.train(config, out=tmp_path / "run")
    controller = agent.controller(num_envs=2)
    here = {"achieved_goal": np.zeros((2, 2), np.float32), "observation": np.zeros((2, 1))}
    there = {**here, "achieved_goal": np.array([[1, 1], [-1, -1]], np.float32)}
    controller.set_task(ami.Task(goal=there))
    plan = controller.act(here)
    assert (plan.terms["goal_distance"] > 0).all()
    assert not torch.equal(plan.actions[0], plan.actions[1])
    for mode in ("plan", "react"):
        found = ami.evaluate(agent, config.eval_env, mode=mode, episodes=3)
        assert found["length"]["mean"] == 4


def test_observations_without_a_desired_goal_and_stacked_ones_are_refused():
    with pytest.raises((ConfigError, EnvError), match=r"goal_from_obs is True.*'desired_goal'"):
        EnvConfig(id="Pendulum-v1", goal_from_obs=True).build(1)
    with pytest.raises(ConfigError, match=r"goal_from_obs is True.*frame_stack must be 1"):
        EnvConfig(id=ENV, goal_from_obs=True, frame_stack=2)


def test_another_environment_has_no_keyword_arguments_of_the_recipes_own():
    config, _ = _recipe("goals", ["--env.id", ENV], "ami train goals")
    assert config.env.options == {}
    config, _ = _recipe("goals", ["--env.options", "obs_type", "state"], "ami train goals")
    assert config.env.options == {"map": "u", "obs_type": "state"}


@pytest.mark.parametrize(
    "words",
    [["--env.goal-from-obs", "False"], ["--env.goal-from-obs=False"], ["--env.no-goal-from-obs"]],
)
def test_a_flag_that_takes_the_goals_from_the_recipe_is_refused(words):
    message = f"the task of the recipe goals is the 'desired_goal' in the observations of {ENV}"
    with pytest.raises(
        ConfigError, match=f"^--env.*goal-from-obs.*: {message}; leave the flag out"
    ):
        _recipe("goals", ["--env.id", ENV, *words], "ami train goals")
    assert _recipe("goals", ["--env.id", ENV], "ami train goals")[0].env.goal_from_obs
