"""Rows of batches: of tensors `[B, ...]`, and of states that are NamedTuples of such tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def tree_map(fn: Callable[[Any], Any], obs: Any) -> Any:
    """The function of an observation, or of each part of a dict."""
    return {name: fn(part) for name, part in obs.items()} if isinstance(obs, dict) else fn(obs)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Of values [B, K, ...] those at the indices [B], [B, ...]."""
    return values[torch.arange(len(index), device=index.device), index]


def where(rows: Tensor, new: Any, old: Any) -> Any:
    """The old state, or the new one in some rows [B] bool; tensors, or NamedTuples of them."""
    if isinstance(old, Tensor):
        return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old)
    return type(old)(*(where(rows, a, b) for a, b in zip(new, old, strict=True)))


def scatter(old: Any, new: Any, rows: Tensor) -> Any:
    """The old state with its rows [N] replaced by those of the new one, [N, ...]."""
    if isinstance(old, Tensor):
        return old.index_copy(0, rows, new)
    if isinstance(old, dict):
        return {name: scatter(part, new[name], rows) for name, part in old.items()}
    return type(old)(*(scatter(a, b, rows) for a, b in zip(old, new, strict=True)))
