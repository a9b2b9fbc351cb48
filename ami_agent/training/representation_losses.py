"""What the world model is trained to do, and what keeps its representation from collapsing.

Every term is a pure function of states; its name is the name of its weight in `LossWeights`.
Where statistics are taken per channel, `per_location` turns `[N, D]` into `[N h w, C]`: every place of a
map is a sample of its channels (as in VICRegL, Bardes et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.types import WEIGHT, validate_ranges

_EPS = 1e-4

SelectFn = Callable[[Tensor], Tensor]
"""Of `[B, T, D]`, what counts, `[..., D]`."""


def keep_all(part: Tensor) -> Tensor:
    """Everything counts."""
    return part


def per_location(states: Tensor, channels: int) -> Tensor:
    """`[..., D]` -> `[N, C]`: every place of a map is a sample of its channels."""
    return states.unflatten(-1, (channels, -1)).movedim(-2, -1).flatten(0, -2)


def prediction(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in representation space over all imagined steps; scalar."""
    return (predicted - target).square().mean()


def scaled_prediction(predicted: Tensor, target: Tensor, step: Tensor) -> Tensor:
    """The same error, each dimension in units of how much it changes in a step, `[..., D]`: who
    expects no change is off by about 1, however little a dimension moves; scalar. What moves less
    than a tenth of the mean, or not at all, is not magnified further."""
    mean_square = step.detach().flatten(0, -2).square().mean(0)
    unit = mean_square.clamp_min(0.01 * mean_square.mean() + _EPS**2)
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


def temporal_similarity(states: Tensor, keep: SelectFn = keep_all) -> Tensor:
    """Slowness: states `[B, T + 1, D]` that follow each other lie close; scalar. `keep`: the steps
    between them that count.

    The temporal similarity of PLDM (Sobal et al. 2025).
    """
    return keep(states[:, 1:] - states[:, :-1]).square().mean()


def inverse_dynamics(predicted: Tensor, actions: Tensor) -> Tensor:
    """The action must be legible from the two states it joins; scalar (Pathak et al. 2017)."""
    return (predicted - actions).square().mean()


