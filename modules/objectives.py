"""What the world model is trained to do, and what keeps its representation from collapsing.

Every term is a pure function of states; its name is the name of its weight in `Weights`.
Where statistics are taken per channel, `fold` turns `[N, D]` into `[N h w, C]`: every place of a
map is a sample of its channels (as in VICRegL, Bardes et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-4


def fold(states: Tensor, channels: int) -> Tensor:
    """`[..., D]` -> `[N, C]`: every place of a map is a sample of its channels."""
    return states.unflatten(-1, (channels, -1)).movedim(-2, -1).flatten(0, -2)


def prediction(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in representation space over all imagined steps; scalar."""
    return (predicted - target).square().mean()


def change(predicted: Tensor, target: Tensor, step: Tensor) -> Tensor:
    """The same error, each dimension in units of how much it changes in a step, `[..., D]`: who
    expects no change is off by about 1, however little a dimension moves; scalar. What moves less
    than a tenth of the mean, or not at all, is not magnified further."""
    moved = step.detach().flatten(0, -2).square().mean(0)
    unit = moved.clamp_min(0.01 * moved.mean() + _EPS**2)
    return ((predicted - target).square() / unit).mean()


def variance(features: Tensor) -> Tensor:
    """Hinge that keeps each feature's standard deviation above 1; features `[N, C]` -> scalar.

    VICReg (Bardes et al. 2022), equation 1.
    """
    return (1 - (features.var(0) + _EPS).sqrt()).relu().mean()


def covariance(features: Tensor) -> Tensor:
    """Squared correlations between different features, a C-th of their sum; scalar.

    VICReg, equation 2.
    """
    centred = features - features.mean(0)
    matrix = centred.T @ centred / (len(features) - 1)  # [C, C]
    off_diagonal = matrix.square().sum() - matrix.diagonal().square().sum()
    return off_diagonal / features.shape[1]


def similarity(states: Tensor) -> Tensor:
    """Slowness: states `[B, T + 1, D]` that follow each other lie close; scalar.

    The temporal similarity of PLDM (Sobal et al. 2025).
    """
    return (states[:, 1:] - states[:, :-1]).square().mean()


def inverse(guessed: Tensor, actions: Tensor) -> Tensor:
    """The action must be legible from the two states it joins; scalar (Pathak et al. 2017)."""
    return (guessed - actions).square().mean()


def feeling(read: Tensor, felt: Tensor, scale: Tensor) -> Tensor:
    """What is read off predicted states `[..., I]` is what was felt on arrival, each channel in its
    own unit `[I]`; scalar. What can't be known is NaN, and nobody is asked for it."""
    if not read.shape[-1]:
        return read.sum()  # who feels nothing is asked for nothing
    known = torch.where(felt.isnan(), read.detach(), felt)
    return ((read - known) / scale).square().mean()


def doubt(expected: Tensor, change: Tensor) -> Tensor:
    """Every member `[members, ..., D]` learns the change `[..., D]` by itself; scalar."""
    return (expected - change).square().mean() if len(expected) else expected.sum()


def within(states: Tensor, together: int) -> Tensor:
    """Takes from each state the mean of its episode: what never changes in an episode goes away.

    `[B, T + 1, D]`, windows in runs of `together` from one episode -> the same shape.
    """
    runs = states.unflatten(0, (-1, together))
    return (runs - runs.mean((1, 2), keepdim=True)).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One weight a term; zero leaves the term out of the sum but not out of the log."""

    prediction: float = 1.0
    change: float = 0.0
    variance: float = 16.0
    covariance: float = 8.0
    variance_within: float = 0.0
    covariance_within: float = 0.0
    similarity: float = 12.0
    inverse: float = 1.0
    feeling: float = 0.0
    doubt: float = 0.0
    information: float = 0.01
    """Of a latent variable: nats that it tells of the next state."""
    prior: float = 1.0
    """How often what the latent variable tells comes, as the world model is to know it."""
