"""Six boxes as one mind: the same seed lives the same life, and learning moves only its box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from ami_agent import players, recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build, capacity, lessons
from ami_agent.lessons import Bootstrap, NoLesson
from ami_agent.life import World, live
from ami_agent.players import Scene
from modules.actor import NoHabit, Restless
from modules.configurator import Assignment, Task
from modules.cost import NoCritic
from modules.recall import Associative, Belief, NoRecall
from modules.types import Observation, Plan, UnusableInput, by_sense
from tests.conftest import small

MODES = ("react", "plan", "auto")
LEARNS = {
    "life": set(),
    "objective": {"perception", "world_model"},
    "teacher": {"cost"},
    "paths": {"cost"},
    "foresee": {"cost"},
    "interact": {"world_model", "cost", "policy"},
    "practice": set(),
    "refine": {"world_model"},
    "ascend": {"hierarchy"},
    "survey": {"hierarchy"},
    "retrace": {"policy"},
    "amortise": {"policy"},
    "distil": {"policy", "expectation"},
}
"""Which boxes a lesson moves."""


def mind(config: Config, worlds: int = 2, seed: int = 0) -> tuple[Agent, World]:
    """A fresh agent and the worlds it is to live in."""
    world = config.evaluation.build(worlds)
    return build(
        config, world.spec, seed=seed, worlds=config.life.worlds, capacity=capacity(config)
    ), world


def waking(
    config: Config, mode: str, *, seed: int = 0, worlds: int = 2
) -> tuple[Agent, Observation]:
    """An agent that has seen where it is and been told where to go."""
    agent, world = mind(config, worlds)
    obs, info = world.reset(seed)
    awake(agent)
    agent.configure(Task(goal=world.goal(info), mode=mode))
    return agent, obs


def awake(agent: Agent) -> None:
    """A world model in which actions matter, as after some learning."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.world_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))


def life_of(config: Config, seed: int, mode: str, steps: int = 4) -> Tensor:
    """Actions `[T, B, A]`."""
    agent, world = mind(config, seed=seed)
    obs, info = world.reset(seed)
    agent.configure(Task(goal=world.goal(info), mode=mode), seed)
    lived = islice(live(lambda obs: agent.act(obs).action, world, obs), steps)
    return torch.stack([step.transition.action for step in lived])


def weights_of(agent: Agent) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in agent.state_dict().items()}


def moved(agent: Agent, before: dict[str, Tensor]) -> set[str]:
    """The boxes of which a number changed."""
    after = agent.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same(one: Plan, other: Plan) -> bool:
    return torch.equal(one.actions, other.actions) and torch.equal(one.states, other.states)


