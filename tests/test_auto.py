"""Mode "auto" thinks where thinking promises more than habit, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ami_agent import players, recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build, capacity
from ami_agent.life import World, live
from ami_agent.players import Scene
from modules.auto import Auto, Expectation, Promises, splice
from modules.bounds import Box
from modules.planners import CEM, GradientPlanner, MindsEye
from modules.planners.common import Thought
from modules.types import Focus, Plan, Planner, Propose, Rollout, UnusableInput
from tests.conftest import small, stepwise, wish

BIG = 1e6


def glide(state: Tensor, actions: Tensor) -> Rollout:
    """The world s' = s + a, in which nothing is felt."""
    start = state[:, None, None].expand(-1, actions.shape[1], 1, -1)
    states = torch.cat([start, start + actions.cumsum(2)], 2)
    return Rollout(states, actions, actions[..., :0], actions[..., :0])


def miss_and_effort(rollout: Rollout, focus: Focus) -> dict[str, Tensor]:
    """How far the end is from the goal, and the way there, which costs what the task is told."""
    miss = (rollout.states[:, :, -1] - focus.goal[:, None]).square().sum(-1)
    return {"miss": miss, "effort": focus.condition * rollout.actions.square().sum((-2, -1))}


EYE = MindsEye(glide, stepwise(glide), miss_and_effort, Box(), 2)
WORLDS = 6
HERE = torch.tensor([[0.5, -0.3], [0.2, 0.9], [-0.4, 0.1], [0.9, 0.9], [-0.8, 0.3], [0.0, -0.6]])
THERE = HERE.roll(1, 0) + torch.tensor([0.3, -0.5])
TASK = wish(THERE, condition=torch.linspace(0.2, 2.0, WORLDS)[:, None])
LAZY = torch.tensor([False, True, True, False, True, False])
"""Where the policy knows no better than to rest."""


def best(state: Tensor, focus: Focus) -> Tensor:
    """argmin |s + sum a - g|^2 + w sum |a|^2 is H equal steps (g - s) / (H + w); `[B, 1, H, A]`."""
    step = (focus.goal - state) / (focus.horizon + focus.condition)
    return step[:, None, None].expand(-1, 1, focus.horizon, -1)


def rest(state: Tensor, focus: Focus) -> Tensor:
    return torch.zeros_like(best(state, focus))


def uneven(state: Tensor, focus: Focus) -> Tensor:
    """The best there is, but where it is lazy."""
    return torch.where(LAZY[:, None, None, None], rest(state, focus), best(state, focus))


class By:
    """Whose habit is a rule."""

    def __init__(self, rule: Propose) -> None:
        self.rule = rule

    def beside(self, state: Tensor, others: Tensor, focus: Focus) -> Thought:
        return EYE.look(state, torch.cat([self.rule(state, focus), others], 1), focus)


class Says(nn.Module):
    """Layers that answer by rule."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, told: Tensor) -> Tensor:
        return self.rule(told)[:, None]


def promise(energy: float) -> Expectation:
    """The same of every plan."""
    return Expectation(Says(lambda told: torch.full((len(told),), energy)), tasks=1, told=1)


def knowing() -> Expectation:
    """The energy of the best plan of three steps: w / (H + w) of the squared distance."""

    def least(told: Tensor) -> Tensor:
        way, weight = told[:, 4:6], told[:, 6]
        return weight / (3 + weight) * way.square().sum(-1)

    return Expectation(Says(least), tasks=1, told=1)


class Taped:
    """A planner, and what it was asked."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.asked: list[Tensor] = []
        self.given: list[Tensor] = []

    def reset(self, seed: int = 0) -> None:
        self.planner.reset(seed)

    def resume(self, actions: Tensor) -> None:
        self.given.append(actions)
        self.planner.resume(actions)

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        self.asked.append(state)
        return self.planner(state, focus)


