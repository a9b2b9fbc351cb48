"""Planner rollouts: Mode-2 acts, the replay buffer stores it, and the dynamics are finetuned."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ami_agent import recipes
from ami_agent.adapters.env import EnvAdapter, rollout
from ami_agent.agent import Agent, Controller
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory
from ami_agent.training import CollectWithPlanner, FinetuneDynamics
from ami_agent.training.base import encode_buffer, task_modality_sets
from ami_agent.training.jepa import unroll_loss
from modules.configurator import TaskSpec
from modules.memory.short_term import GRUMemoryConfig
from modules.types import ConfigError
from tests.conftest import small

SEED = 5


@pytest.fixture
def config() -> Config:
    return small(recipes.two_rooms_random(), steps=2)


def take(agent: Agent, config: Config, *names: str) -> None:
    for name in names:
        stage_run = config.stages[name].start(agent, config.env, SEED)
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()


def experienced(config: Config, *names: str) -> Agent:
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    env.close()
    with torch.no_grad():  # a world model in which actions matter
        for parameter in agent.world_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator()))
    take(agent, config, *names)
    return agent


def test_the_replay_buffer_has_room_for_all_that_is_collected(config):
    agent = experienced(config, "collect", "planner_rollouts")
    collected = config.stages["collect"].num_envs * (
        config.stages["collect"].steps + config.stages["planner_rollouts"].steps
    )
    assert len(agent.replay_buffer) == collected


def test_the_stored_steps_are_those_of_mode_2(config):
    agent = experienced(config, "collect", "planner_rollouts")
    env = config.env.build(config.stages["collect"].num_envs)
    obs, info = env.reset(SEED)
    again = experienced(config)
    act = agent_policy_factory(again.eval(), "plan", config.tasks["reach"])(
        EpisodeStart(env, obs, info), SEED
    )
    data = [
        collected.transition
        for collected in islice(rollout(act, env, obs), config.stages["planner_rollouts"].steps)
    ]
    actions = torch.stack([step.action for step in data], 1)
    for episode in agent.replay_buffer.episode_ids()[1::2]:  # each environment's second episode
        path = agent.replay_buffer.get_episode(episode)
        same = [torch.equal(path.actions[0], theirs) for theirs in actions]
        assert sum(same) == 1
        assert torch.equal(path.obs[0, -1], data[-1].next_obs[same.index(True)])


def test_a_new_episode_has_a_new_goal(config, monkeypatch):
    config = override(
        config,
        {"stages.planner_rollouts": CollectWithPlanner(steps=6, options={"max_episode_steps": 3})},
    )
    agent = experienced(config, "collect")
    stage_run = config.stages["planner_rollouts"].start(agent, config.env, SEED)
    act, goals, named = (
        Controller.act,
        [],
        [],
    )  # with which each action was taken, and what the environments named after it

    def observed_act(self, obs):
        goals.append(self.context.goal)
        return act(self, obs)

    monkeypatch.setattr(Controller, "act", observed_act)
    for _ in range(6):
        stage_run.update()
        named.append(agent.encode(stage_run.env.goal(stage_run.episode_start.info)))
    stage_run.finish()
    assert all(torch.equal(goals[0], goal) for goal in [*goals[:3], named[0]])
    assert not torch.equal(goals[2], goals[4])  # the step in between only resets
    assert all(torch.equal(goals[4], goal) for goal in (goals[5], named[3]))


@pytest.mark.parametrize(
    "first", [TaskSpec(goal_source="env"), TaskSpec(weights={"control_cost": 1.0})]
)
def test_a_task_that_begins_within_an_episode_has_the_goal_of_its_reset(config, first, monkeypatch):
    tasks = {"first": first, "second": TaskSpec(goal_source="env")}
    agent = experienced(override(config, {"tasks": tasks}), "collect")
    step, goals = EnvAdapter.step, []

    def without_goal(self, obs, action):
        result = step(self, obs, action)
        return result._replace(info={k: v for k, v in result.info.items() if "goal" not in k})

    monkeypatch.setattr(EnvAdapter, "step", without_goal)
    stage_run = CollectWithPlanner(steps=4).start(agent, config.env, SEED)
    at_reset = agent.encode(stage_run.env.goal(stage_run.episode_start.info))
    act = Controller.act
    monkeypatch.setattr(
        Controller, "act", lambda self, obs: goals.append(self.context.goal) or act(self, obs)
    )
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()
    assert all(torch.equal(goal, at_reset) for goal in goals[2:])


def test_dynamics_finetuning_learns_from_the_latest_steps_and_leaves_perception_alone(config):
    optim = replace(config.stages["finetune_dynamics"].optim, steps=80, batch_size=32, lr=3e-3)
    config = override(
        config,
        {"stages.finetune_dynamics.optim": optim},
    )
    agent = experienced(config, "collect", "planner_rollouts")
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    error = error_on_practice(agent)
    take(agent, config, "finetune_dynamics")
    assert error_on_practice(agent) < 0.8 * error
    moved = {
        name.partition(".")[0]
        for name, value in agent.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"world_model"}


@torch.no_grad()
def error_on_practice(agent: Agent) -> float:
    batch = encode_buffer(agent).sample(256, 5, torch.Generator().manual_seed(1), latest_run=True)
    return float(unroll_loss(agent.world_model, batch, torch.Generator())["prediction"])


def test_an_odd_batch_size_is_refused(config):
    with pytest.raises(ConfigError, match="a batch of 7"):
        FinetuneDynamics(optim=replace(config.stages["finetune_dynamics"].optim, batch_size=7))


@pytest.mark.parametrize("kind", [CollectWithPlanner, FinetuneDynamics])
def test_zero_steps_are_refused(kind):
    name = {CollectWithPlanner: "steps", FinetuneDynamics: "length"}[kind]
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        kind(**{name: 0})


def test_the_modality_sets_are_the_default_first_and_each_other_once():
    agent = build(recipes.forage(), recipes.forage().env.build(1).spec)
    own, position = task_modality_sets(agent)  # explore and stay share theirs
    assert own == dict.fromkeys(agent.spec.modalities, 1.0)
    assert position == {**dict.fromkeys(agent.spec.modalities, 0.0), "body": 1.0}


def test_a_first_round_that_was_not_completed_is_collected_anew(tiny):
    with closing(tiny.env.build(1)) as env:
        agent = build(tiny, env.spec)
    stage_run = tiny.stages["distill_policy"].start(agent, tiny.env, 0)
    kept = stage_run.state_dict()
    again = tiny.stages["distill_policy"].start(agent, tiny.env, 0)
    again.load_state_dict(kept)
    assert not again.labels


def test_all_tasks_collect_with_one_short_term_memory(config, monkeypatch):
    tasks = {"first": TaskSpec(goal_source="env"), "second": TaskSpec(goal_source="env")}
    config = override(config, {"tasks": tasks, "memory.short_term": GRUMemoryConfig(hidden=4)})
    agent = experienced(config, "collect")
    stage_run = config.stages["planner_rollouts"].start(agent, config.env, SEED)
    act, before = Controller.act, []

    def observed_act(self, obs):
        before.append(self.episode.memory.memory_state)
        return act(self, obs)

    monkeypatch.setattr(Controller, "act", observed_act)
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()
    assert before[0] is None
    assert all(memory is not None for memory in before[1:])  # not even where the task changes
