"""The policy learns from imagined futures what planning would find, and nothing else learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import build, capacity, lessons
from ami_agent.checks import check_lessons
from ami_agent.learning import Learning
from ami_agent.lessons import Amortise
from ami_agent.lessons.base import as_states
from modules.actor import MapPolicy
from modules.bounds import Ball
from modules.configurator import Assignment, Task
from modules.types import UnusableInput
from tests.conftest import small

LESSON = Amortise(horizon=2, learning=Learning(steps=12, batch=16, lr=1e-2))


@torch.no_grad()
def acts_matter(agent: Agent) -> None:
    """Untaught, a world model changes nothing whatever is done."""
    dice = torch.Generator().manual_seed(0)
    for parameter in agent.world_model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))


def energies(agent: Agent, horizon: int) -> tuple[float, float]:
    """Mean energy of what the policy would do and of what Mode-2 finds, from states to goals of
    the same episodes."""
    batch = as_states(agent).sample(64, 1, torch.Generator().manual_seed(9), together=4)
    state = batch.states[:, 0]
    goal = state.unflatten(0, (-1, 4)).roll(1, 1).flatten(0, 1)
    focus = agent.configurator.focus(Task(goal=goal, horizon=horizon, steps=20), goal)
    agent.planner.reset()
    with torch.no_grad():
        actions, here = [], state
        for _ in range(horizon):
            actions.append(agent.policy(here, goal, focus.condition))
            here = agent.world_model.level(0).dynamics(here, actions[-1])
        future = agent.world_model.imagine(state, torch.stack(actions, 1)[:, None])
        habits = torch.stack(list(agent.cost(future, focus).values())).sum(0)
        planned = agent.planner(state, focus).energy
    return float(habits.mean()), float(planned.mean())


@pytest.mark.parametrize("recipe", ["two-rooms", "two-rooms-random"])
def test_habits_get_better_in_imagination_and_only_the_policy_learns(recipe):
    config = small(recipes.recipe(recipe), steps=2)
    lesson = Amortise(together=4, horizon=3)
    lesson = replace(lesson, learning=replace(lesson.learning, steps=40, batch=16, lr=1e-2))
    config = replace(config, amortise=lesson)
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    acts_matter(agent)
    for name in ("life", "amortise"):
        pupil = lessons(config)[name].begin(agent, config.world, seed=1)
        if name == "amortise":
            before = {key: value.clone() for key, value in agent.state_dict().items()}
            untaught, planned = energies(agent, 3)
        while pupil.step < pupil.total:
            pupil.update()
        pupil.finish()
    taught, _ = energies(agent, 3)
    assert untaught - taught > 0.5 * (untaught - planned) > 0
    after = agent.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"policy"}
    learners = set(agent.policy.parameters())
    assert all(p.grad is None and p.requires_grad for p in set(agent.parameters()) - learners)


def test_a_task_of_large_costs_does_not_drown_the_others(tiny):
    """A thousand times the energy has the same slope: Adam remembers the slopes of all tasks."""

    def first(scale: float) -> dict[str, torch.Tensor]:
        tasks = {"reach": Assignment(aim="world", weights={"reach": scale, "critic": 0.0})}
        config = replace(tiny, tasks=tasks, amortise=LESSON)
        world = config.world.build(1)
        agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
        acts_matter(agent)
        life = config.life.begin(agent, config.world, seed=1)
        while life.step < life.total:
            life.update()
        return LESSON.begin(agent, config.world, seed=1).update()

    small_costs, large_costs = first(1.0), first(1000.0)
    assert small_costs["gradient"] > 0
    torch.testing.assert_close(large_costs["gradient"], small_costs["gradient"])
    torch.testing.assert_close(large_costs["energy"], small_costs["energy"])


def test_only_the_tasks_that_are_named_are_practised():
    lesson = replace(LESSON, tasks=("eat",))
    config = replace(small(recipes.forage(), steps=2), amortise=lesson)
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    asked, focus = set(), agent.configurator.focus

    def spy(task, goal):
        asked.add(tuple(task.drives.items()))
        return focus(task, goal)

    agent.configurator.focus = spy
    life, practice = (
        lessons(config)[name].begin(agent, config.world, seed=1) for name in ("life", "amortise")
    )
    for pupil in (life, practice):
        while pupil.step < pupil.total:
            pupil.update()
    assert asked == {(("taste", 1.0),)}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (("eat", "fly"), "amortise.tasks names 'fly'; there are eat, flag, explore, stay"),
        ((), "can't practise 'explore'.*amortise.tasks may name eat, flag, stay"),
    ],
)
def test_tasks_that_cannot_be_practised_are_refused_before_anything_is_learnt(tasks, said):
    with pytest.raises(UnusableInput, match=said):
        check_lessons(replace(recipes.forage(), amortise=Amortise(tasks=tasks)))


def test_tasks_to_imitate_are_known():
    distil = replace(recipes.forage().distil, imitate=("stay", "fly"))
    with pytest.raises(UnusableInput, match=r"distil\.imitate names 'fly'; there are eat, flag"):
        check_lessons(replace(recipes.forage(), distil=distil))


def test_a_policy_of_maps_sees_every_place_where_it_is():
    shape = (2, 3, 4)
    policy = MapPolicy.Config(channels=5, hidden=8).build(shape, 2, Ball(), told=2)
    seen = []
    policy.layers.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    state, goal = torch.zeros(1, 24), torch.zeros(1, 24)
    state.view(1, *shape)[0, 1, 2, 3] = 7.0
    goal.view(1, *shape)[0, 0, 1, 2] = 5.0
    action = policy(state, goal, torch.tensor([[0.0, 3.0]]))
    assert action.shape == (1, 2)
    assert action.norm() <= 1
    (looked,) = seen
    assert looked.shape == (1, 6 + 2, 3, 4)
    assert looked[0, 1, 2, 3] == 7
    assert looked[0, 2 + 0, 1, 2] == 5
    assert looked[0, 4 + 0, 1, 2] == 5
    assert looked[0, 4 + 1, 2, 3] == -7
    assert looked[0, :6].count_nonzero() == 4
    assert (looked[0, 6] == 0).all()  # what is told of the task is the same everywhere
    assert (looked[0, 7] == 3).all()


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UnusableInput, match="groups of 3"):
        Amortise(together=3)


def test_every_update_has_another_chance_and_a_seed_the_same_ones():
    config = small(recipes.recipe("windy-rooms"), steps=2)
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    world.close()
    living = config.life.begin(agent, config.world, 0)
    while living.step < living.total:
        living.update()
    pupil = replace(LESSON, together=4).begin(agent, config.world, 0)

    def chance(seed: int) -> torch.Tensor:
        pupil.loss(torch.Generator().manual_seed(seed))
        return agent.eye.outlook.chance(torch.zeros(1, 0, LESSON.horizon, 2))[0]

    first, other, again = chance(1), chance(2), chance(1)
    assert not torch.equal(first, other)
    assert torch.equal(first, again)
