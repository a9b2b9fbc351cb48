"""Graphs of states: edge costs, and shortest paths by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIN_EDGE_COST = 1e-3
"""Least cost of an edge in steps."""


class Edges(NamedTuple):
    """The lengths of edges in steps, and their costs, which may be higher."""

    length: Tensor
    cost: Tensor


def edge_costs(
    distance: Callable[[Tensor, Tensor], Tensor], states: Tensor, max_length: float
) -> Tensor:
    """Consecutive states `[N, D]` of an episode -> the cost of each edge in steps, `[N, N]`: at
    most 1 between consecutive states, the `distance` of other pairs up to `max_length`, and
    infinity beyond."""
    costs = distance(states[:, None], states[None])
    costs = costs.masked_fill(costs > max_length, torch.inf)
    consecutive = torch.arange(len(states) - 1, device=states.device)
    costs[consecutive, consecutive + 1] = costs[consecutive, consecutive + 1].clamp_max(1)
    return costs.fill_diagonal_(0)


def shortest_paths(costs: Tensor) -> Tensor:
    """Edge costs `[..., N, N]` -> costs of the shortest paths, `[..., N, N]` (Floyd-Warshall)."""
    best, detour = costs.clone(), torch.empty_like(costs)
    for via in range(costs.shape[-1]):
        torch.add(best[..., :, via, None], best[..., via, None, :], out=detour)
        torch.minimum(best, detour, out=best)
    return best


def shortest_paths_with_lengths(costs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Costs and lengths of edges `[N, N]` -> the costs of the cheapest paths, and their lengths,
    `[N, N]` each (Floyd-Warshall)."""
    best, length = costs.clone(), lengths.clone()
    for via in range(len(costs)):
        detour = best[:, via, None] + best[via]
        is_better = detour < best
        best = torch.where(is_better, detour, best)
        length = torch.where(is_better, length[:, via, None] + length[via], length)
    return best, length


def distance_penalty(length: Tensor, trusted_length: float) -> Tensor:
    """The cost d (1 + (d / trusted_length)^2) of edges of d steps: long learnt distances are
    unreliable."""
    return length * (1 + (length / trusted_length).square())


def bellman_ford(costs: Tensor, goal_costs: Tensor) -> Tensor:
    """Edge costs `[..., N, N]` and costs of the edges to the goal `[..., N]` -> costs of the
    shortest paths to the goal, `[..., N]` (Bellman-Ford)."""
    cost_to_go = goal_costs
    for _ in range(costs.shape[-1]):
        previous = cost_to_go
        cost_to_go = torch.minimum(goal_costs, (costs + previous[..., None, :]).amin(-1))
        if torch.equal(cost_to_go, previous):
            break
    return cost_to_go


def greedy_path(
    leaving: Edges, direct: Edges, onward: Edges, last: Edges, cost_to_go: Tensor, max_edges: int
) -> tuple[Tensor, Tensor]:
    """The cheapest path of each of B environments over K nodes to its goal: the nodes `[B,
    max_edges]`, where K is the goal, repeated once it is reached, and the steps travelled up to
    each, `[B, max_edges]`. Edges: `leaving` `[B, K]` from the start to each node, `direct` `[B]`
    from the start to the goal, `onward` `[K, K]` or `[B, K, K]` between nodes, `last` `[B, K]` from
    each node to the goal. `cost_to_go` `[B, K]`: the cost of the shortest path from each node."""
    size, rows = cost_to_go.shape[1], torch.arange(len(cost_to_go), device=cost_to_go.device)
    cost, node = (leaving.cost + cost_to_go).min(1)
    arrived = direct.cost <= cost
    nodes = [torch.where(arrived, size, node)]
    travelled = [torch.where(arrived, direct.length, leaving.length[rows, node])]
    lengths, costs = (part.expand(len(rows), -1, -1) for part in onward)
    for _ in range(max_edges - 1):
        # an edge from a node to itself is free, and the path would end there
        options = costs[rows, node].scatter(1, node[:, None], torch.inf)
        cost, next_node = (options + cost_to_go).min(1)
        arrives = last.cost[rows, node] <= cost
        length = torch.where(arrives, last.length[rows, node], lengths[rows, node, next_node])
        travelled.append(travelled[-1] + length * ~arrived)
        arrived, node = arrived | arrives, torch.where(arrives, node, next_node)
        nodes.append(torch.where(arrived, size, node))
    return torch.stack(nodes, 1), torch.stack(travelled, 1)


def follow_nodes(
    first: Tensor, first_length: Tensor, next_node: Tensor, onward: Tensor, last: Tensor,
    max_edges: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The path of each of B environments over K nodes from the `first` node `[B]`, where K is the
    goal, along the `next_node` of each `[B, K]`. Lengths: `first_length` `[B]` of the first edge,
    `onward` `[K, K]` between nodes, `last` `[B, K]` from each node to the goal. Returns as
    `greedy_path`."""
    size, rows = next_node.shape[1], torch.arange(len(first), device=first.device)
    nodes, travelled = [first], [first_length]
    for _ in range(max_edges - 1):
        arrived, node = nodes[-1] == size, nodes[-1].clamp_max(size - 1)
        following = next_node[rows, node]
        length = torch.where(
            following == size, last[rows, node], onward[node, following.clamp_max(size - 1)]
        )
        travelled.append(travelled[-1] + length * ~arrived)
        nodes.append(torch.where(arrived, size, following))
    return torch.stack(nodes, 1), torch.stack(travelled, 1)


def subsample_path(travelled: Tensor, spacing: float, count: int) -> Tensor:
    """Steps from the start to each node of a path `[B, N]` -> the index of the last node within 1,
    2, ... `count` times `spacing`, `[B, count]`; 0 where the first node is farther."""
    distance = torch.arange(1, 1 + count, device=travelled.device) * spacing
    return ((travelled[:, None] <= distance[:, None]).sum(-1) - 1).clamp_min(0)