def thinker(**how: int) -> GradientPlanner:
    """By default without chance: rest is its only guess."""
    config = GradientPlanner.Config(**{"proposals": 1, "horizon": 3, **how})
    return config.build(EYE, lambda state, focus: rest(state, focus)[:, :0])


def auto(
    expectation: Expectation,
    habit: Propose = uneven,
    planner: Planner | None = None,
    **how: Any,
) -> tuple[Auto, Taped]:
    tape = Taped(planner or thinker())
    return Auto.Config(**how).build(By(habit), tape, expectation, 2), tape


def rows(plan: Plan, worlds: Tensor) -> Plan:
    """The plan of some of the worlds."""
    parts: dict[str, Any] = {
        name: part[worlds] for name, part in plan._asdict().items() if isinstance(part, Tensor)
    }
    terms = {name: term[worlds] for name, term in plan.terms.items()}
    return plan._replace(**{**parts, "terms": terms})


def chosen_only(plan: Plan) -> Plan:
    """The plan without the futures that were only considered."""
    return plan._replace(considered=plan.states[:, None], energies=plan.energy[:, None])


def assert_same(one: Plan, other: Plan) -> None:
    torch.testing.assert_close(one._asdict(), other._asdict(), rtol=0, atol=0)


def test_who_expects_nothing_of_thinking_reacts_everywhere_and_never_asks():
    actor, tape = auto(promise(BIG))
    plan = actor(HERE, TASK)
    assert not plan.deliberated.any()
    assert not tape.asked
    assert torch.equal(plan.actions, uneven(HERE, TASK)[:, 0])


def test_who_already_does_the_best_there_is_needs_no_thought():
    actor, tape = auto(knowing(), best, tolerance=0.0)
    assert not actor(HERE, TASK).deliberated.any()
    assert not tape.asked


def test_who_expects_more_of_thinking_than_of_habit_thinks_everywhere_as_well_as_mode_2():
    actor, tape = auto(promise(-BIG))
    plan = actor(HERE, TASK)
    assert plan.deliberated.all()
    assert len(tape.asked) == 1
    everyone = torch.arange(WORLDS)
    assert_same(plan, chosen_only(after(uneven, thinker(), everyone)))
    own = EYE.decide(HERE, uneven(HERE, TASK), TASK).energy
    assert (plan.energy[LAZY] < own[LAZY]).all()


def test_only_the_worlds_that_need_it_are_thought_about_and_as_if_they_were_alone():
    actor, tape = auto(knowing(), planner=thinker(proposals=4))
    plan = actor(HERE, TASK)
    assert torch.equal(plan.deliberated, LAZY)
    assert torch.equal(tape.asked[0], HERE[LAZY])
    alone = after(rest, thinker(proposals=4), LAZY)
    assert_same(rows(plan, LAZY), chosen_only(alone))
    own = EYE.decide(HERE, uneven(HERE, TASK), TASK)
    reflex = own._replace(deliberated=torch.zeros(WORLDS, dtype=torch.bool))
    assert_same(rows(plan, ~LAZY), rows(reflex, ~LAZY))


def test_every_thought_starts_from_what_would_be_done_without_it():
    actor, tape = auto(promise(-BIG), planner=thinker(warm_steps=20, lr=0.05), patience=0)
    first = actor(HERE, TASK)
    assert torch.equal(tape.given[0], uneven(HERE, TASK))
    then, kept = onward(first), torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    actor(then, TASK)
    assert torch.equal(tape.given[1], torch.cat([uneven(then, TASK), kept[:, None]], 1))


def onward(plan: Plan) -> Tensor:
    """Where the first action of a plan leads."""
    return plan.states[:, 1]


def test_what_was_thought_out_once_is_carried_on_without_another_thought():
    """Of the best plan, what is left after a step is the best there is for what is left of the
    way."""
    actor, tape = auto(knowing(), rest, planner=thinker(warm_steps=60, lr=0.05), slack=0.1)
    first = actor(HERE, TASK)
    assert first.deliberated.all()
    then = actor(onward(first), TASK)
    assert not then.deliberated.any()
    assert len(tape.asked) == 1
    kept = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    assert torch.equal(then.actions, kept)
    own = EYE.decide(onward(first), rest(HERE, TASK), TASK)
    assert (then.energy < own.energy).all()


