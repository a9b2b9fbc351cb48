"""Dynamic programming over remembered states: a graph of short hops, and its shortest paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Legs(NamedTuple):
    """How long hops are, and what they cost whoever takes them."""

    steps: Tensor
    price: Tensor


def hops(distance: Callable[[Tensor, Tensor], Tensor], states: Tensor, longest: float) -> Tensor:
    """States `[N, D]`, lived one after the other -> the price of each hop `[N, N]` in steps.

    A hop is a lived step (price at most 1) or a pair that `distance` calls at most `longest`
    apart; all else costs infinity.
    """
    price = distance(states[:, None], states[None])
    price = price.masked_fill(price > longest, torch.inf)
    lived = torch.arange(len(states) - 1, device=states.device)
    price[lived, lived + 1] = price[lived, lived + 1].clamp_max(1)
    return price.fill_diagonal_(0)


def shortest_paths(price: Tensor) -> Tensor:
    """Prices `[..., N, N]` -> price of the cheapest path from each to each (Floyd-Warshall)."""
    best, detour = price.clone(), torch.empty_like(price)
    for via in range(price.shape[-1]):
        torch.add(best[..., :, via, None], best[..., via, None, :], out=detour)
        torch.minimum(best, detour, out=best)
    return best


def distrusted(steps: Tensor, hop: float) -> Tensor:
    """What hops of so many steps cost: near by a distance can be trusted, and the further the less;
    d (1 + (d / hop)^2)."""
    return steps * (1 + (steps / hop).square())


def cheapest(price: Tensor, last: Tensor) -> Tensor:
    """Prices of hops `[..., N, N]` and from each to the goal `[..., N]` -> price of the cheapest
    way from each to the goal `[..., N]` (Bellman-Ford)."""
    to_go = last
    for _ in range(price.shape[-1]):
        before = to_go
        to_go = torch.minimum(last, (price + before[..., None, :]).amin(-1))
        if torch.equal(to_go, before):
            break
    return to_go


def way(
    leaving: Legs, direct: Legs, onward: Legs, last: Legs, to_go: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The cheapest way of each of B over K nodes to its goal: the nodes `[B, count]`, K for the
    goal itself, which is reached where no other hop is cheaper, and how many steps it has gone by
    each, `[B, count]`. Beyond the goal it stays there. `leaving` `[B, K]` leads to each node,
    `direct` `[B]` to the goal, `onward` `[K, K]` or `[B, K, K]` from node to node, `last` `[B, K]`
    from each to the goal; `to_go` `[B, K]` is the price of all that is left from there."""
    size, rows = to_go.shape[1], torch.arange(len(to_go), device=to_go.device)
    price, node = (leaving.price + to_go).min(1)
    arrived = direct.price <= price
    nodes = [torch.where(arrived, size, node)]
    walked = [torch.where(arrived, direct.steps, leaving.steps[rows, node])]
    steps, prices = (part.expand(len(rows), -1, -1) for part in onward)
    for _ in range(count - 1):
        # never to itself, or the way would never go on
        onto = prices[rows, node].scatter(1, node[:, None], torch.inf)
        price, following = (onto + to_go).min(1)
        arrives = last.price[rows, node] <= price
        hop = torch.where(arrives, last.steps[rows, node], steps[rows, node, following])
        walked.append(walked[-1] + hop * ~arrived)
        arrived, node = arrived | arrives, torch.where(arrives, node, following)
        nodes.append(torch.where(arrived, size, node))
    return torch.stack(nodes, 1), torch.stack(walked, 1)


def strides(walked: Tensor, stride: float, count: int) -> Tensor:
    """Steps from the start to each spot of a way `[B, N]` -> the last spot within one stride, two,
    ... of it, `[B, count]`; the first where even that is farther."""
    far = torch.arange(1, 1 + count, device=walked.device) * stride
    return ((walked[:, None] <= far[:, None]).sum(-1) - 1).clamp_min(0)
