"""The terms of the world model's loss: prediction in representation space, and regularizers that
keep the representation from collapsing.

Every term is a pure function of states; its name is the name of its weight in `LossWeights`. Where
statistics are taken per channel, `per_location` turns `[N, D]` into `[N h w, C]`: every location of
a map is a sample of its channels (as in VICRegL, Bardes et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.types import WEIGHT, validate_ranges

_EPS = 1e-4

SelectFn = Callable[[Tensor], Tensor]
"""Selects, of `[B, T, D]`, the valid steps, `[..., D]`."""


def keep_all(part: Tensor) -> Tensor:
    """Every step is valid."""
    return part


def per_location(states: Tensor, channels: int) -> Tensor:
    """`[..., D]` -> `[N, C]`: every location of a map is a sample of its channels."""
    return states.unflatten(-1, (channels, -1)).movedim(-2, -1).flatten(0, -2)


def prediction(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in representation space over all imagined steps; scalar."""
    return (predicted - target).square().mean()


def scaled_prediction(predicted: Tensor, target: Tensor, step: Tensor) -> Tensor:
    """The same error, each dimension in units of its root mean square change in a step `[..., D]`;
    scalar. Predicting no change gives an error of about 1, however little a dimension changes. The
    unit of a dimension is at least a tenth of the mean unit."""
    mean_square = step.detach().flatten(0, -2).square().mean(0)
    unit = mean_square.clamp_min(0.01 * mean_square.mean() + _EPS**2)
    return ((predicted - target).square() / unit).mean()


def variance(features: Tensor) -> Tensor:
    """Hinge that keeps each feature's standard deviation above 1; features `[N, C]` -> scalar.

    VICReg (Bardes et al. 2022), equation 1.
    """
    return (1 - (features.var(0) + _EPS).sqrt()).relu().mean()


def covariance(features: Tensor) -> Tensor:
    """Sum of the squared covariances of different features, divided by C; features `[N, C]` ->
    scalar.

    VICReg, equation 2.
    """
    centred = features - features.mean(0)
    matrix = centred.T @ centred / (len(features) - 1)  # [C, C]
    off_diagonal = matrix.square().sum() - matrix.diagonal().square().sum()
    return off_diagonal / features.shape[1]


def temporal_similarity(states: Tensor, keep: SelectFn = keep_all) -> Tensor:
    """Mean squared distance of consecutive states, of `[B, T + 1, D]`; scalar. `keep` selects the
    valid ones of the T differences.

    The temporal similarity of PLDM (Sobal et al. 2025).
    """
    return keep(states[:, 1:] - states[:, :-1]).square().mean()


def inverse_dynamics(predicted: Tensor, actions: Tensor) -> Tensor:
    """Mean squared error of actions predicted from the states before and after them; scalar
    (Pathak et al. 2017)."""
    return (predicted - actions).square().mean()