def test_who_has_no_task_cannot_act(tiny):
    agent, world = mind(tiny)
    with pytest.raises(UnusableInput, match="configure"):
        agent.act(world.reset(0)[0])


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"mode": "sleep"}, "'sleep'; there are react, plan, auto"),
        (
            {"weights": {"hunger": 1.0}},
            "'hunger'; there are reach, effort, boredom, curiosity, cri",
        ),
        ({"horizon": -1}, "horizon -1"),
        ({"steps": -2}, "steps -2"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_and_the_old_one_stays(tiny, wish, complaint):
    agent, obs = waking(tiny, "plan")
    before = agent.focus
    with pytest.raises(UnusableInput, match=complaint):
        agent.configure(Task(goal=obs, **wish))
    assert agent.focus is before


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_lives_the_same_life_and_another_another(tiny, mode):
    first = life_of(tiny, 1, mode)
    assert torch.equal(first, life_of(tiny, 1, mode))
    assert not torch.equal(first, life_of(tiny, 2, mode))


def test_fresh_weights_depend_on_the_seed_alone_and_use_up_no_chance_of_others(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights_of(mind(tiny, seed=3)[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    torch.testing.assert_close(weights_of(mind(tiny, seed=3)[0]), first, rtol=0, atol=0)
    boxes = {"perception", "world_model", "cost", "policy", "expectation"}
    assert moved(mind(tiny, seed=4)[0], first) == boxes


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_with_a_plan_that_the_body_can_carry_out(tiny, mode):
    agent, obs = waking(tiny, mode)
    plan = agent.act(obs)
    length = plan.actions.shape[1]
    assert plan.action.shape == (2, 2)
    assert plan.energy.shape == (2,)
    assert plan.states.shape[1] == plan.considered.shape[2]
    assert plan.states.shape[1] == (1 if mode == "react" else length + 1)
    torch.testing.assert_close(plan.states[:, 0], agent.perceive(obs))
    torch.testing.assert_close(agent.policy.bounds.project(plan.actions), plan.actions)
    assert not plan.actions.requires_grad


def test_the_task_says_how_far_to_look_and_what_hurts(tiny):
    agent, obs = waking(tiny, "plan")
    wanted = {"effort": 2.0, "critic": 0.5, "reach": 0.0}
    agent.configure(Task(goal=obs, horizon=3, weights=wanted))
    plan = agent.act(obs)
    assert plan.actions.shape == (2, 3, 2)
    effort = plan.actions.square().sum(-1).mean(-1)
    torch.testing.assert_close(dict(plan.terms)["effort"], 2 * effort)
    assert set(plan.terms) == {"effort", "critic"}


def test_a_new_goal_in_the_middle_of_an_episode_is_a_new_task_altogether(tiny):
    config = replace(tiny, execute=3)
    agent, obs = waking(config, "plan")
    old = agent.act(obs)
    agent.configure(Task(goal=obs), seed=0)
    torch.testing.assert_close(agent.focus.goal, agent.perceive(obs))
    fresh, _ = waking(config, "plan")
    fresh.configure(Task(goal=obs), seed=0)
    plan = agent.act(obs)
    assert same(plan, fresh.act(obs))
    assert not torch.equal(plan.actions, old.actions)


def test_changing_the_mode_keeps_the_mind(tiny):
    agent, obs = waking(tiny, "react")
    before = weights_of(agent)
    reflex = agent.act(obs)
    agent.configure(Task(goal=obs, mode="plan"))
    agent.act(obs)
    agent, obs = waking(tiny, "react")
    assert moved(agent, before) == set()
    assert same(agent.act(obs), reflex)


def test_a_reflex_in_one_world_is_the_same_as_among_many(tiny):
    agent, obs = waking(tiny, "react", worlds=5)
    together = agent.act(obs).action
    focus = agent.focus
    for world in range(5):
        agent.focus = focus.of(torch.tensor([world]))
        torch.testing.assert_close(agent.act(obs[world, None]).action[0], together[world])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_takes_its_lessons_and_each_moves_its_own_boxes_only(name):
    config = small(recipes.recipe(name), steps=2)
    agent, world = mind(config)
    for index, (lesson, how) in enumerate(lessons(config).items()):
        before = weights_of(agent)
        pupil = how.begin(agent, config.world, seed=index)
        while pupil.step < pupil.total:
            assert all(value.isfinite() for value in pupil.update().values())
        pupil.finish()
        assert moved(agent, before) == learns(config, lesson)
    for mode in agent.actors:
        for assignment in agent.assignments.values():
            obs, info = world.reset(0)
            act = players.mind(agent, mode, assignment)(Scene(world, obs, info), 0)
            for lived in islice(live(act, world, obs), 2):
                assert shapes(lived.transition.next_obs) == shapes(obs)


def learns(config: Config, lesson: str) -> set[str]:
    """The boxes that a lesson of these settings moves."""
    if isinstance(lessons(config)[lesson], NoLesson):
        return set()
    recalls = lesson == "objective" and not isinstance(config.recall, NoRecall.Config)
    keeps = config.landmarks and lesson in ("life", "practice")
    return LEARNS[lesson] | ({"recall"} if recalls else set()) | ({"landmarks"} if keeps else set())


def shapes(obs: Observation) -> dict[str, torch.Size]:
    return {name: part.shape for name, part in by_sense(obs).items()}


@pytest.mark.parametrize("recall", [Belief.Config(hidden=4), Associative.Config(size=4)])
def test_what_may_be_recalled_is_learnt_with_perception_and_by_nobody_else(tiny, recall):
    config = replace(tiny, recall=recall, objective=replace(tiny.objective, context=2))
    agent, before = taught(config, ("life", "objective"))
    after = agent.state_dict()
    assert moved(agent, before) == {"perception", "recall", "world_model"}
    parts = {name for name in before if name.startswith("recall.")}
    assert not any(torch.equal(before[name], after[name]) for name in parts)
    assert moved(*taught(config, ("life", "teacher"))) == {"cost"}
    assert moved(*taught(config, ("distil",))) == LEARNS["distil"]


def taught(config: Config, names: tuple[str, ...]) -> tuple[Agent, dict[str, Tensor]]:
    """After some lessons, and its weights before the last one."""
    agent, _ = mind(config)
    for name in names:
        before = weights_of(agent)
        pupil = lessons(config)[name].begin(agent, config.world, seed=1)
        while pupil.step < pupil.total:
            pupil.update()
        pupil.finish()
    return agent, before


def test_distilling_moves_every_layer_of_the_policy_and_of_what_is_expected_of_plans(tiny):
    agent, before = taught(tiny, ("distil",))
    after = agent.state_dict()
    learnt = [name for name in before if name.startswith(("policy.", "expectation."))]
    assert {name.split(".")[0] for name in learnt} == {"policy", "expectation"}
    assert not any(torch.equal(before[name], after[name]) for name in learnt if after[name].numel())


@pytest.mark.parametrize("imitate", [(), ("stay",)])
def test_where_nothing_is_to_be_imitated_the_policy_is_to_go_on_as_it_does(imitate):
    config = small(recipes.forage(), steps=1)
    planner = replace(config.planner, horizon=3, steps=2)
    distil = replace(config.distil, imitate=imitate, rounds=4)
    agent, _ = mind(replace(config, planner=planner))
    pupil = distil.begin(agent, config.world, seed=1)
    rounds = [pupil._ask(turn) for turn in range(4)]  # the policy has learnt nothing yet
    for name, label in zip(config.tasks, rounds, strict=True):
        own = agent.policy(label.state, label.goal, label.condition)
        as_it_does = torch.allclose(label.action, own, atol=1e-6)
        assert as_it_does == bool(imitate and name not in imitate)


def test_after_a_first_round_under_mode_2_the_policy_lives_by_itself():
    config = small(recipes.forage(), steps=1)
    planner = replace(config.planner, horizon=3, steps=2)
    agent, _ = mind(replace(config, planner=planner))
    pupil = replace(config.distil, imitate=()).begin(agent, config.world, seed=1)
    dare, dared = pupil._dare, []
    pupil._dare = lambda action, random: dared.append(action) or dare(action, random)
    tasks = len(config.tasks)
    for turn in (0, tasks):
        dared.clear()
        label = pupil._ask(turn)
        own = agent.policy(label.state, label.goal, label.condition)
        assert not torch.allclose(label.action, own, atol=1e-3)
        lived = label.action if turn < tasks else own
        torch.testing.assert_close(torch.cat(dared), lived, atol=1e-6, rtol=0)


def test_bootstrapping_moves_only_the_critic(tiny):
    learning = replace(tiny.teacher.learning, steps=2)
    config = replace(tiny, teacher=Bootstrap(learning=learning, length=4))
    assert moved(*taught(config, ("life", "teacher"))) == {"cost"}


def test_the_same_seed_learns_the_same(tiny):
    names = tuple(lessons(tiny))
    first, second = (taught(tiny, names)[0] for _ in range(2))
    assert moved(first, weights_of(second)) == set()


def test_learning_leaves_memory_as_it_was_lived(tiny):
    agent, _ = taught(tiny, ("life",))
    lived = {name: part.clone() for name, part in agent.memory.state_dict().items()}
    for name in ("objective", "teacher", "distil"):
        pupil = lessons(tiny)[name].begin(agent, tiny.world, seed=1)
        pupil.update()
    torch.testing.assert_close(agent.memory.state_dict(), lived, rtol=0, atol=0)


def test_the_critic_stays_the_teacher_until_its_student_has_learnt():
    config = small(recipes.two_rooms_random(), steps=2)
    agent, _ = taught(config, ("life",))
    before = weights_of(agent)
    pupil = config.paths.begin(agent, config.world, seed=1)
    pupil.update()
    assert moved(agent, before) == set()
    pupil.finish()
    assert moved(agent, before) == {"cost"}


@pytest.mark.parametrize("lesson", ["teacher", "paths"])
def test_who_has_no_critic_cannot_teach_it(lesson):
    config = small(recipes.two_rooms_random(), steps=2)
    config = replace(config, critic=NoCritic.Config())
    with pytest.raises(UnusableInput, match="without a critic"):
        taught(config, ("life", lesson))


def weigh(**weights: float) -> Callable[[Config], Config]:
    def changed(config: Config) -> Config:
        return replace(config, configurator=replace(config.configurator, **weights))

    return changed


@pytest.mark.parametrize("ablation", [weigh(reach=1.0, critic=0.0), weigh()])
def test_without_a_critic_one_can_still_plan(tiny, ablation):
    agent, obs = waking(ablation(replace(tiny, critic=NoCritic.Config())), "plan")
    assert agent.act(obs).energy.isfinite().all()


def test_arrays_are_taken_as_gymnasium_delivers_them(tiny):
    agent, world = mind(tiny)
    obs, info = world.reset(0)
    agent.configure(Task(goal=world.goal(info)))
    told = agent.act(obs)
    agent.configure(Task(goal=world.goal(info).numpy()))
    assert same(agent.act(obs.numpy()), told)
    with pytest.raises(UnusableInput, match="observation is a list; it must be a batch of"):
        agent.act([1, 2])


def test_where_an_episode_begins_nobody_goes_on_with_a_plan(tiny):
    agent, obs = waking(replace(tiny, execute=3, habit=NoHabit.Config()), "plan")
    agent.begin()
    first = agent.act(obs)
    agent.act(obs)
    assert agent.actors["plan"].left
    agent.begin()
    assert agent.act(obs).actions.shape == first.actions.shape  # a whole plan, not the rest of one


def test_who_is_to_stay_stays_where_it_was_when_it_was_told_whatever_begins_elsewhere(tiny):
    world = tiny.evaluation.build(3)
    obs, info = world.reset(0)
    errand = players.Errand(Assignment(aim="here"))
    errand.task(Scene(world, obs, info), "plan")
    fresh = torch.tensor([False, True, False])
    goal = errand.task(Scene(world, obs + 1, info, fresh), "plan").goal
    assert torch.equal(goal, torch.where(fresh[:, None, None, None], obs + 1, obs))


def test_what_is_thought_in_one_world_does_not_depend_on_how_many_others_there_are(tiny):
    """The chance in it is the same in all."""
    config = replace(tiny, habit=NoHabit.Config(), temper=Restless.Config(content=0.0))
    agent, world = mind(config, worlds=5)
    obs, info = world.reset(0)
    awake(agent)
    goal = world.goal(info)
    plans = []
    for worlds in ([0, 1, 2, 3, 4], [3]):
        agent.begin()
        agent.configure(Task(goal=goal[worlds]), seed=4)
        plans.append([agent.act(obs[worlds]).actions[-1 if worlds == [3] else 3] for _ in range(7)])
    torch.testing.assert_close(plans[0], plans[1], atol=1e-4, rtol=0)
