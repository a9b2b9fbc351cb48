"""Shortest paths are shortest, and edges are transitions or short distances."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import floyd_warshall
from torch import Tensor

from modules.actor.subgoals.shortest_paths import (
    Edges,
    bellman_ford,
    edge_costs,
    greedy_path,
    shortest_paths,
)

INF = float("inf")


def some_graph(seed: int, nodes: int, roads: float) -> Tensor:
    """Random costs; a fraction `roads` of the pairs is joined, one way."""
    rng = torch.Generator().manual_seed(seed)
    price = 0.1 + torch.rand(nodes, nodes, generator=rng)
    price[torch.rand(nodes, nodes, generator=rng) > roads] = INF
    return price.fill_diagonal_(0)


def gap(state: Tensor, goal: Tensor) -> Tensor:
    """The distance on a line."""
    return (goal - state).abs().sum(-1)


def downhill(state: Tensor, goal: Tensor) -> Tensor:
    """On a line where going down is free."""
    return (goal - state).relu().sum(-1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.integers(2, 15), roads=st.floats(0.05, 1.0))
def test_shortest_paths_are_those_of_scipy(seed, nodes, roads):
    price = some_graph(seed, nodes, roads)
    known = floyd_warshall(price.numpy())
    np.testing.assert_allclose(shortest_paths(price).numpy(), known, rtol=1e-5)


def test_graphs_of_a_batch_are_solved_as_if_each_were_alone():
    graphs = torch.stack([some_graph(seed, 8, 0.3) for seed in range(6)]).unflatten(0, (2, 3))
    torch.testing.assert_close(shortest_paths(graphs)[1, 2], shortest_paths(graphs[1, 2]))


def test_finding_paths_leaves_the_graph_as_it_was():
    price = some_graph(0, 8, 0.3)
    before = price.clone()
    shortest_paths(price)
    assert torch.equal(price, before)


def test_edges_by_hand():
    positions = torch.tensor([[0.0], [5.0], [5.5], [7.0]])
    assert edge_costs(gap, positions, max_length=1.6).tolist() == [
        [0, 1, INF, INF],  # a transition costs a step, whatever its distance
        [INF, 0, 0.5, INF],
        [INF, 0.5, 0, 1],
        [INF, INF, 1.5, 0],
    ]


def test_a_short_one_way_distance_makes_a_one_way_edge():
    positions = torch.tensor([[0.0], [9.0], [4.0]])
    assert edge_costs(downhill, positions, max_length=1).tolist() == [
        [0, 1, INF],
        [0, 0, 0],
        [0, INF, 0],
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), longest=st.floats(0.1, 3))
def test_an_edge_of_the_replay_buffer_is_at_most_as_long_as_its_steps(seed, longest):
    positions = 3 * torch.randn(12, 2, generator=torch.Generator().manual_seed(seed))
    paths = shortest_paths(edge_costs(gap, positions, longest))
    took = torch.arange(12) - torch.arange(12)[:, None]
    assert (paths <= torch.where(took >= 0, took, INF) + 1e-5).all()


def test_unreachable_nodes_stay_infinitely_far():
    island = torch.tensor([[0, 1, INF], [1, 0, INF], [INF, INF, 0]])
    assert torch.equal(shortest_paths(island), island)
    observed_distances = torch.tensor([[0.0], [10.0], [20.0]])
    way_back = shortest_paths(edge_costs(gap, observed_distances, max_length=1)).tril(-1)
    assert (way_back[[1, 2, 2], [0, 0, 1]] == INF).all()


def test_a_path_leads_from_node_to_node_and_ends_at_the_goal():
    # 0 -> 1 -> 2 -> the goal, a step each; all else is far
    steps = torch.full((3, 3), 9.0).fill_diagonal_(0)
    steps[0, 1] = steps[1, 2] = 1
    last = torch.tensor([[9.0, 9.0, 1.0]] * 2)
    leaving, direct = torch.tensor([[1.0, 9.0, 9.0]] * 2), torch.tensor([20.0, 0.5])
    to_go = bellman_ford(steps, last)
    legs = [Edges(part, part) for part in (leaving, direct, steps, last)]
    nodes, walked = greedy_path(*legs, to_go, 6)
    assert nodes.tolist() == [[0, 1, 2, 3, 3, 3], [3] * 6]
    assert walked.tolist() == [[1, 2, 3, 4, 4, 4], [0.5] * 6]
    each = [legs[0], legs[1], Edges(steps.expand(2, 3, 3), steps.expand(2, 3, 3)), legs[3]]
    assert all(map(torch.equal, greedy_path(*each, to_go, 6), (nodes, walked)))
