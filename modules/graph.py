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
