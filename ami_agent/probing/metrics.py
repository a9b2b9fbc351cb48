"""Measures of a representation: pure functions of states `[N, D]` and of the true factors `[N, F]`
behind them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log, sqrt

import numpy as np
import torch
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.stats import spearmanr
from torch import Tensor

NUM_NEIGHBOURS = 5
NUM_BINS = 20
MAX_CLUSTERS, MAX_CLUSTERED = 8, 500
"""Groups, and states that are put in groups, at most."""


def explained_variance(read: Tensor, true: Tensor) -> float:
    """Share of the variance of factors `[N, F]` that is explained; mean over factors."""
    fraction = 1 - (read - true).square().mean(0) / true.var(0, correction=0).clamp_min(1e-12)
    return float(fraction.mean())


def knn_read(known: Tensor, factors: Tensor, query: Tensor) -> Tensor:
    """What the nearest of known states `[N, D]` had as factors `[N, F]`, the mean of some."""
    neighbours = (
        torch.cdist(query, known).topk(min(NUM_NEIGHBOURS, len(known)), largest=False).indices
    )
    return factors[neighbours].mean(1)


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
    distances = [(part[one] - part[other]).norm(dim=-1).numpy() for part in (states, scaled)]
    return float(spearmanr(*distances).statistic) if min(a.std() for a in distances) > 0 else 0.0


def sparsity(states: Tensor) -> float:
    """Hoyer's measure (2004) of states `[N, D]` about their mean, in units of each number's spread;
    mean over states."""
    size = states.shape[1]
    if size < 2:
        return 0.0
    standardized = (states - states.mean(0)) / states.std(0).clamp_min(1e-9)
    ratio = standardized.abs().sum(1) / standardized.norm(dim=1).clamp_min(1e-9)
    return float(((sqrt(size) - ratio) / (sqrt(size) - 1)).mean())


def dci(weight: Tensor) -> float:
    """Of how much each row `[D]` tells of each column `[F]`: one minus the entropy of its shares,
    rows weighed by how much they tell (DCI, Eastwood & Williams 2018)."""
    columns = weight.shape[1]
    if columns < 2:
        return 1.0
    probs = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(probs * probs.clamp_min(1e-12).log()).sum(1) / log(columns)
    importance = weight.sum(1) / weight.sum().clamp_min(1e-12)
    return float((importance * (1 - entropy)).sum())


def mig(states: Tensor, factors: Tensor) -> float:
    """Mutual information gap (Chen et al. 2018), of numbers in bins that hold about as many
    each: between the number of the state that tells most of a factor and the next, as a share of
    what there is to tell; mean over factors."""
    codes, values = _bin_indices(states), _bin_indices(factors)
    gaps = []
    for value in values.T:
        information = (
            torch.stack([_mutual_information(code, value) for code in codes.T])
            .sort(descending=True)
            .values
        )
        entropy = _mutual_information(value, value)
        if entropy > 0:
            gaps.append(
                (information[0] - (information[1] if len(information) > 1 else 0)) / entropy
            )
    return float(torch.stack(gaps).mean()) if gaps else 0.0


def _bin_indices(numbers: Tensor) -> Tensor:
    """`[N, K]` -> the bin of each; what is the same is in the same."""
    quantiles = torch.linspace(0, 1, NUM_BINS + 1, dtype=numbers.dtype)[1:-1]
    edges = numbers.quantile(quantiles, 0).T.contiguous()  # [K, BINS - 1]
    return torch.searchsorted(edges, numbers.T.contiguous(), right=True).T


def _mutual_information(one: Tensor, other: Tensor) -> Tensor:
    """Mutual information of two kinds of bins `[N]`, nats."""
    joint = (
        torch.bincount(one * NUM_BINS + other, minlength=NUM_BINS * NUM_BINS)
        .double()
        .view(NUM_BINS, NUM_BINS)
    )
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / independent.clamp_min(1e-300)).clamp_min(1e-300).log()).sum()


def cluster(states: Tensor) -> tuple[float, Tensor]:
    """How clearly some of the states fall into groups: the mean silhouette (Rousseeuw 1987) of the
    best of k-means with 2 to 8 groups, 1 where groups are points and 0 where there are none; and
    these states with their groups in the last column, `[n, D + 1]`."""
    stride = -(-len(states) // MAX_CLUSTERED)
    subset = states[::stride].double()
    distances, best = (
        torch.cdist(subset, subset),
        (0.0, torch.zeros(len(subset), dtype=torch.int64)),
    )
    for count in range(2, min(MAX_CLUSTERS, len(subset.unique(dim=0))) + 1):
        try:
            _, found = kmeans2(subset.numpy(), count, minit="++", missing="raise", rng=0)
        except ClusterError:  # a group lost all of its own to others
            continue
        group = torch.from_numpy(np.asarray(found)).long()
        best = max(best, (silhouette(distances, group), group), key=lambda known: known[0])
    return best[0], torch.cat([subset, best[1][:, None]], 1)


def silhouette(distances: Tensor, group: Tensor) -> float:
    """Of distances `[N, N]` between what is in groups `[N]`: (b - a) / max(a, b), a to the others
    of one's group and b to those of the nearest other one; who is alone counts as 0."""
    member = torch.nn.functional.one_hot(group).to(distances)  # [N, K]
    total, size = distances @ member, member.sum(0)
    is_own = member.bool()
    inside = total[is_own] / (size[group] - 1).clamp_min(1)
    outside = (total / size).masked_fill(is_own, torch.inf).amin(1)
    score = (outside - inside) / torch.maximum(outside, inside).clamp_min(1e-12)
    return float(torch.where(size[group] > 1, score, 0).mean())


def invariance(states: Tensor, changed: Tensor) -> float:
    """How little a change moves states `[N, D]`: 1 minus the mean squared distance over that of two
    states at random; 1 is invariance."""
    moved = (changed - states).square().sum(1).mean()
    return 1 - float(moved / (2 * states.var(0).sum()).clamp_min(1e-12))


def equivariance(read: Tensor, changed: Tensor) -> float:
    """Share of the variance of changed states `[N, D]` that was read from the states before the
    change; 1 is equivariance, as far as it is linear (Lenc & Vedaldi 2015)."""
    missed = (read - changed).square().sum(1).mean()
    return 1 - float(missed / changed.var(0, correction=0).sum().clamp_min(1e-12))


def gradient_overlap(gradients: Sequence[Tensor]) -> float:
    """Of how several energies change with the state, each `[N, D]`: the cosine of the second
    moments of two of them, mean over pairs; 1 where all care for the same directions, 0 where no
    two share one."""
    pairs = []
    for one, other in combinations(gradients, 2):
        norms = (one @ one.T).norm() * (other @ other.T).norm()
        pairs.append(float((one @ other.T).square().sum() / norms.clamp_min(1e-30)))
    return sum(pairs) / len(pairs)