def test_who_has_just_thought_lets_it_be_for_a_while():
    """However much more is expected: what was found is all that would be found again."""
    actor, tape = auto(promise(-BIG), patience=2, slack=10.0)
    state, thought = HERE, []
    for _ in range(7):
        plan = actor(state, TASK)
        thought.append(plan.deliberated.tolist())
        state = onward(plan)
    everywhere, nowhere = [True] * WORLDS, [False] * WORLDS
    assert thought == [everywhere, nowhere, nowhere, everywhere, nowhere, nowhere, everywhere]
    assert len(tape.asked) == 3


def test_what_was_found_holds_in_its_own_world_for_its_own_time():
    promises, worse, better = Promises(patience=2), torch.full((3,), 9.0), torch.full((3,), 1.0)
    assert promises.broken(better).all()  # nothing was promised yet
    promises.make(torch.tensor([1]), torch.tensor([5.0]))
    assert promises.broken(better).tolist() == [True, False, True]
    promises.make(torch.tensor([0, 2]), torch.tensor([0.5, 3.0]))
    assert promises.broken(better).tolist() == [True, False, False]
    assert promises.broken(better).tolist() == [True, True, False]  # its time is over
    assert promises.broken(worse).all()
    promises.make(torch.tensor([0, 1, 2]), better)
    assert not promises.broken(better).any()
    promises.clear()
    assert promises.broken(better).all()


def test_in_another_life_nothing_holds_of_what_was_found():
    actor, _ = auto(promise(-BIG), slack=10.0)
    thought = []
    for begins in (False, False, True, False):
        if begins:
            actor.reset()
        thought.append(bool(actor(HERE, TASK).deliberated.all()))
    assert thought == [True, False, True, False]


def test_what_was_found_is_remembered_where_it_was_thought_about():
    """Much is expected where the policy is lazy, nothing elsewhere."""
    rule = Says(lambda told: torch.where(LAZY, -BIG, BIG))
    actor, tape = auto(Expectation(rule, tasks=1, told=1), slack=10.0)
    assert torch.equal(actor(HERE, TASK).deliberated, LAZY)
    assert not actor(HERE, TASK).deliberated.any()
    assert len(tape.asked) == 1


def test_where_less_comes_of_it_than_was_found_it_is_thought_about_again_and_only_there():
    actor, tape = auto(promise(-BIG), planner=thinker(warm_steps=60, lr=0.05), slack=0.01)
    first = actor(HERE, TASK)
    astray = torch.tensor([True, False, False, True, False, False])
    state = torch.where(astray[:, None], 2 * HERE - THERE, onward(first))  # twice as far away
    assert torch.equal(actor(state, TASK).deliberated, astray)
    assert torch.equal(tape.asked[1], state[astray])


@pytest.mark.parametrize(("worse", "thinks"), [(0.04, False), (0.06, True)])
def test_a_little_less_than_was_found_is_forgiven(worse, thinks):
    promises = Promises(patience=3)
    promises.broken(torch.zeros(2))
    promises.make(torch.tensor([1]), torch.tensor([2.0]))
    task = wish(torch.zeros(2, 2), horizon=1, condition=torch.zeros(2, 1))
    expectation = promise(-BIG)
    actor, _ = auto(expectation, rest, slack=0.05, tolerance=0.0)
    actor.promises = promises
    away = torch.tensor([[0.0, 0.0], [(2.0 + worse) ** 0.5, 0.0]])
    assert actor(away, task).deliberated.tolist() == [True, thinks]


def test_what_was_intended_is_what_is_left_of_it_a_step_later():
    def uneven_steps(state: Tensor, focus: Focus) -> Tensor:
        return best(state, focus) * torch.tensor([0.5, 1.0, 0.9])[:, None]

    actor, _ = auto(promise(BIG), uneven_steps)
    first = actor(HERE, TASK)
    actor.habit = By(rest)
    then = actor(onward(first), TASK)
    left = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    assert torch.equal(then.actions, left)


