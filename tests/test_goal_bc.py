"""The policy imitates actions that reached a goal; goals may be a part of the state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ami_agent.training.critics as critics
from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.training import GoalConditionedBC, TrainQuasimetric
from ami_agent.training.base import encode_buffer
from ami_agent.training.optim import OptimConfig
from ami_agent.training.policy import behaviour_cloning_loss
from ami_agent.validate import check_stages
from modules.actor.policy import BoxActions, PolicyConfig
from modules.configurator import TaskSpec
from modules.cost.goal_critic import FourierQuasimetricConfig
from modules.types import ConfigError
from tests.conftest import small

STAGE = GoalConditionedBC(max_goal_offset=8, optim=OptimConfig(steps=250, batch_size=128, lr=3e-3))


def collect_data(config: Config) -> Agent:
    """An agent with collected episodes."""
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    take(agent, config, "collect")
    return agent


def take(agent: Agent, config: Config, name: str) -> None:
    stage_run = config.stages[name].start(agent, config.env, seed=1)
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()


def rightness(agent: Agent) -> float:
    """Mean cosine between the policy's action at rest and the direction of a goal nearby."""
    ways = 2 * torch.pi * torch.arange(16) / 16
    way = torch.stack([ways.cos(), ways.sin()], -1)
    rest = torch.zeros(16, 2)
    here, there = (
        agent.encode(torch.cat([0.2 * torch.ones(16, 2) + step, rest], -1))
        for step in (0 * way, 0.12 * way)
    )
    with torch.no_grad():
        action = agent.policy(here, there, rest[:, :0])
    return float((action * way).sum(-1).div(action.norm(dim=-1)).mean())


def test_successful_actions_are_imitated_and_only_the_policy_is_trained():
    config = override(small(recipes.maze()), {"stages.goal_bc": STAGE})
    config = override(config, {"stages.collect.num_envs": 64})
    agent = collect_data(config)
    assert rightness(agent) < 0.5
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    take(agent, config, "goal_bc")
    assert rightness(agent) > 0.7
    after = agent.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"policy"}


def test_with_a_discount_near_goals_are_drawn_more_often():
    generator = torch.Generator().manual_seed(0)
    mean = {}
    for discount in (1.0, 0.9, 0.0):
        offsets = replace(STAGE, max_goal_offset=50, discount=discount).draw_offsets(
            20_000, generator
        )
        assert offsets.min() == 1
        assert offsets.max() <= 50
        mean[discount] = float(offsets.float().mean())
    weights = 0.9 ** torch.arange(50)
    expected = {
        1.0: 25.5,
        0.9: float((weights * torch.arange(1, 51)).sum() / weights.sum()),
        0.0: 1,
    }
    assert mean == pytest.approx(expected, abs=0.3)


def test_by_absolute_errors_the_policy_takes_the_more_frequent_of_two_actions_not_their_mean():
    state, action = torch.zeros(10, 4), torch.tensor([[0.8]] * 6 + [[-0.8]] * 4)
    found = {}
    for absolute in (False, True):
        torch.manual_seed(0)
        policy = PolicyConfig(hidden=16).build((4, 1, 1), 1, BoxActions(), 0)
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            terms = behaviour_cloning_loss(policy, state, state, state[:, :0], action, absolute)
            terms["bc"].backward()
            optimizer.step()
        found[absolute] = float(policy(state, state, state[:, :0])[0].detach())
    assert found == {False: pytest.approx(0.16, abs=0.02), True: pytest.approx(0.8, abs=0.05)}


def test_missing_goals_and_short_episodes_are_reported():
    config = small(recipes.forage())
    config = override(
        config, {"stages.goal_bc": STAGE, "tasks": {"eat": TaskSpec(drives={"taste": 1.0})}}
    )
    with pytest.raises(ConfigError, match="learns ways to goals, and no task has one"):
        check_stages(config)
    config = override(small(recipes.maze()), {"stages.goal_bc": replace(STAGE, max_goal_offset=25)})
    with pytest.raises(
        ConfigError, match=r"goal_bc\.max_goal_offset is 25, but an episode has 24 steps"
    ):
        check_stages(config)


def test_a_goal_may_be_the_first_dimensions_of_a_state():
    random = torch.Generator().manual_seed(0)
    state, goal = torch.randn(2, 7, 5, generator=random)
    other = torch.cat([goal[:, :2], goal[:, 2:] + 1], -1)
    for aims in (0, 2):
        distance = FourierQuasimetricConfig(goal_dims=aims).build((5, 1, 1))
        policy = PolicyConfig(goal_dims=aims).build((5, 1, 1), 3, BoxActions(), 0)
        alike = torch.equal(distance(state, goal), distance(state, other))
        same = torch.equal(policy(state, goal, state[:, :0]), policy(state, other, state[:, :0]))
        assert alike == same == (aims == 2)
    sharp = PolicyConfig(relu=True).build((5, 1, 1), 3, BoxActions(), 0)
    assert len([layer for layer in sharp.layers if isinstance(layer, torch.nn.ReLU)]) == 3
    assert not torch.equal(policy(other, goal, state[:, :0]), policy(goal, goal, state[:, :0]))
    for box in (FourierQuasimetricConfig(goal_dims=6), PolicyConfig(goal_dims=6)):
        with pytest.raises(ConfigError, match="goal_dims is 6, but a state has 5 numbers"):
            box.build((5, 1, 1), *([3, BoxActions(), 0] if isinstance(box, PolicyConfig) else []))


def test_a_unit_of_the_distance_may_be_many_env_steps(monkeypatch):
    config = small(recipes.maze())
    config = override(
        config,
        {
            "stages.train_goal_critic": TrainQuasimetric(
                length=6, optim=OptimConfig(steps=1, batch_size=32)
            )
        },
    )
    agent, requested = collect_data(config), []

    def note(distance, price, state, following, **how):
        requested.append((state.flatten(0, -2), following.flatten(0, -2)))
        return {"far": distance(state, following).mean()}

    monkeypatch.setattr(critics, "quasimetric_loss", note)
    take(agent, config, "train_goal_critic")
    ((state, following),) = requested
    episodes = encode_buffer(agent)
    whole = [episodes.get_episode(episode).states[0] for episode in episodes.episode_ids()]
    for here, there in zip(state, following, strict=True):
        later = [recorded[t + 6] for recorded in whole for t in range(len(recorded) - 6)
                 if torch.equal(recorded[t], here)]  # fmt: skip
        assert any(torch.equal(state, there) for state in later)
    with pytest.raises(ConfigError, match=r"length is 6.*goal_critic\.reachability.*must be 1"):
        check_stages(override(config, {"cost.goal_critic.reachability": 1.0}))
    with pytest.raises(
        ConfigError, match=r"train_goal_critic\.length is 25, but an episode has 24 steps"
    ):
        check_stages(
            override(
                config,
                {"stages.train_goal_critic.length": 25},
            )
        )
