"""Where a level above leads: to landmarks that were lived, along the cheapest way, a stride at a
time; and to the goal itself where that is no dearer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from ami_agent import ablate, recipes
from ami_agent.build import build, capacity
from ami_agent.checks import check_lessons
from ami_agent.lessons import NoLesson, Survey
from ami_agent.train import train
from modules.actor import Restless
from modules.configurator import Assignment, Task
from modules.cost import NoCritic
from modules.hierarchy import Flat, LandmarkGraph
from modules.hierarchy.landmarks import CHUNK
from modules.hierarchy.patience import trusted
from modules.types import Distance, Focus, UnusableInput
from tests.conftest import small, unasked, wish

PLENTY = 40
WALL = 3.0


def straight(state: Tensor, goal: Tensor) -> Tensor:
    """Steps as the crow flies."""
    return (goal - state).square().sum(-1).sqrt()


def walled(state: Tensor, goal: Tensor) -> Tensor:
    """A wall on the line x = 3 that is open only above y = 4; far away it is not known of: a critic
    that is right near by and wrong across."""
    across = ((state[..., 0] - WALL) * (goal[..., 0] - WALL)) < 0
    low = torch.minimum(state[..., 1], goal[..., 1]) < 4
    far = straight(state, goal)
    return far + 30 * (across & low & (far < 3))


def graph(distance=straight, **told) -> LandmarkGraph:
    config = LandmarkGraph.Config(**{"hop": 1.0, "stride": 2.0, "hops": PLENTY, **told})
    return config.build((2, 1, 1), 2, Distance(lambda state: state, distance), unasked)


def charted(states: Tensor, distance=straight, **told) -> LandmarkGraph:
    level = graph(distance, landmarks=len(states), **told)
    level.chart(states, every_hop(states), states[:, None])
    return level


def every_hop(states: Tensor) -> Tensor:
    """Life has been from everywhere to everywhere."""
    return states[torch.cartesian_prod(*[torch.arange(len(states))] * 2)]


def lattice(width: int = 7, height: int = 6) -> Tensor:
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1) + torch.tensor([0.1, 0.0])


def wanting(goal: Tensor, **told) -> Focus:
    return wish(goal, weights={"critic": 1.0}, **told)


def priced(steps: Tensor, hop: float) -> Tensor:
    return steps * (1 + (steps / hop) ** 2)


def cheapest(start: Tensor, goal: Tensor, states: Tensor, hop: float, luck: Tensor) -> float:
    """The price of the cheapest way, by scipy; luck `[K]` is to be feared but where it begins and
    at the goal."""
    every = torch.cat([start[None], states, goal[None]])
    steps = straight(every[:, None], every[None])
    fear = torch.cat([torch.zeros(1), luck, torch.zeros(1)])
    dearer = torch.maximum(fear[:, None], fear).index_fill(1, torch.tensor(len(every) - 1), 0)
    price = (priced(steps, hop) + steps * dearer).double().numpy()
    return float(dijkstra(np.maximum(price, 1e-9), indices=0)[-1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), hop=st.floats(0.3, 3), tail=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_way_that_is_hoped_for_is_the_cheapest(seed, hop, tail):
    dice = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 3 * CHUNK, (), generator=dice))
    states, ends = torch.rand(count, 2, generator=dice) * 4, torch.rand(2, 1, 2, generator=dice) * 4
    level = graph(landmarks=count, futures=4, hop=hop, stride=0.02, ahead=1000)  # none passed over
    blown = states[:, None] + torch.rand(count, 4, 2, generator=dice)
    level.chart(states, every_hop(states), blown)
    back = (blown - states[:, None]).norm(dim=-1)
    back = (back - back.amin(1, keepdim=True)).numpy()
    counted = {0.0: 1, 0.5: 2, 1.0: 4}[tail]
    luck = torch.tensor([sorted(each)[-counted:] for each in back.tolist()]).mean(1)
    start, goal = ends
    way = [start[0], *level.plan(start, goal, tail)[0]]
    steps = torch.stack([straight(a, b) for a, b in pairwise(way)])
    assert torch.equal(way[-1], goal[0])
    place = [(states == at).all(-1).nonzero().flatten()[:1] for at in way]
    fear = torch.stack([luck[i].sum() for i in place])  # 0 at the start and at the goal
    dearer = torch.maximum(fear[:-1], fear[1:]) * torch.tensor([len(i) for i in place[1:]])
    price = float((priced(steps, hop) + steps * dearer).sum())
    assert price == pytest.approx(cheapest(start[0], goal[0], states, hop, luck), rel=1e-4)


def test_hopes_lie_a_stride_apart_and_end_at_the_goal():
    level = charted(lattice(), stride=2.0, ahead=5)
    hopes = level.plan(torch.tensor([[0.0, 0.0]]), torch.tensor([[6.3, 0.0]]))[0]
    assert hopes[-1].tolist() == pytest.approx([6.3, 0.0])
    assert hopes[:3, 0].tolist() == pytest.approx([1.1, 3.1, 5.1])
    assert hopes[:3, 1].abs().max() == 0


def test_the_way_leads_around_a_wall_that_the_critic_only_knows_near_by():
    start, goal = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    assert walled(start, goal) == 4  # flat, nothing is in the way
    hopes = charted(lattice(), walled, ahead=40, stride=0.5).plan(start, goal)[0]
    crossing = next(b for a, b in pairwise(hopes) if a[0] < WALL < b[0])
    assert crossing[1] >= 4
    assert torch.equal(hopes[-1], goal[0])


def test_the_way_is_a_gamble_on_the_mean_and_none_where_the_worst_counts():
    """Along y = 0, between x = 2 and 4, one step in ten throws back by 8."""
    states = lattice()
    risky = (states[:, 1] == 0) & (states[:, 0] > 1.5) & (states[:, 0] < 4.5)
    blown = states[:, None].repeat(1, 10, 1)
    blown[:, 3, 1] -= 8.0 * risky
    level = graph(landmarks=len(states), futures=10, ahead=40, stride=0.5)
    level.chart(states, every_hop(states), blown)
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    highest = {tail: float(level.plan(start, goal, tail)[0, :, 1].max()) for tail in (1.0, 0.0)}
    assert highest == {1.0: 0, 0.0: 1}
    for tail in (0.0, 1.0, 0.0):  # whatever was asked before, a task has its own way
        led = level(start, wanting(goal, tail=tail))
        assert torch.equal(led.hopes[:, 0], level.plan(start, goal, tail))
        level.reset()


def test_nothing_of_another_chart_is_kept():
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    risky = lattice()[:, None].repeat(1, 4, 1)
    risky[:, 0, 1] -= 8.0 * (lattice() == torch.tensor([3.1, 0.0])).all(-1)
    plans = []
    for blown in (lattice()[:, None], risky):
        level = graph(landmarks=len(lattice()), futures=4, ahead=40, stride=0.5)
        level.chart(lattice(), every_hop(lattice()), blown)
        plans.append((level.plan(start, goal, 0.0), level.state_dict()))
    (calm, weights), (careful, _) = plans
    assert not torch.equal(calm, careful)
    level.load_state_dict(weights)
    level.reset()
    assert torch.equal(level.plan(start, goal, 0.0), calm)
    level.chart(lattice(), every_hop(lattice()), risky)
    assert torch.equal(level.plan(start, goal, 0.0), careful)


def test_what_luck_may_cost_is_what_it_costs_beside_the_luckiest():
    """However far a step leads by itself, where all can be known nothing is feared."""
    states = lattice()
    plain, moved = charted(states), graph(landmarks=len(states))
    moved.chart(states, every_hop(states), states[:, None] + 3)
    assert not moved.setbacks.any()
    assert torch.equal(moved.total, plain.total)


def test_a_hop_that_nobody_has_made_is_not_taken_for_a_short_one():
    """The critic knows of no wall at all; whoever lived here went round it."""
    states = lattice()
    steps = (states[:, None] - states).norm(dim=-1)
    blocked = ((states[:, None, 0] - WALL) * (states[:, 0] - WALL) < 0) & (
        torch.minimum(states[:, None, 1], states[:, 1]) < 4
    )
    pairs = ((steps < 1.5) & ~blocked).nonzero()
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    highest = {}
    for unlived in (1.0, 10.0):
        level = graph(landmarks=len(states), unlived=unlived, ahead=8, stride=1.5, hop=0.5)
        level.chart(states, states[pairs], states[:, None])
        times = (level.price / priced(steps, 0.5)).nan_to_num(1.0)
        never = (
            torch.ones_like(blocked)
            .fill_diagonal_(False)
            .index_put(tuple(pairs.T), torch.tensor(False))
        )
        torch.testing.assert_close(times, 1 + (unlived - 1) * never)
        highest[unlived] = float(level.plan(start, goal)[0, :, 1].max())
    assert highest[1.0] == 0
    assert highest[10.0] >= 4


def test_a_hop_is_made_one_way_and_may_take_several_steps():
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    level = graph(landmarks=4, unlived=5.0)
    level.chart(states, states[:3][None] + 0.1, states[:, None])  # one walk, past the first three
    times = (level.price / priced(level.steps, 1.0)).nan_to_num(1.0)
    assert times.round().tolist() == [[1, 1, 1, 5], [5, 1, 1, 5], [5, 5, 1, 5], [5, 5, 5, 1]]


def test_whoever_gets_nowhere_goes_closely_and_then_owes_for_what_it_chose_and_what_is_beside():
    here = torch.zeros(3, 2)
    beside = torch.eye(4).bool()
    beside[1, 2] = True
    fresh = trusted(here, 4)._replace(chosen=torch.tensor([1, 4, 1]))
    none, far = torch.zeros(3), torch.tensor([True, True, True])
    moved = torch.tensor([0.0, 0.0, 1.0])
    once = fresh.repaired(here, moved, far, beside)
    assert once.closely.tolist() == [True, True, False]
    assert not once.debt.any()
    twice = once.repaired(here, none, far, beside)
    assert twice.closely.all()
    assert (twice.debt > 0).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0] * 5]
    own = once.repaired(here, none, far, beside.expand(3, 4, 4))  # landmarks of its own in each
    assert torch.equal(own.debt, twice.debt)
    on = twice.repaired(here, torch.ones(3), far, beside)
    torch.testing.assert_close(on.debt, twice.debt / 2)
    assert not twice.repaired(here, torch.ones(3), ~far, beside).debt.any()


def test_whoever_goes_closely_goes_to_the_next_landmark_that_it_is_not_at():
    start, goal = torch.tensor([[1.1, 2.0]]), torch.tensor([[6.1, 2.0]])
    level = charted(lattice(), stride=3.0)
    assert level(start, wanting(goal)).goal.tolist() == [pytest.approx([4.1, 2.0])]
    assert not level.trust.closely.any()
    level.trust = level.trust._replace(closely=torch.tensor([True]))
    found = level(start, wanting(goal))
    assert found.goal.tolist() == [pytest.approx([2.1, 2.0])]
    assert found.hopes[0, 0, 1].tolist() == goal[0].tolist()  # the others as ever


def pushed(place: Tensor, subgoal: Tensor, pace: float = 0.4) -> Tensor:
    """Straight ahead, as far as the wall on the line x = 3 lets it, `[B, 2]` each."""
    way = subgoal - place
    step = place + way * (pace / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
    crosses = ((place[:, 0] - WALL) * (step[:, 0] - WALL) < 0) & (step[:, 1] < 4)
    return torch.where(crosses[:, None], place, step)


def walked(patience: int, start: Tensor, goal: Tensor, steps: int = 200) -> list[Tensor]:
    """Where a body comes by a critic that knows of no wall, and landmarks between which nobody
    went through it."""
    states = lattice()
    near = (states[:, None] - states).norm(dim=-1) < 1.5
    across = ((states[:, None, 0] - WALL) * (states[:, 0] - WALL) < 0) & (
        torch.minimum(states[:, None, 1], states[:, 1]) < 4
    )
    level = graph(landmarks=len(states), patience=patience, unlived=100.0)
    level.chart(states, states[(near & ~across).nonzero()], states[:, None])
    way = [start]
    for _ in range(steps):
        way.append(pushed(way[-1], level(way[-1], wanting(goal)).goal))
    return way


def test_who_gets_nowhere_looks_for_another_way():
    start, goal = torch.tensor([[2.7, 2.0]]), torch.tensor([[5.0, 2.0]])
    held, free = (walked(patience, start, goal)[-1] for patience in (1000, 4))
    assert held[0, 0] < WALL
    assert torch.equal(free, goal)


def test_what_is_known_against_a_map_is_known_in_that_world_alone():
    start = torch.tensor([[2.7, 2.0], [1.0, 5.0]])
    goal = torch.tensor([[5.0, 2.0], [5.0, 5.0]])
    both, alone = walked(4, start, goal, 60), walked(4, start[1:], goal[1:], 60)
    assert all(torch.equal(a[1:], b) for a, b in zip(both, alone, strict=True))
    level = charted(lattice(), patience=4)
    for _ in range(40):
        level(start, wanting(goal))  # nobody moves at all
    assert (level.trust.debt.amax(-1) > 0).all()
    level.reset()
    first = charted(lattice(), patience=4)(start, wanting(goal)).hopes
    assert torch.equal(level(start, wanting(goal)).hopes, first)


def test_who_is_there_or_gets_on_has_nothing_against_the_map():
    start, goal = torch.tensor([[1.0, 5.0]]), torch.tensor([[5.0, 5.0]])
    level, place = charted(lattice(), patience=4), start
    for _ in range(60):
        place = pushed(place, level(place, wanting(goal)).goal)
    assert torch.equal(place, goal)
    assert not level.trust.debt.any()
    assert not level.trust.closely.any()


def test_near_goals_are_pursued_directly():
    level, goal = charted(lattice()), torch.tensor([[2.4, 2.4]])
    focus = level(torch.tensor([[2.1, 2.0]]), wanting(goal))
    assert torch.equal(focus.goal, goal)
    assert torch.equal(focus.hopes, goal.expand(1, 1, 4, 2))


def test_where_the_first_landmark_is_further_than_a_stride_it_is_the_subgoal():
    level = charted(torch.tensor([[5.0, 0.0], [9.0, 0.0]]), stride=1.0)
    assert level.plan(torch.zeros(1, 2), torch.tensor([[12.0, 0.0]]))[0, 0].tolist() == [5, 0]


def test_worlds_do_not_mix():
    dice = torch.Generator().manual_seed(0)
    level = charted(lattice())
    state, goal = torch.rand(2, 9, 2, generator=dice) * 6
    together = level.plan(state, goal)
    alone = [level.plan(state[i, None], goal[i, None])[0] for i in range(9)]
    assert torch.equal(together, torch.stack(alone))


def test_a_subgoal_stands_as_long_as_it_is_told_to():
    level, focus = charted(lattice(), every=3), wanting(torch.tensor([[6.0, 5.0]]))
    places = [torch.tensor([[x, 0.0]]) for x in (0.0, 1.0, 2.0, 3.0, 4.0)]
    goals = [level(place, focus).goal for place in places]
    assert torch.equal(goals[0], goals[2])
    assert torch.equal(goals[1], goals[2])
    assert not torch.equal(goals[2], goals[3])
    assert torch.equal(goals[3], level.plan(places[3], focus.goal)[:, 0])
    level.reset()
    assert torch.equal(level(places[1], focus).goal, level.plan(places[1], focus.goal)[:, 0])
    two = wanting(focus.goal.expand(2, -1))
    assert len(level(torch.cat(places[:2]), two).goal) == 2  # other worlds: planned anew


def test_a_task_without_a_goal_is_led_nowhere():
    level, focus = charted(lattice()), wish(torch.zeros(1, 2), weights={"pain": 1.0, "reach": 0.0})
    assert level(torch.ones(1, 2), focus) is focus


def test_before_there_are_landmarks_a_mind_is_flat():
    level, focus = graph(landmarks=5), wanting(torch.ones(2, 2))
    assert level(torch.zeros(2, 2), focus) is focus
    states = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    level.chart(states, states[None], states[:, None])
    assert level(torch.zeros(2, 2), focus).hopes.shape == (2, 1, 4, 2)


def test_two_landmarks_in_one_place_do_not_hold_anybody():
    states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    hopes = charted(states, ahead=5, stride=1.0).plan(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]))
    assert hopes[0, :, 0].tolist() == [1, 2, 3, 4, 4]


def test_flat_is_flat():
    focus = wanting(torch.ones(2, 2))
    assert Flat.Config().build((2, 1, 1), 2, None, unasked)(torch.zeros(2, 2), focus) is focus
    assert focus.hopes.shape[:2] == (2, 0)


@pytest.mark.parametrize(
    "setting",
    ["landmarks", "hop", "unlived", "stride", "ahead", "hops", "every", "futures", "patience"],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting):
    with pytest.raises(UnusableInput, match=f"{setting} is 0"):
        LandmarkGraph.Config(**{setting: 0})


@pytest.fixture
def mazes():
    return small(recipes.recipe("maze"))


@torch.no_grad()
def surveyed(config, seed: int = 0):
    world = config.world.build(1)
    agent = build(
        config, world.spec, seed=seed, worlds=config.life.worlds, capacity=capacity(config)
    )
    pupil = config.life.begin(agent, config.world, seed)
    while pupil.step < pupil.total:
        pupil.update()
    surveyor = config.survey.begin(agent, config.world, seed)
    while surveyor.step < surveyor.total:
        surveyor.update()
    surveyor.finish()
    return agent, surveyor


def test_landmarks_are_remembered_states_each_far_from_those_before(mazes):
    agent, surveyor = surveyed(mazes)
    distance, states, chosen = agent.cost.critic.distance, surveyor.states, []
    distance.requires_grad_(False)
    for place in surveyor.chosen:
        if chosen:
            there = distance(states[chosen][:, None], states[None])
            back = distance(states[None], states[chosen][:, None])
            apart = torch.maximum(there, back).amin(0)
            assert apart[place] == pytest.approx(float(apart.max()), abs=1e-5)
        chosen.append(int(place))
    assert torch.equal(agent.hierarchy.states, states[chosen])
    torch.testing.assert_close(
        agent.hierarchy.steps, distance(states[chosen][:, None], states[chosen][None])
    )


def test_a_landmark_is_chosen_once(mazes):
    _, surveyor = surveyed(mazes)
    assert len({int(place) for place in surveyor.chosen}) == mazes.hierarchy.landmarks


@torch.no_grad()
def test_what_luck_may_cost_is_imagined_by_the_world_model(mazes):
    agent, surveyor = surveyed(small(recipes.recipe("windy-rooms")))
    graph, distance, level = agent.hierarchy, agent.cost.critic.distance, agent.world_model.level(0)
    for learnt in (*level.parameters(), level.latent.remembered):
        learnt.normal_(0, 0.1)
    surveyor.finish()
    count = graph.config.futures
    for i, place in enumerate(surveyor.chosen):
        state, action = surveyor.states[place], surveyor.actions[place]
        ahead = level.step(
            state.expand(count, -1), action.expand(count, -1), surveyor.chance[:, 0]
        ).state
        back = distance(ahead, state)
        luck = (back - back.min()).sort(descending=True).values
        torch.testing.assert_close(graph.setbacks[i], luck, rtol=1e-4, atol=1e-5)
    assert graph.setbacks.any()
    assert not surveyed(mazes)[0].hierarchy.setbacks.any()  # all can be known there


def test_every_mode_pursues_the_subgoal_and_the_plan_tells_of_it(mazes):
    agent, _ = surveyed(mazes)
    world = mazes.evaluation.build(3, goal_distance="long")
    obs, info = world.reset(5)
    for mode in ("react", "plan", "auto"):
        agent.begin()
        agent.configure(Task(goal=world.goal(info), mode=mode))
        plan = agent.act(obs)
        state = agent.perceive(obs)
        hoped = agent.hierarchy.plan(state, agent.focus.goal)
        assert torch.equal(plan.hopes, hoped[:, None])
        assert torch.equal(plan.subgoals, hoped[:, None, 0])
        # the one below is told of nothing else
        told = agent.focus._replace(goal=hoped[:, 0], hopes=hoped[:, None])
        agent.actors[mode].reset()
        assert torch.equal(agent.actors[mode](state, told).actions, plan.actions)


def test_landmarks_are_part_of_a_run(mazes, tmp_path):
    agent = train(mazes, out=tmp_path / "run")
    again = train(mazes, out=tmp_path / "run", resume=True)
    assert agent.hierarchy.total.any()
    for name in ("states", "steps", "setbacks", "price", "total"):
        assert torch.equal(getattr(agent.hierarchy, name), getattr(again.hierarchy, name))


def test_hierarchies_that_do_not_fit_are_refused_before_anything_is_lived(mazes):
    for changes, why in (
        ({"survey": NoLesson()}, "knows nothing unless survey"),
        ({"hierarchy": Flat.Config()}, "survey teaches a LandmarkGraph, and hierarchy is Flat"),
        ({"survey": Survey(remembered=5)}, "survey.remembered is 5, but 6 landmarks"),
        ({"survey": Survey(length=99)}, "survey.length is 99, but a life has"),
        ({"temper": Restless.Config()}, "temper Restless"),
        ({"tasks": {"squint": Assignment(aim="world", attend={"obs": 0.5})}}, "task 'squint'"),
        ({"critic": NoCritic.Config(), "teacher": NoLesson()}, "asks the critic"),
    ):
        with pytest.raises(UnusableInput, match=why):
            check_lessons(replace(mazes, **changes))
    for part in ("hierarchy", "critic"):
        check_lessons(ablate.without(mazes, part))


def test_landmarks_are_looked_at_once_in_an_episode():
    """And again in the next: the critic may have learnt meanwhile."""
    seen = []

    def embed(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states

    level = LandmarkGraph.Config(landmarks=42).build(
        (2, 1, 1), 2, Distance(embed, straight), unasked
    )
    level.chart(lattice(), lattice()[None], lattice()[:, None])
    start, goal = torch.tensor([[0.0, 0.0]]), torch.tensor([[6.0, 5.0]])
    for _ in range(2):
        seen.clear()
        level.reset()
        first, again = (level.plan(start, goal) for _ in range(2))
        assert torch.equal(first, again)
        assert sorted(seen) == [1, 1, 1, 1, 42]