def test_what_was_intended_gives_way_to_a_better_habit():
    actor, _ = auto(promise(BIG), rest)
    actor(HERE, TASK)
    actor.habit = By(best)
    assert torch.equal(actor(HERE, TASK).actions, best(HERE, TASK)[:, 0])


@pytest.mark.parametrize(
    "elsewhere", [lambda actor: 2 * HERE - THERE, lambda actor: actor.reset() or HERE]
)
def test_what_was_intended_is_thought_out_anew_where_it_no_longer_serves(elsewhere):
    """Farther away, or in another life."""
    actor, tape = auto(knowing(), rest, planner=thinker(warm_steps=60, lr=0.05))
    actor(HERE, TASK)
    state = elsewhere(actor)
    plan = actor(state, TASK)
    assert plan.deliberated.all()
    assert len(tape.asked) == 2


def test_what_a_plan_shows_is_of_its_own_world():
    plan = auto(knowing())[0](HERE, TASK)
    for world in range(WORLDS):
        this = torch.tensor([world])
        mine = rows(plan, this)
        alone = EYE.decide(HERE[this], mine.actions[:, None], TASK.of(this))
        assert_same(mine, alone._replace(deliberated=mine.deliberated))
        torch.testing.assert_close(mine.energy, mine.terms["miss"] + mine.terms["effort"])


def after(habit: Propose, planner: Planner, worlds: Tensor) -> Plan:
    """What is thought in some of the worlds from a habit on."""
    planner.resume(habit(HERE, TASK)[worlds])
    return planner(HERE[worlds], TASK.of(worlds))


def half_way(share: float) -> Propose:
    """Goes so far of a way of length 1 that is all effort's worth: what is missed is (1 - x)^2."""
    return lambda state, focus: share * (focus.goal - state)[:, None, None]


@pytest.mark.parametrize(
    ("share", "expected", "how", "thinks"),
    [
        (0.69, 0.0, {"tolerance": 0.1, "slack": 0.0}, False),  # 0.0961 of 1 is missed
        (0.68, 0.0, {"tolerance": 0.1, "slack": 0.0}, True),  # 0.1024
        (0.69, 0.0, {"tolerance": 0.0, "slack": 0.05}, False),  # one deviation is 2
        (0.68, 0.0, {"tolerance": 0.0, "slack": 0.05}, True),
        (0.0, 0.85, {"tolerance": 0.5, "slack": 0.0}, True),  # at rest there is all to gain
        (-0.4, 2.0, {"tolerance": 0.5, "slack": 0.0}, False),  # 1.96: thinking expects less
        (-0.42, 2.0, {"tolerance": 0.5, "slack": 0.0}, True),  # 2.0164; and nothing is forgiven
    ],
)
def test_habit_may_forgo_a_share_of_the_gain_and_what_is_too_little_to_think_about(
    share, expected, how, thinks
):
    task = wish(torch.tensor([[1.0, 0.0]]), horizon=1, condition=torch.zeros(1, 1))
    expectation = promise(expected / 2)
    expectation.scale.fill_(2.0)
    actor, _ = auto(expectation, half_way(share), **how)
    assert actor(torch.zeros(1, 2), task).deliberated.tolist() == [thinks]


def test_an_expectation_is_of_the_state_the_goal_and_what_is_told_in_its_unit():
    layers = Says(lambda told: told @ torch.tensor([1.0, 10, 100, 1000]))
    expectation = Expectation(layers, tasks=1, told=1)
    expectation.mean.fill_(0.5)
    expectation.scale.fill_(2.0)
    state, goal, told = torch.tensor([[3.0]]), torch.tensor([[5.0]]), torch.tensor([[7.0]])
    assert expectation(state, goal, told).tolist() == [0.5 + 2 * (3 + 50 + 200 + 7000)]


