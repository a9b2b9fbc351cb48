"""Measures of a representation: pure functions of states `[N, D]` and of the true factors `[N, F]`
behind them."""

from __future__ import annotations

from math import log, sqrt

import torch
from scipy.stats import spearmanr
from torch import Tensor

NEIGHBOURS = 5
BINS = 20


def explained(read: Tensor, true: Tensor) -> float:
    """Share of the variance of factors `[N, F]` that is explained; mean over factors."""
    share = 1 - (read - true).square().mean(0) / true.var(0, correction=0).clamp_min(1e-12)
    return float(share.mean())


def nearest(known: Tensor, factors: Tensor, asked: Tensor) -> Tensor:
    """What the nearest of known states `[N, D]` had as factors `[N, F]`, the mean of some."""
    close = torch.cdist(asked, known).topk(min(NEIGHBOURS, len(known)), largest=False).indices
    return factors[close].mean(1)


def slowness(states: Tensor) -> float:
    """Mean squared step of states `[T + 1, B, D]` over twice their variance: 1 for those that have
    nothing to do with each other (slow feature analysis, Wiskott & Sejnowski 2002)."""
    step = states.diff(dim=0).square().mean((0, 1)).sum()
    return float(step / (2 * states.flatten(0, 1).var(0).sum()).clamp_min(1e-12))


def smoothness(states: Tensor, factors: Tensor, pairs: int = 4000) -> float:
    """Spearman's correlation of how far apart states `[N, D]` and factors `[N, F]` are, each factor
    in units of its own."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(states), (2, pairs), generator=random)
    scaled = factors / factors.std(0).clamp_min(1e-9)
    apart = [(part[one] - part[other]).norm(dim=-1).numpy() for part in (states, scaled)]
    return float(spearmanr(*apart).statistic) if min(a.std() for a in apart) > 0 else 0.0


def sparsity(states: Tensor) -> float:
    """Hoyer's measure (2004) of states `[N, D]` about their mean, in units of each number's spread;
    mean over states."""
    size = states.shape[1]
    if size < 2:
        return 0.0
    told = (states - states.mean(0)) / states.std(0).clamp_min(1e-9)
    ratio = told.abs().sum(1) / told.norm(dim=1).clamp_min(1e-9)
    return float(((sqrt(size) - ratio) / (sqrt(size) - 1)).mean())


def purity(weight: Tensor) -> float:
    """Of how much each row `[D]` tells of each column `[F]`: one minus the entropy of its shares,
    rows weighed by how much they tell (DCI, Eastwood & Williams 2018)."""
    columns = weight.shape[1]
    if columns < 2:
        return 1.0
    share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(1) / log(columns)
    told = weight.sum(1) / weight.sum().clamp_min(1e-12)
    return float((told * (1 - entropy)).sum())


def gap(states: Tensor, factors: Tensor) -> float:
    """Mutual information gap (Chen et al. 2018), of numbers in bins that hold about as many
    each: between the number of the state that tells most of a factor and the next, as a share of
    what there is to tell; mean over factors."""
    codes, values = _binned(states), _binned(factors)
    gaps = []
    for value in values.T:
        known = torch.stack([_shared(code, value) for code in codes.T]).sort(descending=True).values
        most = _shared(value, value)
        if most > 0:
            gaps.append((known[0] - (known[1] if len(known) > 1 else 0)) / most)
    return float(torch.stack(gaps).mean()) if gaps else 0.0


def _binned(numbers: Tensor) -> Tensor:
    """`[N, K]` -> the bin of each; what is the same is in the same."""
    shares = torch.linspace(0, 1, BINS + 1, dtype=numbers.dtype)[1:-1]
    edges = numbers.quantile(shares, 0).T.contiguous()  # [K, BINS - 1]
    return torch.searchsorted(edges, numbers.T.contiguous(), right=True).T


def _shared(one: Tensor, other: Tensor) -> Tensor:
    """Mutual information of two kinds of bins `[N]`, nats."""
    joint = torch.bincount(one * BINS + other, minlength=BINS * BINS).double().view(BINS, BINS)
    joint = joint / joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / apart.clamp_min(1e-300)).clamp_min(1e-300).log()).sum()
