"""Practice: Mode-2 lives, memory keeps it, and the dynamics learn what came of the plans."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build, capacity, lessons
from ami_agent.lessons import Practise, Refine
from ami_agent.lessons.base import as_states, primings
from ami_agent.life import live
from ami_agent.losses import unroll_loss
from ami_agent.players import Scene, mind
from modules.types import UnusableInput
from tests.conftest import small

SEED = 5


@pytest.fixture
def config() -> Config:
    return small(recipes.two_rooms_random(), steps=2)


def take(agent: Agent, config: Config, *names: str) -> None:
    for name in names:
        pupil = lessons(config)[name].begin(agent, config.world, SEED)
        while pupil.step < pupil.total:
            pupil.update()
        pupil.finish()


def experienced(config: Config, *names: str) -> Agent:
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    world.close()
    with torch.no_grad():  # a world model in which actions matter
        for parameter in agent.world_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator()))
    take(agent, config, *names)
    return agent


def test_memory_has_room_for_all_that_is_lived(config):
    agent = experienced(config, "life", "practice")
    lived = config.life.worlds * (config.life.steps + config.practice.steps)
    assert len(agent.memory) == lived


def test_what_is_remembered_is_what_mode_2_did(config):
    agent = experienced(config, "life", "practice")
    world = config.world.build(config.life.worlds)
    obs, info = world.reset(SEED)
    again = experienced(config)
    act = mind(again.eval(), "plan", config.tasks["reach"])(Scene(world, obs, info), SEED)
    story = [lived.transition for lived in islice(live(act, world, obs), config.practice.steps)]
    actions = torch.stack([step.action for step in story], 1)
    for episode in agent.memory.episodes()[1::2]:  # each world's second life
        path = agent.memory.recall(episode)
        same = [torch.equal(path.actions[0], theirs) for theirs in actions]
        assert sum(same) == 1
        assert torch.equal(path.obs[0, -1], story[-1].next_obs[same.index(True)])


def test_a_new_episode_has_a_new_goal(config):
    config = replace(config, practice=Practise(steps=6, options={"max_episode_steps": 3}))
    agent = experienced(config, "life")
    pupil = config.practice.begin(agent, config.world, SEED)
    goals, named = [], []  # with which each action was taken, and what the worlds named after it
    for _ in range(6):
        pupil.update()
        goals.append(agent.focus.goal)
        named.append(agent.perceive(pupil.world.goal(pupil.scene.info)))
    pupil.finish()
    assert all(torch.equal(goals[0], goal) for goal in [*goals[:3], named[0]])
    assert not torch.equal(goals[2], goals[4])  # the step in between only resets
    assert all(torch.equal(goals[4], goal) for goal in (goals[5], named[3]))


def test_refining_learns_from_the_latest_life_and_leaves_perception_alone(config):
    learning = replace(config.refine.learning, steps=80, batch=32, lr=3e-3)
    config = replace(config, refine=replace(config.refine, learning=learning))
    agent = experienced(config, "life", "practice")
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    error = error_on_practice(agent)
    take(agent, config, "refine")
    assert error_on_practice(agent) < 0.8 * error
    moved = {
        name.partition(".")[0]
        for name, value in agent.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"world_model"}


@torch.no_grad()
def error_on_practice(agent: Agent) -> float:
    batch = as_states(agent).sample(256, 5, torch.Generator().manual_seed(1), latest=True)
    return float(unroll_loss(agent.world_model, batch, torch.Generator())["prediction"])


def test_a_batch_that_has_no_half_is_refused(config):
    with pytest.raises(UnusableInput, match="a batch of 7"):
        Refine(learning=replace(config.refine.learning, batch=7))


@pytest.mark.parametrize("kind", [Practise, Refine])
def test_no_steps_are_refused(kind):
    name = {Practise: "steps", Refine: "length"}[kind]
    with pytest.raises(UnusableInput, match=f"{name} is 0"):
        kind(**{name: 0})


def test_the_ways_of_perceiving_are_the_own_one_first_and_each_other_once():
    agent = build(recipes.forage(), recipes.forage().world.build(1).spec)
    own, place = primings(agent)  # explore and stay share theirs
    assert own == dict.fromkeys(agent.spec.senses, 1.0)
    assert place == {**dict.fromkeys(agent.spec.senses, 0.0), "body": 1.0}


def test_a_first_round_that_could_not_be_lived_to_its_end_is_begun_anew(tiny):
    with closing(tiny.world.build(1)) as world:
        agent = build(tiny, world.spec)
    pupil = tiny.distil.begin(agent, tiny.world, 0)
    kept = pupil.state_dict()
    again = tiny.distil.begin(agent, tiny.world, 0)
    again.load_state_dict(kept)
    assert not again.labels