def test_what_is_expected_of_every_task_has_a_size_of_its_own():
    expectation = Expectation(Says(lambda told: torch.ones(len(told))), tasks=3, told=2)
    nothing = torch.zeros(2, 1)
    assert expectation(nothing, nothing, torch.tensor([[0.0, 9.0], [1.0, 2.0]])).tolist() == [1, 1]
    expectation.adapt(2, torch.tensor([0.0, 1.0]), torch.tensor([100.0, 300.0]))
    assert (
        expectation(nothing, nothing, torch.tensor([[0.0, 9.0], [5.0, 1.0]])).tolist() == [300] * 2
    )
    expectation.adapt(0, torch.tensor([4.0, 1.0]), torch.tensor([-1.0, -3.0]))
    told = torch.tensor([[0.0, 1.0], [4.0, 1.0], [1.9, 1.0], [2.1, 1.0]])
    here = torch.zeros(4, 1)
    assert expectation(here, here, told).tolist() == [300, -1, 300, -1]  # the task told most alike


def test_what_is_too_little_to_think_about_depends_on_the_task():
    expectation = Expectation(Says(lambda told: torch.zeros(len(told))), tasks=2, told=1)
    expectation.adapt(0, torch.zeros(1), torch.tensor([0.9, 1.1]))
    expectation.adapt(1, torch.ones(1), torch.tensor([-9.0, 11.0]))
    actor, _ = auto(expectation, rest, tolerance=0.0, slack=0.1)
    far = wish(torch.tensor([[1.05, 0.0]] * 2), horizon=1, condition=torch.tensor([[0.0], [1.0]]))
    # resting costs 1.1025: more than 1.01, less than 2
    assert actor(torch.zeros(2, 2), far).deliberated.tolist() == [True, False]


def plan_of(seed: int, worlds: int, proposals: int) -> Plan:
    dice = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(worlds, *shape, generator=dice)

    return Plan(
        actions=drawn(3, 2),
        energy=drawn(),
        terms={"pain": drawn(), "limit pain": drawn().relu()},
        states=drawn(4, 5),
        hopes=drawn(1, 2, 5),
        considered=drawn(proposals, 4, 5),
        energies=drawn(proposals),
        deliberated=drawn() > 0,
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), chosen=st.sets(st.integers(0, 4), min_size=1))
def test_splicing_keeps_the_worlds_apart_and_both_plans_as_they_were(seed, chosen):
    worlds = torch.tensor(sorted(chosen))
    into, part = plan_of(seed, 5, 1), plan_of(seed + 1, len(worlds), 4)
    whole = splice(into, part, worlds)
    assert_same(rows(whole, worlds), chosen_only(part))
    others = torch.tensor([world for world in range(5) if world not in chosen], dtype=torch.long)
    assert_same(rows(whole, others), rows(into, others))
    assert_same(into, plan_of(seed, 5, 1))
    assert_same(part, plan_of(seed + 1, len(worlds), 4))


def test_a_new_life_with_the_same_seed_makes_the_same_plans():
    sampler = CEM.Config(samples=8, steps=2).build(EYE, lambda state, focus: rest(state, focus))
    actor, _ = auto(knowing(), planner=sampler)

    def lives(seed: int) -> Tensor:
        actor.reset(seed)
        return torch.stack([actor(HERE, TASK).actions for _ in range(3)])

    first, other, again = lives(3), lives(4), lives(3)
    assert torch.equal(first, again)
    assert not torch.equal(first[:, LAZY], other[:, LAZY])
    assert torch.equal(first[:, ~LAZY], other[:, ~LAZY])


@pytest.mark.parametrize("setting", ["hidden", "tolerance", "slack", "patience"])
def test_settings_that_make_no_sense_are_refused_by_name(setting):
    with pytest.raises(UnusableInput, match=f"{setting} is -1"):
        Auto.Config(**{setting: -1})


