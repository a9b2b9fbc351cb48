"""Subgoals of a landmark graph: landmarks of the replay buffer on the cheapest path, evenly spaced;
and the goal itself where that costs no more."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from ami_agent import ablation, recipes
from ami_agent.config import buffer_steps, build, override
from ami_agent.train import train
from ami_agent.training import SelectLandmarks
from ami_agent.validate import check_stages
from modules.actor.policy import StuckPerturbationConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.actor.subgoals.edge_feedback import initial_feedback
from modules.actor.subgoals.landmark_graph import CHUNK_SIZE
from modules.configurator import Task, TaskSpec
from modules.types import ConfigError, QuasimetricFns, TaskContext
from tests.conftest import Stepping, make_context, small, unexpected_query

PLENTY = 40
WALL = 3.0


def straight(state: Tensor, goal: Tensor) -> Tensor:
    """Steps in a straight line."""
    return (goal - state).square().sum(-1).sqrt()


def walled(state: Tensor, goal: Tensor) -> Tensor:
    """A wall on the line x = 3 that is open only above y = 4; far away it is not known of: a critic
    that is right nearby and wrong across."""
    across = ((state[..., 0] - WALL) * (goal[..., 0] - WALL)) < 0
    low = torch.minimum(state[..., 1], goal[..., 1]) < 4
    far = straight(state, goal)
    return far + 30 * (across & low & (far < 3))


def graph(distance=straight, **output) -> Stepping:
    config = LandmarkGraphConfig(
        **{"trusted_edge_length": 1.0, "subgoal_spacing": 2.0, "max_edges": PLENTY, **output}
    )
    quasimetric = QuasimetricFns(lambda state: state, distance)
    return Stepping(config.build((2, 1, 1), 2, quasimetric, unexpected_query))


def charted(states: Tensor, distance=straight, **output) -> Stepping:
    level = graph(distance, num_landmarks=len(states), **output)
    level.build(states, every_hop(states), states[:, None])
    return level


def every_hop(states: Tensor) -> Tensor:
    """Transitions from everywhere to everywhere."""
    return states[torch.cartesian_prod(*[torch.arange(len(states))] * 2)]


def lattice(width: int = 7, height: int = 6) -> Tensor:
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1) + torch.tensor([0.1, 0.0])


def with_target(goal: Tensor, **output) -> TaskContext:
    return make_context(goal, weights={"critic": 1.0}, **output)


def priced(steps: Tensor, edge: float) -> Tensor:
    return steps * (1 + (steps / edge) ** 2)


def bellman_ford(start: Tensor, goal: Tensor, states: Tensor, edge: float, noise: Tensor) -> float:
    """The cost of the cheapest path, by scipy; setbacks `[K]` count except at its start and
    at the goal."""
    every = torch.cat([start[None], states, goal[None]])
    steps = straight(every[:, None], every[None])
    noise_cost = torch.cat([torch.zeros(1), noise, torch.zeros(1)])
    setback = torch.maximum(noise_cost[:, None], noise_cost).index_fill(
        1, torch.tensor(len(every) - 1), 0
    )
    price = (priced(steps, edge) + steps * setback).double().numpy()
    return float(dijkstra(np.maximum(price, 1e-9), indices=0)[-1])


def apart(states: Tensor, distance: float) -> Tensor:
    """Those that are at least so far from every earlier one: a path passes over closer ones."""
    between = (
        torch.cdist(states, states)
        .tril(-1)
        .masked_fill_(torch.ones(len(states), len(states)).triu().bool(), torch.inf)
    )
    return states[(between >= distance).all(1)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), edge=st.floats(0.3, 3), tail=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_planned_path_is_the_cheapest(seed, edge, tail):
    rng = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 3 * CHUNK_SIZE, (), generator=rng))
    states, ends = torch.rand(count, 2, generator=rng) * 4, torch.rand(2, 1, 2, generator=rng) * 4
    states = apart(states, 0.03)
    count = len(states)
    level = graph(
        num_landmarks=count,
        num_outcomes=4,
        trusted_edge_length=edge,
        subgoal_spacing=0.02,
        num_subgoals=1000,
    )  # no landmark is passed over
    blown = states[:, None] + torch.rand(count, 4, 2, generator=rng)
    level.build(states, every_hop(states), blown)
    back = (blown - states[:, None]).norm(dim=-1)
    back = (back - back.amin(1, keepdim=True)).numpy()
    counted = {0.0: 1, 0.5: 2, 1.0: 4}[tail]
    noise = torch.tensor([sorted(each)[-counted:] for each in back.tolist()]).mean(1)
    start, goal = ends
    way = [start[0], *level.plan(start, goal, tail)[0]]
    steps = torch.stack([straight(a, b) for a, b in pairwise(way)])
    assert torch.equal(way[-1], goal[0])
    position = [(states == at).all(-1).nonzero().flatten()[:1] for at in way]
    noise_cost = torch.stack([noise[i].sum() for i in position])  # 0 at the start and at the goal
    setback = torch.maximum(noise_cost[:-1], noise_cost[1:]) * torch.tensor(
        [len(i) for i in position[1:]]
    )
    price = float((priced(steps, edge) + steps * setback).sum())
    assert price == pytest.approx(bellman_ford(start[0], goal[0], states, edge, noise), rel=1e-4)


def test_subgoals_are_spaced_evenly_and_end_at_the_goal():
    level = charted(lattice(), subgoal_spacing=2.0, num_subgoals=5)
    upper_plans = level.plan(torch.tensor([[0.0, 0.0]]), torch.tensor([[6.3, 0.0]]))[0]
    assert upper_plans[-1].tolist() == pytest.approx([6.3, 0.0])
    assert upper_plans[:3, 0].tolist() == pytest.approx([1.1, 3.1, 5.1])
    assert upper_plans[:3, 1].abs().max() == 0


def test_the_path_leads_around_a_wall_although_the_critic_is_exact_only_nearby():
    start, goal = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    assert walled(start, goal) == 4  # flat, nothing is in the way
    upper_plans = charted(lattice(), walled, num_subgoals=40, subgoal_spacing=0.5).plan(
        start, goal
    )[0]
    crossing = next(b for a, b in pairwise(upper_plans) if a[0] < WALL < b[0])
    assert crossing[1] >= 4
    assert torch.equal(upper_plans[-1], goal[0])


def test_the_path_takes_a_risk_for_the_mean_and_none_for_the_worst_case():
    """Along y = 0, between x = 2 and 4, one step in ten throws back by 8."""
    states = lattice()
    risky = (states[:, 1] == 0) & (states[:, 0] > 1.5) & (states[:, 0] < 4.5)
    blown = states[:, None].repeat(1, 10, 1)
    blown[:, 3, 1] -= 8.0 * risky
    level = graph(num_landmarks=len(states), num_outcomes=10, num_subgoals=40, subgoal_spacing=0.5)
    level.build(states, every_hop(states), blown)
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    highest = {tail: float(level.plan(start, goal, tail)[0, :, 1].max()) for tail in (1.0, 0.0)}
    assert highest == {1.0: 0, 0.0: 1}
    for tail in (0.0, 1.0, 0.0):  # whatever was planned before, a task has its own path
        led = level(start, with_target(goal, cvar_alpha=tail))
        assert torch.equal(led.upper_plans[:, 0], level.plan(start, goal, tail))
        level.reset()


def test_a_rebuilt_graph_keeps_nothing_of_the_old_one():
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    risky = lattice()[:, None].repeat(1, 4, 1)
    risky[:, 0, 1] -= 8.0 * (lattice() == torch.tensor([3.1, 0.0])).all(-1)
    plans = []
    for blown in (lattice()[:, None], risky):
        level = graph(
            num_landmarks=len(lattice()), num_outcomes=4, num_subgoals=40, subgoal_spacing=0.5
        )
        level.build(lattice(), every_hop(lattice()), blown)
        plans.append((level.plan(start, goal, 0.0), level.state_dict()))
    (calm, weights), (risk_averse, _) = plans
    assert not torch.equal(calm, risk_averse)
    level.load_state_dict(weights)
    level.reset()
    assert torch.equal(level.plan(start, goal, 0.0), calm)
    level.build(lattice(), every_hop(lattice()), risky)
    assert torch.equal(level.plan(start, goal, 0.0), risk_averse)


def test_the_expected_setback_is_relative_to_the_best_outcome():
    """However far a step leads by itself, a deterministic outcome is no setback."""
    states = lattice()
    plain, moved = charted(states), graph(num_landmarks=len(states))
    moved.build(states, every_hop(states), states[:, None] + 3)
    assert not moved.setback_samples.any()
    assert torch.equal(moved.path_costs, plain.path_costs)


def test_an_edge_without_transitions_is_not_believed_to_be_short():
    """The critic knows of no wall at all; the transitions lead round it."""
    states = lattice()
    steps = (states[:, None] - states).norm(dim=-1)
    blocked = ((states[:, None, 0] - WALL) * (states[:, 0] - WALL) < 0) & (
        torch.minimum(states[:, None, 1], states[:, 1]) < 4
    )
    pairs = ((steps < 1.5) & ~blocked).nonzero()
    start, goal = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])
    highest = {}
    for unlived in (1.0, 10.0):
        level = graph(
            num_landmarks=len(states),
            unvisited_edge_factor=unlived,
            num_subgoals=8,
            subgoal_spacing=1.5,
            trusted_edge_length=0.5,
        )
        level.build(states, states[pairs], states[:, None])
        times = (level.edge_costs / priced(steps, 0.5)).nan_to_num(1.0)
        never = (
            torch.ones_like(blocked)
            .fill_diagonal_(False)
            .index_put(tuple(pairs.T), torch.tensor(False))
        )
        torch.testing.assert_close(times, 1 + (unlived - 1) * never)
        highest[unlived] = float(level.plan(start, goal)[0, :, 1].max())
    assert highest[1.0] == 0
    assert highest[10.0] >= 4


def test_an_edge_has_a_direction_and_may_take_several_steps():
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    level = graph(num_landmarks=4, unvisited_edge_factor=5.0)
    level.build(states, states[:3][None] + 0.1, states[:, None])  # past the first three
    times = (level.edge_costs / priced(level.edge_lengths, 1.0)).nan_to_num(1.0)
    assert times.round().tolist() == [[1, 1, 1, 5], [5, 1, 1, 5], [5, 5, 1, 5], [5, 5, 5, 1]]


def test_without_progress_the_agent_follows_closely_and_then_penalises_edges():
    here = torch.zeros(3, 2)
    beside = torch.eye(4).bool()
    beside[1, 2] = True
    is_first = initial_feedback(here, 4)._replace(chosen_edge=torch.tensor([1, 4, 1]))
    none, far = torch.zeros(3), torch.tensor([True, True, True])
    moved = torch.tensor([0.0, 0.0, 1.0])
    once = is_first.update(here, moved, far, beside)
    assert once.follow_closely.tolist() == [True, True, False]
    assert not once.penalty.any()
    twice = once.update(here, none, far, beside)
    assert twice.follow_closely.all()
    assert (twice.penalty > 0).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0] * 5]
    own = once.update(here, none, far, beside.expand(3, 4, 4))  # landmarks of its own in each
    assert torch.equal(own.penalty, twice.penalty)
    on = twice.update(here, torch.ones(3), far, beside)
    torch.testing.assert_close(on.penalty, twice.penalty / 2)
    assert not twice.update(here, torch.ones(3), ~far, beside).penalty.any()


def test_following_closely_means_going_to_the_next_landmark():
    start, goal = torch.tensor([[1.1, 2.0]]), torch.tensor([[6.1, 2.0]])
    level = charted(lattice(), subgoal_spacing=3.0)
    assert level(start, with_target(goal)).goal.tolist() == [pytest.approx([4.1, 2.0])]
    assert not level.carry.edge_feedback.follow_closely.any()
    feedback = level.carry.edge_feedback._replace(follow_closely=torch.tensor([True]))
    level.carry = level.carry._replace(edge_feedback=feedback)
    found = level(start, with_target(goal))
    assert found.goal.tolist() == [pytest.approx([2.1, 2.0])]
    assert found.upper_plans[0, 0, 1].tolist() == goal[0].tolist()  # the others as ever


def pushed(position: Tensor, subgoal: Tensor, pace: float = 0.4) -> Tensor:
    """Straight ahead, as far as the wall on the line x = 3 allows, `[B, 2]` each."""
    way = subgoal - position
    step = position + way * (pace / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
    crosses = ((position[:, 0] - WALL) * (step[:, 0] - WALL) < 0) & (step[:, 1] < 4)
    return torch.where(crosses[:, None], position, step)


def walked(patience: int, start: Tensor, goal: Tensor, steps: int = 200) -> list[Tensor]:
    """Where an agent arrives with a critic that knows of no wall, and landmarks without transitions
    through it."""
    states = lattice()
    near = (states[:, None] - states).norm(dim=-1) < 1.5
    across = ((states[:, None, 0] - WALL) * (states[:, 0] - WALL) < 0) & (
        torch.minimum(states[:, None, 1], states[:, 1]) < 4
    )
    level = graph(num_landmarks=len(states), stuck_after=patience, unvisited_edge_factor=100.0)
    level.build(states, states[(near & ~across).nonzero()], states[:, None])
    way = [start]
    for _ in range(steps):
        way.append(pushed(way[-1], level(way[-1], with_target(goal)).goal))
    return way


def test_without_progress_another_path_is_chosen():
    start, goal = torch.tensor([[2.7, 2.0]]), torch.tensor([[5.0, 2.0]])
    held, free = (walked(patience, start, goal)[-1] for patience in (1000, 4))
    assert held[0, 0] < WALL
    assert torch.equal(free, goal)


def test_penalties_on_edges_apply_in_their_own_env_alone():
    start = torch.tensor([[2.7, 2.0], [1.0, 5.0]])
    goal = torch.tensor([[5.0, 2.0], [5.0, 5.0]])
    both, single = walked(4, start, goal, 60), walked(4, start[1:], goal[1:], 60)
    assert all(torch.equal(a[1:], b) for a, b in zip(both, single, strict=True))
    level = charted(lattice(), stuck_after=4)
    for _ in range(40):
        level(start, with_target(goal))  # no agent moves at all
    assert (level.carry.edge_feedback.penalty.amax(-1) > 0).all()
    level.reset()
    first = charted(lattice(), stuck_after=4)(start, with_target(goal)).upper_plans
    assert torch.equal(level(start, with_target(goal)).upper_plans, first)


def test_at_the_goal_or_with_progress_no_edge_is_penalised():
    start, goal = torch.tensor([[1.0, 5.0]]), torch.tensor([[5.0, 5.0]])
    level, position = charted(lattice(), stuck_after=4), start
    for _ in range(60):
        position = pushed(position, level(position, with_target(goal)).goal)
    assert torch.equal(position, goal)
    assert not level.carry.edge_feedback.penalty.any()
    assert not level.carry.edge_feedback.follow_closely.any()


def test_near_goals_are_pursued_directly():
    level, goal = charted(lattice()), torch.tensor([[2.4, 2.4]])
    context = level(torch.tensor([[2.1, 2.0]]), with_target(goal))
    assert torch.equal(context.goal, goal)
    assert torch.equal(context.upper_plans, goal.expand(1, 1, 4, 2))


def test_where_the_first_landmark_is_far_it_is_the_subgoal():
    level = charted(torch.tensor([[5.0, 0.0], [9.0, 0.0]]), subgoal_spacing=1.0)
    assert level.plan(torch.zeros(1, 2), torch.tensor([[12.0, 0.0]]))[0, 0].tolist() == [5, 0]


def test_envs_do_not_influence_one_another():
    rng = torch.Generator().manual_seed(0)
    level = charted(lattice())
    state, goal = torch.rand(2, 9, 2, generator=rng) * 6
    together = level.plan(state, goal)
    single = [level.plan(state[i, None], goal[i, None])[0] for i in range(9)]
    assert torch.equal(together, torch.stack(single))


def test_a_subgoal_is_kept_for_the_steps_of_its_setting():
    level, context = charted(lattice(), replan_every=3), with_target(torch.tensor([[6.0, 5.0]]))
    positions = [torch.tensor([[x, 0.0]]) for x in (0.0, 1.0, 2.0, 3.0, 4.0)]
    goals = [level(position, context).goal for position in positions]
    assert torch.equal(goals[0], goals[2])
    assert torch.equal(goals[1], goals[2])
    assert not torch.equal(goals[2], goals[3])
    assert torch.equal(goals[3], level.plan(positions[3], context.goal)[:, 0])
    level.reset()
    assert torch.equal(
        level(positions[1], context).goal, level.plan(positions[1], context.goal)[:, 0]
    )
    two = with_target(context.goal.expand(2, -1))
    assert len(level(torch.cat(positions[:2]), two).goal) == 2  # other environments: planned anew


def test_a_task_without_a_goal_gets_no_subgoal():
    level, context = (
        charted(lattice()),
        make_context(torch.zeros(1, 2), weights={"pain": 1.0, "goal_distance": 0.0}),
    )
    assert level(torch.ones(1, 2), context) is context


def test_before_there_are_landmarks_planning_is_flat():
    level, context = graph(num_landmarks=5), with_target(torch.ones(2, 2))
    assert level(torch.zeros(2, 2), context) is context
    states = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    level.build(states, states[None], states[:, None])
    assert level(torch.zeros(2, 2), context).upper_plans.shape == (2, 1, 4, 2)


def test_two_landmarks_in_one_place_do_not_stop_the_path():
    states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    upper_plans = charted(states, num_subgoals=5, subgoal_spacing=1.0).plan(
        torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])
    )
    assert upper_plans[0, :, 0].tolist() == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "setting",
    [
        "num_landmarks",
        "trusted_edge_length",
        "unvisited_edge_factor",
        "subgoal_spacing",
        "num_subgoals",
        "max_edges",
        "replan_every",
        "num_outcomes",
        "stuck_after",
    ],
)
def test_invalid_settings_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        LandmarkGraphConfig(**{setting: 0})


@pytest.fixture
def mazes():
    return small(recipes.recipe("maze"))


@torch.no_grad()
def surveyed(config, seed: int = 0):
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        seed=seed,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    stage_run = config.stages["collect"].start(agent, config.env, seed)
    while stage_run.step < stage_run.total:
        stage_run.update()
    landmark_run = config.stages["select_landmarks"].start(agent, config.env, seed)
    while landmark_run.step < landmark_run.total:
        landmark_run.update()
    landmark_run.finish()
    return agent, landmark_run


def test_landmarks_are_states_of_the_replay_buffer_far_from_one_another(mazes):
    agent, landmark_run = surveyed(mazes)
    distance, states, chosen = agent.cost.goal_critic.distance, landmark_run.states, []
    distance.requires_grad_(False)
    for position in landmark_run.chosen:
        if chosen:
            there = distance(states[chosen][:, None], states[None])
            back = distance(states[None], states[chosen][:, None])
            distance_ = torch.maximum(there, back).amin(0)
            assert distance_[position] == pytest.approx(float(distance_.max()), abs=1e-5)
        chosen.append(int(position))
    assert torch.equal(agent.subgoals.states, states[chosen])
    torch.testing.assert_close(
        agent.subgoals.edge_lengths, distance(states[chosen][:, None], states[chosen][None])
    )


def test_a_landmark_is_chosen_once(mazes):
    _, landmark_run = surveyed(mazes)
    assert (
        len({int(position) for position in landmark_run.chosen})
        == mazes.actor.subgoals.num_landmarks
    )


@torch.no_grad()
def test_setbacks_are_imagined_by_the_world_model(mazes):
    agent, landmark_run = surveyed(small(recipes.recipe("windy-rooms")))
    graph, distance, model = (
        agent.subgoals,
        agent.cost.goal_critic.distance,
        agent.world_model,
    )
    learnt_parts = (*model.dynamics.parameters(), *model.latent.parameters())
    for learnt in (*learnt_parts, model.latent.memory_bank):
        learnt.normal_(0, 0.1)
    landmark_run.finish()
    count = graph.config.num_outcomes
    for i, position in enumerate(landmark_run.chosen):
        state, action = landmark_run.states[position], landmark_run.actions[position]
        ahead = model.step(
            state.expand(count, -1), action.expand(count, -1), landmark_run.noise[:, 0]
        ).state
        back = distance(ahead, state)
        noise = (back - back.min()).sort(descending=True).values
        torch.testing.assert_close(graph.setback_samples[i], noise, rtol=1e-4, atol=1e-5)
    assert graph.setback_samples.any()
    assert not surveyed(mazes)[0].subgoals.setback_samples.any()  # all is deterministic there


def test_every_mode_pursues_the_subgoal_and_the_plan_holds_it(mazes):
    agent, _ = surveyed(mazes)
    controller = agent.controller(tensors=True)
    env = mazes.eval_env.build(3, goal_distance="long")
    obs, info = env.reset(5)
    for mode in ("react", "plan", "auto"):
        controller.reset()
        controller.set_task(Task(goal=env.goal(info), mode=mode))
        plan = controller.act(obs)
        state = agent.encode(obs)
        hoped = agent.subgoals.plan(state, controller.context.goal)
        assert torch.equal(plan.upper_plans, hoped[:, None])
        assert torch.equal(plan.subgoals, hoped[:, None, 0])
        # the one below gets no other subgoal
        output = controller.context._replace(goal=hoped[:, 0], upper_plans=hoped[:, None])
        assert torch.equal(Stepping(agent.actors[mode])(state, output).actions, plan.actions)


def test_landmarks_are_saved_with_a_run(mazes, tmp_path):
    agent = train(mazes, out=tmp_path / "run")
    again = train(mazes, out=tmp_path / "run", resume=True)
    assert agent.subgoals.path_costs.any()
    for name in ("states", "edge_lengths", "setback_samples", "edge_costs", "path_costs"):
        assert torch.equal(getattr(agent.subgoals, name), getattr(again.subgoals, name))


def test_hierarchies_that_do_not_fit_are_refused_before_collection(mazes):
    for changes, why in (
        ({"stages.select_landmarks": None}, "LandmarkGraph needs the stage select_landmarks"),
        (
            {"actor.subgoals": None},
            "select_landmarks trains a LandmarkGraph, and subgoals is None",
        ),
        (
            {"stages.select_landmarks": SelectLandmarks(num_candidates=5)},
            "select_landmarks.num_candidates is 5, but 6 landmarks",
        ),
        (
            {"stages.select_landmarks": SelectLandmarks(length=99)},
            "select_landmarks.length is 99, but an episode has",
        ),
        ({"actor.stuck_recovery": StuckPerturbationConfig()}, "stuck_recovery StuckPerturbation"),
        (
            {"tasks": {"squint": TaskSpec(goal_source="env", modality_weights={"obs": 0.5})}},
            "task 'squint'",
        ),
        (
            {"cost.goal_critic": None, "stages.train_goal_critic": None},
            "needs the goal critic",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            check_stages(override(mazes, changes))
    for part in ("hierarchy", "goal_critic"):
        check_stages(ablation.without(mazes, part))


def test_landmarks_are_embedded_once_in_an_episode():
    """And again in the next: the critic may have been trained meanwhile."""
    observed = []

    def embed(states: Tensor) -> Tensor:
        observed.append(len(states))
        return states

    level = Stepping(
        LandmarkGraphConfig(num_landmarks=42).build(
            (2, 1, 1), 2, QuasimetricFns(embed, straight), unexpected_query
        )
    )
    level.build(lattice(), lattice()[None], lattice()[:, None])
    start, goal = torch.tensor([[0.0, 0.0]]), torch.tensor([[6.0, 5.0]])
    for _ in range(2):
        observed.clear()
        level.reset()
        first, again = (level(start, with_target(goal)).goal for _ in range(2))
        assert torch.equal(first, again)
        assert sorted(observed) == [1, 1, 1, 1, 42]
