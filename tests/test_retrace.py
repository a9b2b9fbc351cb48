"""The policy does again what led somewhere; goals may be about a part of the state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build, capacity, lessons
from ami_agent.checks import check_lessons
from ami_agent.learning import Learning
from ami_agent.lessons import Retrace, Separate
from ami_agent.lessons import critic as critics
from ami_agent.lessons.base import as_states
from modules.actor import Policy
from modules.bounds import Box
from modules.configurator import Assignment
from modules.distance import WaveQuasimetric
from modules.types import UnusableInput
from tests.conftest import small

LESSON = Retrace(ahead=8, learning=Learning(steps=250, batch=128, lr=3e-3))


def lived(config: Config) -> Agent:
    """An agent with some life behind it."""
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    take(agent, config, "life")
    return agent


def take(agent: Agent, config: Config, name: str) -> None:
    pupil = lessons(config)[name].begin(agent, config.world, seed=1)
    while pupil.step < pupil.total:
        pupil.update()
    pupil.finish()


def rightness(agent: Agent) -> float:
    """Mean cosine of what the policy does at rest and the way to a goal a little beside it."""
    ways = 2 * torch.pi * torch.arange(16) / 16
    way = torch.stack([ways.cos(), ways.sin()], -1)
    rest = torch.zeros(16, 2)
    here, there = (
        agent.perceive(torch.cat([0.2 * torch.ones(16, 2) + step, rest], -1))
        for step in (0 * way, 0.12 * way)
    )
    with torch.no_grad():
        action = agent.policy(here, there, rest[:, :0])
    return float((action * way).sum(-1).div(action.norm(dim=-1)).mean())


def test_what_led_somewhere_is_done_again_and_only_the_policy_learns():
    config = replace(small(recipes.maze()), retrace=LESSON)
    config = replace(config, life=replace(config.life, worlds=64))
    agent = lived(config)
    assert rightness(agent) < 0.5
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    take(agent, config, "retrace")
    assert rightness(agent) > 0.7
    after = agent.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"policy"}


def test_who_has_no_goals_or_too_short_a_life_is_told():
    config = small(recipes.forage())
    config = replace(config, retrace=LESSON, tasks={"eat": Assignment(drives={"taste": 1.0})})
    agent = lived(config)
    with pytest.raises(UnusableInput, match="no task has one"):
        LESSON.begin(agent, config.world, 0)
    config = replace(small(recipes.maze()), retrace=replace(LESSON, ahead=25))
    with pytest.raises(UnusableInput, match=r"retrace\.ahead is 25, but a life has 24 steps"):
        check_lessons(config)


def test_a_goal_may_be_about_the_first_numbers_of_a_state():
    random = torch.Generator().manual_seed(0)
    state, goal = torch.randn(2, 7, 5, generator=random)
    other = torch.cat([goal[:, :2], goal[:, 2:] + 1], -1)
    for aims in (0, 2):
        distance = WaveQuasimetric.Config(aims=aims).build((5, 1, 1))
        policy = Policy.Config(aims=aims).build((5, 1, 1), 3, Box(), 0)
        alike = torch.equal(distance(state, goal), distance(state, other))
        same = torch.equal(policy(state, goal, state[:, :0]), policy(state, other, state[:, :0]))
        assert alike == same == (aims == 2)
    sharp = Policy.Config(kinks=True).build((5, 1, 1), 3, Box(), 0)
    assert len([layer for layer in sharp.layers if isinstance(layer, torch.nn.ReLU)]) == 3
    assert not torch.equal(policy(other, goal, state[:, :0]), policy(goal, goal, state[:, :0]))
    for box in (WaveQuasimetric.Config(aims=6), Policy.Config(aims=6)):
        with pytest.raises(UnusableInput, match="aims is 6, but a state has 5 numbers"):
            box.build((5, 1, 1), *([3, Box(), 0] if isinstance(box, Policy.Config) else []))


def test_a_step_of_the_distance_may_be_many_of_life(monkeypatch):
    config = small(recipes.maze())
    config = replace(config, teacher=Separate(length=6, learning=Learning(steps=1, batch=32)))
    agent, asked = lived(config), []

    def note(distance, price, state, following, **how):
        asked.append((state.flatten(0, -2), following.flatten(0, -2)))
        return {"far": distance(state, following).mean()}

    monkeypatch.setattr(critics, "quasimetric_loss", note)
    take(agent, config, "teacher")
    ((state, following),) = asked
    lives = as_states(agent)
    whole = [lives.recall(episode).states[0] for episode in lives.episodes()]
    for here, there in zip(state, following, strict=True):
        later = [life[t + 6] for life in whole for t in range(len(life) - 6)
                 if torch.equal(life[t], here)]  # fmt: skip
        assert any(torch.equal(state, there) for state in later)
    with pytest.raises(UnusableInput, match=r"teacher\.length is 25, but a life has 24 steps"):
        check_lessons(replace(config, teacher=replace(config.teacher, length=25)))
