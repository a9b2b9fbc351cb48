"""Metrics of a representation: functions of states `[N, D]` and of their true factors `[N, F]`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log, sqrt

import numpy as np
import scipy  # imports its parts where they are used, which are slow to import
import torch
from torch import Tensor

NUM_NEIGHBOURS = 5
NUM_BINS = 20
NUM_PAIRS = 4000
MAX_CLUSTERS, MAX_CLUSTERED = 8, 500  # at most so many clusters, of so many states


def explained_variance(read: Tensor, true: Tensor) -> float:
    """Fraction of the variance of factors `[N, F]` that `read` explains; mean over factors."""
    fraction = 1 - (read - true).square().mean(0) / true.var(0, correction=0).clamp_min(1e-12)
    return float(fraction.mean())


def knn_read(known: Tensor, factors: Tensor, query: Tensor) -> Tensor:
    """The mean factors `[N, F]` of the nearest of the `known` states `[N, D]`."""
    count = min(NUM_NEIGHBOURS, len(known))
    return factors[torch.cdist(query, known).topk(count, largest=False).indices].mean(1)


def slowness(states: Tensor) -> float:
    """Mean squared step of states `[T + 1, B, D]` over twice their variance: 1 for independent
    states (slow feature analysis, Wiskott & Sejnowski 2002)."""
    step = states.diff(dim=0).square().mean((0, 1)).sum()
    return float(step / (2 * states.flatten(0, 1).var(0).sum()).clamp_min(1e-12))


def smoothness(states: Tensor, factors: Tensor) -> float:
    """Spearman's correlation between distances of states `[N, D]` and distances of factors
    `[N, F]`, each factor in units of its standard deviation."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(states), (2, NUM_PAIRS), generator=random)
    scaled = factors / factors.std(0).clamp_min(1e-9)
    distances = [(part[one] - part[other]).norm(dim=-1).numpy() for part in (states, scaled)]
    return (
        float(scipy.stats.spearmanr(*distances).statistic)
        if min(a.std() for a in distances) > 0
        else 0.0
    )


def sparsity(states: Tensor) -> float:
    """Hoyer's sparsity (2004) of standardized states `[N, D]`; mean over states."""
    size = states.shape[1]
    if size < 2:
        return 0.0
    standardized = (states - states.mean(0)) / states.std(0).clamp_min(1e-9)
    ratio = standardized.abs().sum(1) / standardized.norm(dim=1).clamp_min(1e-9)
    return float(((sqrt(size) - ratio) / (sqrt(size) - 1)).mean())


def dci(weight: Tensor) -> float:
    """Disentanglement for importances `[D, F]` of dimensions for factors, completeness for their
    transpose: one minus the entropy of each row's distribution, weighted by the row's sum (DCI,
    Eastwood & Williams 2018)."""
    columns = weight.shape[1]
    if columns < 2:
        return 1.0
    probs = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(probs * probs.clamp_min(1e-12).log()).sum(1) / log(columns)
    importance = weight.sum(1) / weight.sum().clamp_min(1e-12)
    return float((importance * (1 - entropy)).sum())


def mig(states: Tensor, factors: Tensor) -> float:
    """Mutual information gap (Chen et al. 2018), with bins of equal counts: that of the best two
    dimensions for a factor, over the factor's entropy; mean over factors."""
    codes, values = _bin_indices(states), _bin_indices(factors)
    gaps = []
    for value in values.T:
        information = torch.stack([_mutual_information(code, value) for code in codes.T])
        information = information.sort(descending=True).values
        entropy = _mutual_information(value, value)
        if entropy > 0:
            second = information[1] if len(information) > 1 else 0
            gaps.append((information[0] - second) / entropy)
    return float(torch.stack(gaps).mean()) if gaps else 0.0


def _bin_indices(numbers: Tensor) -> Tensor:
    """Numbers `[N, K]` -> the bin of each; equal numbers are in the same bin."""
    quantiles = torch.linspace(0, 1, NUM_BINS + 1, dtype=numbers.dtype)[1:-1]
    edges = numbers.quantile(quantiles, 0).T.contiguous()  # [K, BINS - 1]
    return torch.searchsorted(edges, numbers.T.contiguous(), right=True).T


def _mutual_information(one: Tensor, other: Tensor) -> Tensor:
    """Mutual information, in nats, of two bin indices `[N]`."""
    counts = torch.bincount(one * NUM_BINS + other, minlength=NUM_BINS * NUM_BINS)
    joint = counts.double().view(NUM_BINS, NUM_BINS)
    joint = joint / joint.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / independent.clamp_min(1e-300)).clamp_min(1e-300).log()).sum()


def cluster(states: Tensor) -> tuple[float, Tensor]:
    """The largest mean silhouette (Rousseeuw 1987) of k-means with 2 to 8 clusters, 1 for points;
    and a subset of the states with their clusters in the last column, `[n, D + 1]`."""
    stride = -(-len(states) // MAX_CLUSTERED)
    subset = states[::stride].double()
    distances = torch.cdist(subset, subset)
    best = (0.0, torch.zeros(len(subset), dtype=torch.int64))
    for count in range(2, min(MAX_CLUSTERS, len(subset.unique(dim=0))) + 1):
        try:
            _, found = scipy.cluster.vq.kmeans2(
                subset.numpy(), count, minit="++", missing="raise", rng=0
            )
        except scipy.cluster.vq.ClusterError:  # a cluster became empty
            continue
        group = torch.from_numpy(np.asarray(found)).long()
        best = max(best, (silhouette(distances, group), group), key=lambda pair: pair[0])
    return best[0], torch.cat([subset, best[1][:, None]], 1)


def silhouette(distances: Tensor, group: Tensor) -> float:
    """Mean of (b - a) / max(a, b) for distances `[N, N]` and clusters `[N]`; a: the mean distance
    to others of the point's cluster, b: to the nearest other cluster; 0 for a point alone."""
    member = torch.nn.functional.one_hot(group).to(distances)  # [N, K]
    total, size = distances @ member, member.sum(0)
    is_own = member.bool()
    inside = total[is_own] / (size[group] - 1).clamp_min(1)
    outside = (total / size).masked_fill(is_own, torch.inf).amin(1)
    score = (outside - inside) / torch.maximum(outside, inside).clamp_min(1e-12)
    return float(torch.where(size[group] > 1, score, 0).mean())


def invariance(states: Tensor, changed: Tensor) -> float:
    """1 minus the mean squared distance that states `[N, D]` move, over that of random states."""
    moved = (changed - states).square().sum(1).mean()
    return 1 - float(moved / (2 * states.var(0).sum()).clamp_min(1e-12))


def equivariance(read: Tensor, changed: Tensor) -> float:
    """Fraction of the variance of perturbed states `[N, D]` that a linear map of the original
    states, `read`, explains; 1 is linear equivariance (Lenc & Vedaldi 2015)."""
    error = (read - changed).square().sum(1).mean()
    return 1 - float(error / changed.var(0, correction=0).sum().clamp_min(1e-12))


def gradient_overlap(gradients: Sequence[Tensor]) -> float:
    """Overlap of the gradients `[N, D]` of several energies: the cosine of their second-moment
    matrices, mean over pairs; 1 for the same directions, 0 for orthogonal ones."""
    pairs = []
    for one, other in combinations(gradients, 2):
        norms = (one @ one.T).norm() * (other @ other.T).norm()
        pairs.append(float((one @ other.T).square().sum() / norms.clamp_min(1e-30)))
    return sum(pairs) / len(pairs)
