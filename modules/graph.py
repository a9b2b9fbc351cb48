"""Dynamic programming over remembered states: a graph of short hops, and its shortest paths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


def strides(walked: Tensor, stride: float, count: int) -> Tensor:
    """Steps from the start to each spot of a way `[B, N]` -> the last spot within one stride, two,
    ... of it, `[B, count]`; the first where even that is farther."""
    far = torch.arange(1, 1 + count, device=walked.device) * stride
    return ((walked[:, None] <= far[:, None]).sum(-1) - 1).clamp_min(0)
