"""Environments whose tasks are options of a reset, and those that draw from NumPy's global
generator."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build, override
from ami_agent.evaluation.evaluate import (
    _parts,
    evaluate_modes,
    evaluate_policies,
    table_rows,
)
from ami_agent.evaluation.policies import make_random_policy
from ami_agent.recipes import goals
from modules.configurator import TaskSpec
from modules.types import BadSetting, ConfigError
from tests.conftest import error_line, small

ENV = "tests/DrawnStart-v0"


class DrawnStart(gymnasium.Env):
    """Starts where NumPy's global generator says; task 2 always succeeds and task 1 never does."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _draw(self):
        return np.random.uniform(-1, 1, 1)  # noqa: NPY002

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task_id", 0)
        return self._draw(), {"goal": np.zeros(1), "task_id": self.task}

    def step(self, action):
        return self._draw(), 0.0, False, False, {"success": self.task == 2}


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=DrawnStart, max_episode_steps=3)

CONFIG = EnvConfig(id=ENV, own_numpy_random=True)


def first_obs(num_envs, seed, config=CONFIG):
    env = config.build(num_envs)
    obs, _ = env.reset(seed)
    after = env.step(obs, torch.zeros(num_envs, 1)).transition.next_obs
    env.close()
    return torch.cat([obs, after], 1)


def test_an_episode_depends_on_its_seed_alone_where_the_environment_draws_from_numpys_generator():
    three = first_obs(3, 5)
    np.random.uniform(size=7)  # noqa: NPY002
    assert torch.equal(first_obs(1, 6), three[1:2])
    assert len(three.flatten().unique()) == 6


def test_the_global_stream_goes_on_as_if_the_environment_had_drawn_nothing():
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.uniform(size=2)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    first_obs(2, 0)
    assert (np.random.uniform(size=2) == expected).all()  # noqa: NPY002


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_reset_has_the_options_of_the_task_also_where_an_episode_resets_by_itself(mode):
    task = TaskSpec(goal_source="env", reset_options={"task_id": 2})
    env = EnvConfig(id=ENV, vectorization_mode=mode, reset_options={"task_id": 1}).for_task(task)
    adapter = env.build(2)
    obs, info = adapter.reset(0)
    assert list(info["task_id"]) == [2, 2]
    for _ in range(4):  # three steps, and one that only resets
        obs, info = (
            (result := adapter.step(obs, torch.zeros(2, 1))).transition.next_obs,
            result.info,
        )
    assert list(info["task_id"]) == [2, 2]
    _, info = adapter.reset(0, task_id=7)
    assert list(info["task_id"]) == [7, 7]
    adapter.close()


def test_reset_options_must_be_json():
    with pytest.raises(BadSetting, match="reset_options task_id"):
        EnvConfig(id=ENV, reset_options={"task_id": {1}})


TASKS = {
    "both": TaskSpec(goal_source="env", members=("never", "always")),
    "never": TaskSpec(goal_source="env", reset_options={"task_id": 1}),
    "always": TaskSpec(goal_source="env", reset_options={"task_id": 2}),
}


def config_of(tasks=TASKS):
    return override(small(goals()), {"env": CONFIG, "eval_env": CONFIG, "tasks": tasks})


def test_a_task_of_several_members_has_as_many_episodes_of_each_and_reports_them_apart():
    found = evaluate_policies({"random": make_random_policy}, config_of(), 6)["random"]
    assert found["success"]["mean"] == 0.5
    by_task = {name: result["success"]["mean"] for name, result in found["by_task"].items()}
    assert by_task == {"never": 0.0, "always": 1.0}


def test_the_members_of_a_task_have_different_episodes():
    parts = _parts(TASKS, CONFIG, "both", 6, 100)
    found = [(part.task, part.episodes, part.seed) for part in parts]
    assert found == [("never", 3, 100), ("always", 3, 103)]


def test_an_agent_is_evaluated_in_the_members_of_its_task():
    env = CONFIG.build(1)
    agent = build(config_of(), env.spec)
    env.close()
    results = evaluate_modes(agent, CONFIG, modes=("react",), episodes=4)
    assert results["react"]["success"]["mean"] == 0.5
    assert results["react"]["baselines"]["random"]["by_task"]["always"]["success"]["mean"] == 1
    _, rows = table_rows(results)
    assert [row[1][:3] for row in rows if row[0].startswith("always")] == ["100"]
    alone = evaluate_modes(agent, CONFIG, modes=("react",), task="always", episodes=3)["react"]
    assert alone["success"]["mean"] == 1
    assert alone["by_task"] is None


def test_episodes_that_the_members_can_not_share_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="5 episodes can't be divided equally among the 2 tasks"):
        evaluate_policies({}, config_of(), 5)


def test_such_episodes_are_refused_before_training(tmp_path, capsys):
    out = tmp_path / "run"
    message = error_line(capsys, "train", "two-rooms-swm", "--episodes", "10", "--out", out)
    assert "10 episodes can't be divided equally among the 4 tasks of 'reach'" in message
    assert not out.exists()


def test_a_member_that_is_no_task_is_refused():
    tasks = {"both": TaskSpec(goal_source="env", members=("nosuch",))}
    env = CONFIG.build(1)
    with pytest.raises(ConfigError, match="task 'both': no task 'nosuch'; this agent has both"):
        build(config_of(tasks), env.spec)
    env.close()