def mind(config: Config, worlds: int) -> tuple[Agent, World]:
    """An agent in whose world model actions matter, as after some learning."""
    world = config.evaluation.build(worlds)
    agent = build(config, world.spec, worlds=config.life.worlds, capacity=capacity(config))
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*agent.world_model.parameters(), *agent.cost.parameters()]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=dice))
    return agent.eval(), world


@pytest.fixture(scope="module")
def forager() -> tuple[Agent, World]:
    config = small(recipes.forage())
    planner = replace(config.planner, horizon=4, steps=2)
    config = replace(config, planner=planner, auto=replace(config.auto, patience=0))
    return mind(config, worlds=3)


@pytest.mark.parametrize(("expected", "thinks"), [(BIG, False), (-BIG, True)])
@pytest.mark.parametrize("name", recipes.forage().tasks)
def test_every_task_of_a_forager_can_be_done_as_need_be(forager, name, expected, thinks):
    agent, world = forager
    agent.expectation.mean.fill_(expected)
    plans: list[Plan] = []
    obs, info = world.reset(0)
    begin = players.mind(agent, "auto", agent.assignments[name], plans.append)
    moments = list(islice(live(begin(Scene(world, obs, info), 0), world, obs), 3))
    assert len(plans) == len(moments) == 3
    for plan in plans:
        assert (plan.deliberated == thinks).all()
        assert plan.actions.shape == (3, 4, 2)
        torch.testing.assert_close(agent.policy.bounds.project(plan.actions), plan.actions)
        torch.testing.assert_close(torch.stack(list(plan.terms.values())).sum(0), plan.energy)
        assert plan.energy.isfinite().all()


def test_the_policy_is_asked_once_for_every_imagined_step_though_it_is_thought_about(forager):
    agent, world = forager
    agent.expectation.mean.fill_(-BIG)
    obs, info = world.reset(0)
    act = players.mind(agent, "auto", agent.assignments["eat"])(Scene(world, obs, info), 0)
    asked: list[Tensor] = []
    handle = agent.policy.register_forward_hook(lambda policy, told, done: asked.append(done))
    act(obs)
    handle.remove()
    assert len(asked) == 4


def test_what_is_expected_of_plans_is_learnt_from_the_plans_that_were_made(tiny):
    learning = replace(tiny.distil.learning, steps=150, batch=64, lr=3e-3)
    distil = replace(tiny.distil, learning=learning, worlds=32, steps=8, rounds=2)
    agent, _ = mind(replace(tiny, distil=distil), worlds=40)
    agent.perception.layers[-1].weight.data *= 20  # places look as different as after learning
    pupil = distil.begin(agent, tiny.world, seed=1)
    while pupil.step < pupil.total:
        pupil.update()
    state, goal, condition, _, energy = pupil.known
    torch.testing.assert_close(agent.expectation.mean, energy.mean()[None])
    torch.testing.assert_close(agent.expectation.scale, energy.std(correction=0)[None])
    torch.testing.assert_close(agent.expectation.kinds, condition[:1])
    with torch.no_grad():
        expected = agent.expectation(state, goal, condition)
    missed = (expected - energy).square().mean() / energy.var()
    assert missed < 0.5


def test_even_a_single_plan_teaches_something(tiny):
    distil = replace(tiny.distil, worlds=1, steps=1, rounds=1)
    agent, _ = mind(tiny, worlds=1)
    pupil = distil.begin(agent, tiny.world, seed=1)
    assert all(value.isfinite() for value in pupil.update().values())
    torch.testing.assert_close(agent.expectation.mean, pupil.known.energy)


def test_nobody_thinks_as_need_be_who_was_never_taught_what_to_expect():
    config = recipes.recipe("gym")
    with closing(config.world.build(1)) as world:
        agent = build(config, world.spec)
        assert tuple(agent.actors) == ("react", "plan")
        with pytest.raises(UnusableInput, match="'auto'; there are react, plan"):
            agent.configure(config.tasks["reward"].task(None, "auto"))
