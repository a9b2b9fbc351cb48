"""Dynamic programming over remembered states: a graph of short hops, and its shortest paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Edges(NamedTuple):
    """How long hops are, and what they cost whoever takes them."""

    length: Tensor
    cost: Tensor


def edge_costs(
    distance: Callable[[Tensor, Tensor], Tensor], states: Tensor, max_length: float
) -> Tensor:
    """States `[N, D]`, lived one after the other -> the price of each hop `[N, N]` in steps.

    A hop is a lived step (price at most 1) or a pair that `distance` calls at most `max_length`
    apart; all else costs infinity.
    """
    costs = distance(states[:, None], states[None])
    costs = costs.masked_fill(costs > max_length, torch.inf)
    consecutive = torch.arange(len(states) - 1, device=states.device)
    costs[consecutive, consecutive + 1] = costs[consecutive, consecutive + 1].clamp_max(1)
    return costs.fill_diagonal_(0)


def shortest_paths(costs: Tensor) -> Tensor:
    """Prices `[..., N, N]` -> price of the cheapest path from each to each (Floyd-Warshall)."""
    best, detour = costs.clone(), torch.empty_like(costs)
    for via in range(costs.shape[-1]):
        torch.add(best[..., :, via, None], best[..., via, None, :], out=detour)
        torch.minimum(best, detour, out=best)
    return best


def distance_penalty(length: Tensor, trusted_length: float) -> Tensor:
    """What hops of so many steps cost: near by a distance can be trusted, and the further the less;
    d (1 + (d / hop)^2)."""
    return length * (1 + (length / trusted_length).square())


def bellman_ford(costs: Tensor, goal_costs: Tensor) -> Tensor:
    """Prices of hops `[..., N, N]` and from each to the goal `[..., N]` -> price of the cheapest
    way from each to the goal `[..., N]` (Bellman-Ford)."""
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
    """The cheapest way of each of B over K nodes to its goal: the nodes `[B, count]`, K for the
    goal itself, which is reached where no other hop is cheaper, and how many steps it has gone by
    each, `[B, count]`. Beyond the goal it stays there. `leaving` `[B, K]` leads to each node,
    `direct` `[B]` to the goal, `onward` `[K, K]` or `[B, K, K]` from node to node, `last` `[B, K]`
    from each to the goal; `cost_to_go` `[B, K]` is the price of all that is left from there."""
    size, rows = cost_to_go.shape[1], torch.arange(len(cost_to_go), device=cost_to_go.device)
    cost, node = (leaving.cost + cost_to_go).min(1)
    arrived = direct.cost <= cost
    nodes = [torch.where(arrived, size, node)]
    travelled = [torch.where(arrived, direct.length, leaving.length[rows, node])]
    lengths, costs = (part.expand(len(rows), -1, -1) for part in onward)
    for _ in range(max_edges - 1):
        # never to itself, or the way would never go on
        options = costs[rows, node].scatter(1, node[:, None], torch.inf)
        cost, next_node = (options + cost_to_go).min(1)
        arrives = last.cost[rows, node] <= cost
        length = torch.where(arrives, last.length[rows, node], lengths[rows, node, next_node])
        travelled.append(travelled[-1] + length * ~arrived)
        arrived, node = arrived | arrives, torch.where(arrives, node, next_node)
        nodes.append(torch.where(arrived, size, node))
    return torch.stack(nodes, 1), torch.stack(travelled, 1)


def subsample_path(travelled: Tensor, spacing: float, count: int) -> Tensor:
    """Steps from the start to each spot of a way `[B, N]` -> the last spot within one stride, two,
    ... of it, `[B, count]`; the first where even that is farther."""
    distance = torch.arange(1, 1 + count, device=travelled.device) * spacing
    return ((travelled[:, None] <= distance[:, None]).sum(-1) - 1).clamp_min(0)
