"""Distances that learn the lengths of cheapest paths over landmarks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.train import train
from ami_agent.training import DistillLandmarkPaths
from ami_agent.training.path_distillation import LandmarkPathRun, LandmarkPaths
from ami_agent.validate import check_stages
from modules.actor.subgoals import LandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import LandmarkGraph
from modules.actor.subgoals.shortest_paths import distance_penalty, shortest_paths_with_lengths
from modules.cost.goal_critic import excess_steps
from modules.types import ConfigError, QuasimetricFns
from modules.world_model.hjepa import SharedCriticConfig
from tests.conftest import small
from tests.test_hierarchy import every_hop, lattice, walled
from tests.test_hjepa import GOAL, START, borrowing, levels, plan_of, with_target

STAGE = DistillLandmarkPaths(
    num_landmarks=12, num_candidates=60, num_windows=20, length=4, num_states=40
)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(2, 12))
def test_the_length_of_the_cheapest_path_is_that_of_its_edges(seed, size):
    rng = torch.Generator().manual_seed(seed)
    costs = torch.rand(size, size, generator=rng).add(0.01).fill_diagonal_(0)
    lengths = torch.rand(size, size, generator=rng).fill_diagonal_(0)
    found = shortest_paths_with_lengths(costs, lengths)
    best, before = dijkstra(costs.double().numpy(), return_predecessors=True)
    for start, goal in np.ndindex(size, size):
        length, node = 0.0, goal
        while node != start:
            length += float(lengths[before[start, node], node])
            node = before[start, node]
        assert float(found[0][start, goal]) == pytest.approx(best[start, goal], abs=1e-5)
        assert float(found[1][start, goal]) == pytest.approx(length, abs=1e-5)


def paths_over_a_lattice(states: Tensor) -> LandmarkPaths:
    """A wall on the line x = 3 that is open above y = 4, which the critic knows nearby alone."""
    landmarks = lattice()
    config = LandmarkGraphConfig(num_landmarks=len(landmarks), trusted_edge_length=1.0)
    graph = LandmarkGraph(config, 2, QuasimetricFns(lambda state: state, walled))
    graph.build(landmarks, every_hop(landmarks), landmarks[:, None])
    return LandmarkPaths(graph, states)


def test_the_steps_around_a_wall_are_those_of_the_way_around():
    states = torch.tensor([[1.1, 0.0], [5.1, 0.0], [2.1, 0.0], [4.1, 5.0], [1.5, 0.4]])
    paths = paths_over_a_lattice(states)
    start, goal = torch.tensor([[0, 1], [0, 2], [3, 1], [0, 4], [4, 4]]).T
    assert walled(states[0], states[1]) == 4  # the critic takes the wall for open
    steps = paths(start, goal).tolist()
    # up to y = 4, two across, and down again: 4 + 4 + 4, with edges of one step or a diagonal
    assert steps[0] == pytest.approx(12, abs=2.5)
    assert steps[0] > 9
    assert steps[1:3] == pytest.approx([1, 6], abs=0.9)
    assert steps[3:] == pytest.approx([0.32**0.5, 0])


def test_steps_are_those_of_the_cheapest_path_over_all_nodes():
    states = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) * 6
    paths = paths_over_a_lattice(states)
    nodes = torch.cat([states, lattice()])
    lengths = walled(nodes[:, None], nodes[None])
    costs = distance_penalty(lengths, 1.0).clamp_min(1e-9).fill_diagonal_(0)
    for start, goal in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)):
        kept = [start, goal, *range(30, len(nodes))]
        between = costs[kept][:, kept]
        best, before = dijkstra(between.double().numpy(), indices=0, return_predecessors=True)
        length, node = 0.0, 1
        while node:
            length += float(lengths[kept][:, kept][before[node], node])
            node = before[node]
        found = paths(torch.tensor([start]), torch.tensor([goal]))
        assert found.item() == pytest.approx(length, rel=1e-4), best


def collected(tmp_path, **levels: Any) -> tuple[Agent, Config]:
    """An agent with levels, after a few updates of the stages before, and its replay buffer."""
    changes = {"stages.distill_landmark_paths": None, "stages.distill_policy": None}
    config = override(recipes.maze_levels(), changes)
    config = override(config, {f"actor.subgoals.{name}": part for name, part in levels.items()})
    config = small(config, steps=3)
    trained = train(config, out=tmp_path)
    env = config.env.build(1)
    agent = build(
        config, env.spec, num_envs=config.collect.num_envs, buffer_size=buffer_steps(config)
    )
    env.close()
    agent.load_state_dict(trained.state_dict())
    collection = config.collect.start(agent, config.env, 0)
    while collection.step < collection.total:
        collection.update()
    return agent, config


def begin(agent: Agent, config: Config, steps: int) -> LandmarkPathRun:
    optim = replace(STAGE.optim, steps=steps, batch_size=64)
    return replace(STAGE, optim=optim).start(agent, config.env, 0)


def test_critic_and_levels_change_when_the_copies_have_learnt(tmp_path):
    agent, config = collected(tmp_path)
    before = {name: part.clone() for name, part in agent.named_parameters()}
    stage_run = begin(agent, config, 60)
    losses = [stage_run.update() for _ in range(60)]
    assert all(torch.equal(part, before[name]) for name, part in agent.named_parameters())
    for name in ("regression", "regression 1"):
        last, first = (sum(float(row[name]) for row in part) for part in (losses[-5:], losses[:5]))
        assert last < 0.7 * first
    stage_run.finish()
    moved = {n for n in before if not torch.equal(agent.get_parameter(n), before[n])}
    assert any(name.startswith("cost.goal_critic") for name in moved)
    assert any(name.startswith("subgoals.levels.0.distance") for name in moved)
    assert all("distance" in name for name in moved)


def test_every_level_learns_in_its_own_states_and_steps(tmp_path):
    agent, config = collected(tmp_path, steps_per_level=(2, 3), **{"level.state_dim": 5})
    stage_run = begin(agent, config, 2)
    states, levels = stage_run.states, agent.subgoals
    assert [part.shape for part in states] == [(40, 4), (40, 5), (40, 5)]
    for index in (0, 1):
        torch.testing.assert_close(states[index + 1], levels.encode_to(states[0], index))
    start, goal = torch.randint(40, (2, 64), generator=torch.Generator().manual_seed(0))
    steps = stage_run.paths(start, goal)
    terms = stage_run._loss(torch.Generator().manual_seed(0))
    distances = [
        agent.cost.goal_critic.distance,
        *(p.level.distance for p in levels.level_planners),
    ]
    for index, (distance, unit) in enumerate(zip(distances, (1, 2, 6), strict=True)):
        error = distance(states[index][start], states[index][goal]) - steps / unit
        expected = (error.square() / (1 + steps / unit)).mean()
        found = terms[f"regression {index}" if index else "regression"]
        torch.testing.assert_close(found, expected)


def test_a_resumed_stage_ends_as_one_that_was_not_interrupted(tmp_path):
    agent, config = collected(tmp_path)
    whole, first = begin(agent, config, 6), begin(agent, config, 6)
    for _ in range(6):
        whole.update()
    for _ in range(3):
        first.update()
    resumed = begin(agent, config, 6)
    resumed.load_state_dict(first.state_dict())
    while resumed.step < resumed.total:
        resumed.update()
    for one, other in zip(whole.students, resumed.students, strict=True):
        for part, same in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(part, same)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"distill_landmark_paths.num_landmarks": 61}, "num_candidates is 60, but 61 landmarks"),
        ({"distill_landmark_paths.num_states": 61}, r"num_states is 61.*60 .*num_candidates"),
        ({"distill_landmark_paths.length": 60}, "length is 60, but an episode has"),
        ({"train_goal_critic": None}, "no train_goal_critic before it"),
        ({"train_hierarchy": None}, "no train_hierarchy before it"),
        ({"train_goal_critic.length": 2}, r"train_goal_critic\.length is 2.*it must be 1"),
    ],
)
def test_paths_that_can_not_be_learnt_are_refused_before_collection(changes, why):
    config = override(recipes.maze_levels(), {"stages.distill_landmark_paths": STAGE})
    config = override(config, {f"stages.{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=why):
        check_stages(config)


def test_a_critic_of_many_steps_is_no_distance_of_a_level():
    shared = {"actor.subgoals.level.distance": SharedCriticConfig()}
    config = override(recipes.maze_levels(), {**shared, "stages.distill_landmark_paths": None})
    check_stages(config)
    with pytest.raises(ConfigError, match=r"length is 2.*SharedCritic.*it must be 1"):
        check_stages(override(config, {"stages.train_goal_critic.length": 2}))


def test_a_later_state_of_the_plan_may_be_the_subgoal():
    first, second = (levels(subgoal_step=step)(START, with_target()) for step in (1, 2))
    assert first.upper_plans.shape == (2, 1, 2, 2)
    torch.testing.assert_close(second.upper_plans, first.upper_plans[:, :, 1:])
    assert torch.equal(second.goal, second.upper_plans[:, 0, 0])
    with pytest.raises(ConfigError, match=r"subgoal_step is 3.*planner\.horizon 2"):
        levels(subgoal_step=3)


def test_a_distance_longer_than_its_time_exceeds_it():
    distance = torch.tensor([[0.5, 2.5, 3.0], [2.0, 1.0, 7.0]])
    assert excess_steps(distance).tolist() == [[0, 0.5, 0], [1, 0, 4]]


def test_a_level_with_reachability_plans_no_further_than_its_distance_allows():
    """The level's world model and its critic disagree about the length of a step; without the term
    the plan is as long as the model says."""
    free, bounded = (
        borrowing(reachability=weight, prior_weight=0.0, num_proposals=8) for weight in (0.0, 20.0)
    )
    far = 3 * (GOAL - START) + START
    excess = []
    for planner in (free, bounded):
        (level,) = planner.level_planners
        plan = plan_of(level, START, far)
        distance = level.level.distance(START[:, None], plan.states[:, 1:])
        excess.append(excess_steps(distance).mean())
        assert ("reachability" in plan.terms) == (planner is bounded)
    assert excess[1] < 0.3 * excess[0]