def interoception(predicted: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """What is read off predicted states `[..., I]` is what was felt on arrival, each channel in its
    own unit `[I]`; scalar. What can't be known is NaN, and nobody is asked for it."""
    if not predicted.shape[-1]:
        return predicted.sum()  # who feels nothing is asked for nothing
    known = torch.where(target.isnan(), predicted.detach(), target)
    return ((predicted - known) / scale).square().mean()


def ensemble(predicted: Tensor, change: Tensor) -> Tensor:
    """Every member `[members, ..., D]` learns the change `[..., D]` by itself; scalar."""
    return (predicted - change).square().mean() if len(predicted) else predicted.sum()


def barlow_twins(one: Tensor, other: Tensor, off_diagonal_weight: float = 0.005) -> Tensor:
    """Two views `[N, C]` of the same: each feature the same in both, and told by no other; a C-th
    of the sum. `off_diagonal_weight`: lambda, what a correlation of different features costs.

    Barlow Twins (Zbontar et al. 2021), equation 1.
    """
    views = [(view - view.mean(0)) / (view.var(0) + _EPS).sqrt() for view in (one, other)]
    matrix = views[0].T @ views[1] / (len(one) - 1)  # [C, C]
    invariance = (1 - matrix.diagonal()).square().sum()
    redundancy = matrix.square().sum() - matrix.diagonal().square().sum()
    return (invariance + off_diagonal_weight * redundancy) / one.shape[1]


def sigreg(features: Tensor, directions: Tensor) -> Tensor:
    """How far features `[N, C]`, looked at along directions `[K, C]` of length 1, are from a
    standard normal: the weighted squared distance of characteristic functions (Epps & Pulley 1983),
    mean over directions; scalar.

    SIGReg of LeJEPA (Balestriero & LeCun 2025), without its factor N.
    """
    point = torch.linspace(-5, 5, 17, dtype=features.dtype, device=features.device)
    phase = (features @ directions.T)[..., None] * point  # [N, K, 17]
    target = (-point.square() / 2).exp()
    error = (phase.cos().mean(0) - target).square() + phase.sin().mean(0).square()
    return torch.trapezoid(error * target, point).mean()


def info_nce(predicted: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Of all targets `[N, D]`, the one that came must be most like what was predicted `[N, D]`;
    scalar.

    InfoNCE (van den Oord et al. 2018, equation 4), of cosines (NT-Xent, Chen et al. 2020).
    """
    one, other = (nn.functional.normalize(view, dim=-1) for view in (predicted, target))
    labels = torch.arange(len(one), device=one.device)
    return nn.functional.cross_entropy(one @ other.T / temperature, labels)


def margin(predicted: Tensor, target: Tensor, width: float = 1.0) -> Tensor:
    """What was predicted `[N, D]` lies close to what came, and at least `width` from what came in
    the neighbouring window; distances are root mean squares over D; scalar.

    The contrastive loss of Hadsell et al. 2006, equation 4: square in both of its arms.
    """
    near = (predicted - target).square().mean(-1)
    far = ((predicted - target.roll(1, 0)).square().mean(-1) + _EPS**2).sqrt()
    return (near + (width - far).relu().square()).mean() / 2


def byol(predicted: Tensor, target: Tensor) -> Tensor:
    """What was predicted `[N, D]` points the way of what came `[N, D]`, however long either is; 0
    where it does, 4 where it points the other way; scalar.

    BYOL (Grill et al. 2020, equation 2), and with a stopped gradient SimSiam (Chen & He 2021,
    equation 1). Each view is centred first, as by the batch normalisation of their projectors.
    """
    views = [nn.functional.normalize(view - view.mean(0), dim=-1) for view in (predicted, target)]
    return (views[0] - views[1]).square().sum(-1).mean()


def straightness(states: Tensor, keep: SelectFn = keep_all) -> Tensor:
    """One minus the cosine between steps that follow each other, `[B, T + 1, D]`: a path that is
    straight in the world's own terms costs nothing; 0 where there are no two steps; scalar. `keep`:
    the T - 1 pairs of steps that count.

    Perceptual straightening (Hénaff et al. 2019).
    """
    steps = states.diff(dim=1)
    earlier, later = keep(steps[:, :-1]), keep(steps[:, 1:])
    if not earlier.numel():
        return 0 * states.sum()
    return (1 - nn.functional.cosine_similarity(later, earlier, dim=-1)).mean()


def prototypes(
    predicted: Tensor, target: Tensor, prototypes: Tensor, temperature: float = 0.1
) -> Tensor:
    """From what was predicted `[N, D]` is to be told to which of some learnt kinds `[K, D]` belongs
    what came `[N, D]`, and the other way round; all kinds are met as often; scalar.

    SwAV's swapped prediction (Caron et al. 2020, equations 1 and 2). Each view is centred first, as
    by the batch normalisation of its projector: states that hardly differ yet, far from the origin,
    would all be of one kind, and stay so.
    """
    directions = nn.functional.normalize(prototypes, dim=-1)
    one, other = (
        nn.functional.normalize(view - view.mean(0), dim=-1) @ directions.T
        for view in (predicted, target)
    )
    swapped = ((other, one), (one, other))
    return torch.stack([
        nn.functional.cross_entropy(logits / temperature, sinkhorn(targets))
        for targets, logits in swapped
    ]).mean()  # fmt: skip


@torch.no_grad()
def sinkhorn(similarity: Tensor, sharpness: float = 20.0, rounds: int = 3) -> Tensor:
    """How much N things belong to K kinds, from how alike they are `[N, K]`: every thing as a
    whole, every kind as often as the others (Sinkhorn-Knopp; Caron et al. 2020, equation 3; Cuturi
    2013)."""
    assignment = (sharpness * (similarity - similarity.amax(1, keepdim=True))).exp()
    for _ in range(rounds):
        assignment = assignment / assignment.sum(0).clamp_min(_EPS**2)
        assignment = assignment / assignment.sum(1, keepdim=True).clamp_min(_EPS**2)
    return assignment


def directions(features: int, rng: torch.Generator, count: int = 64) -> Tensor:
    """`[K, C]` directions of length 1, drawn uniformly."""
    return nn.functional.normalize(torch.randn(count, features, generator=rng), dim=-1)


def center_within_episode(states: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """Takes from each state the mean of its episode: what never changes in an episode goes away.

    `[B, T + 1, D]`, windows in runs of `group_size` from one episode -> the same shape. `valid`
    `[B, T + 1]`: the states that count; all, where it is None.
    """
    runs = states.unflatten(0, (-1, group_size))
    if valid is None:
        return (runs - runs.mean((1, 2), keepdim=True)).flatten(0, 1)
    known = valid.to(states.device).unflatten(0, (-1, group_size))[..., None]
    total = torch.where(known, runs, 0).sum((1, 2), keepdim=True)
    return (runs - total / known.sum((1, 2), keepdim=True)).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """One weight a term; zero leaves the term out of the sum, but only those of `OPTIONAL_TERMS` out of the
    log."""

    prediction: float = 1.0
    """States that were foretold are near those that came."""
    scaled_prediction: float = 0.0
    """The same, each dimension in units of how much it changes in a step."""
    variance: float = 16.0
    """Each feature of the state differs from moment to moment (VICReg). Without it, and with
    nothing in its place, all moments may get one and the same state: a collapse."""
    covariance: float = 8.0
    """Different features tell different things (VICReg)."""
    variance_within: float = 0.0
    """Variance within each episode, not only between episodes."""
    covariance_within: float = 0.0
    """Covariance within each episode."""
    temporal_similarity: float = 12.0
    """Moments that follow each other have states that are near."""
    inverse_dynamics: float = 1.0
    """The action can be read off the two states that it joins (inverse dynamics)."""
    interoception: float = 0.0
    """What the body felt can be read off the states."""
    ensemble: float = 0.0
    """Several small models foretell each step, and where they differ is what is not known yet."""
    kl: float = 0.01
    """Of a latent variable: nats that it tells of the next state."""
    prior_nll: float = 1.0
    """How often what the latent variable tells comes, as the world model is to know it."""
    barlow_twins: float = 0.0
    """In place of variance and covariance: features of what was foretold and of what came agree,
    each with its like alone (Barlow Twins)."""
    sigreg: float = 0.0
    """In place of variance and covariance: states are spread as a normal distribution (SIGReg)."""
    info_nce: float = 0.0
    """In place of variance and covariance: what came is told from what came elsewhere (InfoNCE)."""
    margin: float = 0.0
    """In place of variance and covariance: states of different moments are so far apart at
    least."""
    straightness: float = 0.0
    """Three moments in a row lie on a straight line."""
    prototypes: float = 0.0
    """In place of variance and covariance: what was foretold and what came belong to the same of
    some prototypes, all of which are used alike (SwAV)."""
    byol: float = 0.0
    """States that were foretold point where those that came do, however long (BYOL, SimSiam)."""

    def __post_init__(self) -> None:
        validate_ranges(self, **dict.fromkeys(vars(self), WEIGHT))


OPTIONAL_TERMS = (
    "barlow_twins", "sigreg", "info_nce", "margin", "straightness", "prototypes", "byol",
)  # fmt: skip
"""Terms that stand in for others, computed only where they have a weight."""