def interoception(predicted: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error of interoception predicted from states `[..., I]`, each channel in units
    of its `scale` `[I]`; scalar. Targets that are NaN are not known, and don't count."""
    if not predicted.shape[-1]:
        return predicted.sum()  # 0: the mean of no channel would be NaN
    known = torch.where(target.isnan(), predicted.detach(), target)
    return ((predicted - known) / scale).square().mean()


def ensemble(predicted: Tensor, change: Tensor) -> Tensor:
    """Mean squared error of the change `[..., D]` that each member predicts, `[members, ..., D]`;
    scalar."""
    return (predicted - change).square().mean() if len(predicted) else predicted.sum()


def barlow_twins(predicted: Tensor, target: Tensor, off_diagonal_weight: float = 0.005) -> Tensor:
    """The cross-correlation matrix of two views `[N, C]` is close to the identity: equal features
    correlate, different ones don't; the sum over the matrix, divided by C; scalar.
    `off_diagonal_weight`: lambda.

    Barlow Twins (Zbontar et al. 2021), equation 1.
    """
    views = [(view - view.mean(0)) / (view.var(0) + _EPS).sqrt() for view in (predicted, target)]
    matrix = views[0].T @ views[1] / (len(predicted) - 1)  # [C, C]
    invariance = (1 - matrix.diagonal()).square().sum()
    redundancy = matrix.square().sum() - matrix.diagonal().square().sum()
    return (invariance + off_diagonal_weight * redundancy) / predicted.shape[1]


def sigreg(features: Tensor, directions: Tensor) -> Tensor:
    """Distance of features `[N, C]`, projected on directions `[K, C]` of length 1, from a standard
    normal: the weighted squared distance of characteristic functions (Epps & Pulley 1983), mean
    over directions; scalar.

    SIGReg of LeJEPA (Balestriero & LeCun 2025), without its factor N.
    """
    point = torch.linspace(-5, 5, 17, dtype=features.dtype, device=features.device)
    phase = (features @ directions.T)[..., None] * point  # [N, K, 17]
    target = (-point.square() / 2).exp()
    error = (phase.cos().mean(0) - target).square() + phase.sin().mean(0).square()
    return torch.trapezoid(error * target, point).mean()


def info_nce(predicted: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of telling each prediction's own target from the other targets of the batch,
    each `[N, D]`, by their similarity; scalar.

    InfoNCE (van den Oord et al. 2018, equation 4), with cosine similarity (NT-Xent, Chen et
    al. 2020).
    """
    predicted, target = (nn.functional.normalize(view, dim=-1) for view in (predicted, target))
    labels = torch.arange(len(predicted), device=predicted.device)
    return nn.functional.cross_entropy(predicted @ target.T / temperature, labels)


def margin(predicted: Tensor, target: Tensor, width: float = 1.0) -> Tensor:
    """Predictions `[N, D]` are close to their targets, and at least `width` from the target of the
    neighbouring window; distances are root mean squares over D; scalar.

    The contrastive loss of Hadsell et al. 2006, equation 4: the square in both of its parts.
    """
    near = (predicted - target).square().mean(-1)
    far = ((predicted - target.roll(1, 0)).square().mean(-1) + _EPS**2).sqrt()
    return (near + (width - far).relu().square()).mean() / 2


def pair_energies(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of each prediction with its own target, and with that of the neighbouring window,
    the incorrect answer: root mean square distances over D; `[N, D]` each -> `[N]` each."""
    return (
        ((predicted - target).square().mean(-1) + _EPS**2).sqrt(),
        ((predicted - target.roll(1, 0)).square().mean(-1) + _EPS**2).sqrt(),
    )


def hinge(predicted: Tensor, target: Tensor, width: float = 1.0) -> Tensor:
    """The energy of predictions `[N, D]` with their own targets is lower by at least `width` than
    that with an incorrect answer: max(0, width + E - E'); scalar.

    The hinge loss of LeCun et al. 2006, table 1: a difference of energies alone, whatever their
    values.
    """
    correct, incorrect = pair_energies(predicted, target)
    return (width + correct - incorrect).relu().mean()


def square_exponential(predicted: Tensor, target: Tensor, push: float = 1.0) -> Tensor:
    """The square of the energy of predictions `[N, D]` with their own targets, and `push` times the
    exponential of the negative energy with an incorrect answer, which is never 0:
    E^2 + push exp(-E'); scalar.

    The square-exponential loss of LeCun et al. 2006, table 1; `push`: gamma.
    """
    correct, incorrect = pair_energies(predicted, target)
    return (correct.square() + push * (-incorrect).exp()).mean()


def byol(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of predictions and targets, each `[N, D]` normalized to length 1: 0
    where they point the same way, 4 where they point opposite ways; scalar.

    BYOL (Grill et al. 2020, equation 2), and with a stopped gradient SimSiam (Chen & He 2021,
    equation 1). Each view is centred first, as by the batch normalisation of their projectors.
    """
    views = [nn.functional.normalize(view - view.mean(0), dim=-1) for view in (predicted, target)]
    return (views[0] - views[1]).square().sum(-1).mean()


def straightness(states: Tensor, keep: SelectFn = keep_all) -> Tensor:
    """One minus the cosine of consecutive steps in representation space, of states
    `[B, T + 1, D]`: 0 where the path is straight, and where there are no two steps; scalar. `keep`
    selects the valid ones of the T - 1 pairs of steps.

    Perceptual straightening (Hénaff et al. 2019).
    """
    steps = states.diff(dim=1)
    earlier, later = keep(steps[:, :-1]), keep(steps[:, 1:])
    if not earlier.numel():
        return 0 * states.sum()
    return (1 - nn.functional.cosine_similarity(later, earlier, dim=-1)).mean()


def photometric(warped: Tensor, image: Tensor) -> Tensor:
    """Charbonnier distance sqrt(d^2 + 0.001^2) of an image and of the next one, warped back by the
    flow, each `[N, C, S, S]` from 0 to 1: an absolute error that is smooth at 0; scalar.

    The reconstruction term of MC-JEPA (Bardes et al. 2023), with the robust penalty of Sun et al.
    2014.
    """
    return ((warped - image).square() + 1e-6).sqrt().mean()


def flow_smoothness(flow: Tensor) -> Tensor:
    """Mean absolute difference of the flow of neighbouring pixels, of `[N, 2, S, S]`; scalar.

    The smoothness term of MC-JEPA (Bardes et al. 2023), without its weights by edges.
    """
    return flow.diff(dim=2).abs().mean() + flow.diff(dim=3).abs().mean()


def prototypes(
    predicted: Tensor, target: Tensor, prototypes: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy of assigning each view `[N, D]` to the learnt prototypes `[K, D]` as the other
    view is assigned, all prototypes equally often; scalar.

    SwAV's swapped prediction (Caron et al. 2020, equations 1 and 2). Each view is centred first, as
    by the batch normalisation of its projector: early in training, states differ little and lie far
    from the origin, and all would be assigned to one prototype for good.
    """
    directions = nn.functional.normalize(prototypes, dim=-1)
    predicted_logits, target_logits = (
        nn.functional.normalize(view - view.mean(0), dim=-1) @ directions.T
        for view in (predicted, target)
    )
    swapped = ((target_logits, predicted_logits), (predicted_logits, target_logits))
    losses = [
        nn.functional.cross_entropy(logits / temperature, sinkhorn(other))
        for other, logits in swapped
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def sinkhorn(similarity: Tensor, sharpness: float = 20.0, rounds: int = 3) -> Tensor:
    """Soft assignment of N samples to K prototypes by their similarity, `[N, K]` -> `[N, K]`: every
    sample sums to 1, all prototypes are used about equally (Sinkhorn-Knopp; Caron et al. 2020,
    equation 3; Cuturi 2013)."""
    assignment = (sharpness * (similarity - similarity.amax(1, keepdim=True))).exp()
    for _ in range(rounds):
        assignment = assignment / assignment.sum(0).clamp_min(_EPS**2)
        assignment = assignment / assignment.sum(1, keepdim=True).clamp_min(_EPS**2)
    return assignment


def directions(features: int, rng: torch.Generator, count: int = 64) -> Tensor:
    """`[K, C]`: K directions of length 1, drawn uniformly."""
    return nn.functional.normalize(torch.randn(count, features, generator=rng), dim=-1)


def center_within_episode(states: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """Subtracts from each state the mean of its episode, and with it what never changes within one.

    `[B, T + 1, D]`, windows in groups of `group_size` from one episode -> the same shape. `valid`
    `[B, T + 1]`: the states of which the mean is taken; all, where it is None.
    """
    groups = states.unflatten(0, (-1, group_size))
    if valid is None:
        return (groups - groups.mean((1, 2), keepdim=True)).flatten(0, 1)
    mask = valid.to(states.device).unflatten(0, (-1, group_size))[..., None]
    total = torch.where(mask, groups, 0).sum((1, 2), keepdim=True)
    return (groups - total / mask.sum((1, 2), keepdim=True)).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weight of each term in the loss. A weight of 0 leaves a term out of the sum; terms of
    `OPTIONAL_TERMS` are then not computed and not logged either."""

    prediction: float = 1.0
    """Squared error of the predicted states."""
    scaled_prediction: float = 0.0
    """Squared error of the predicted states, each dimension in units of its typical change in a
    step."""
    variance: float = 16.0
    """The standard deviation of each state feature over the batch is at least 1 (VICReg). Without
    this term, or one that replaces it, all observations may get the same state: a collapse."""
    covariance: float = 8.0
    """Different state features are uncorrelated (VICReg)."""
    variance_within: float = 0.0
    """The variance term within each episode, not only between episodes."""
    covariance_within: float = 0.0
    """The covariance term within each episode."""
    temporal_similarity: float = 12.0
    """Consecutive states are close to each other (PLDM)."""
    inverse_dynamics: float = 1.0
    """Squared error of the action predicted from the states before and after it."""
    interoception: float = 0.0
    """Squared error of the interoception predicted from states."""
    ensemble: float = 0.0
    """Squared error of the ensemble of small models whose disagreement measures uncertainty."""
    kl: float = 0.01
    """Nats of information that the latent variable carries about the next state."""
    prior_nll: float = 1.0
    """Negative log likelihood of the latent variable under its prior."""
    barlow_twins: float = 0.0
    """Replaces variance and covariance: equal features of predicted and target states correlate,
    different ones don't (Barlow Twins)."""
    sigreg: float = 0.0
    """Replaces variance and covariance: states have a standard normal distribution (SIGReg)."""
    info_nce: float = 0.0
    """Replaces variance and covariance: a prediction is closer to its own target than to the other
    targets of the batch (InfoNCE)."""
    margin: float = 0.0
    """Replaces variance and covariance: a prediction keeps a minimum distance from the target of
    another window (contrastive margin loss)."""
    hinge: float = 0.0
    """Replaces variance and covariance: a prediction is closer to its own target than to that of
    another window, by a minimum difference (hinge loss)."""
    square_exponential: float = 0.0
    """Replaces variance and covariance: predictions are close to their own targets, and pushed away
    from those of other windows, less and less with the distance (square-exponential loss)."""
    straightness: float = 0.0
    """Consecutive steps in representation space have the same direction (straightening)."""
    prototypes: float = 0.0
    """Replaces variance and covariance: predicted and target states are assigned to the same
    learnt prototypes, all of which are used equally often (SwAV)."""
    byol: float = 0.0
    """Predicted and target states have the same direction, at any length (BYOL, SimSiam)."""

    def __post_init__(self) -> None:
        validate_ranges(self, **dict.fromkeys(vars(self), WEIGHT))


STATE_WEIGHTS = LossWeights(
    prediction=10, variance=4, covariance=0.5, temporal_similarity=0, inverse_dynamics=1
)
"""For states of a few numbers."""

IDENTITY_WEIGHTS = LossWeights(
    prediction=0,
    scaled_prediction=1,
    variance=0,
    covariance=0,
    temporal_similarity=0,
    inverse_dynamics=0,
)
"""For vectors that are states as they are and can't collapse: their prediction errors count in
units of their change from step to step."""

OPTIONAL_TERMS = (
    "barlow_twins", "sigreg", "info_nce", "margin", "hinge", "square_exponential", "straightness",
    "prototypes", "byol",
)  # fmt: skip
"""Terms that are computed only where their weight is not 0."""
