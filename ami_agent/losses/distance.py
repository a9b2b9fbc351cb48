"""What critics of distance learn, and the levels above, which have one each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ami_agent.losses.padding import Keep, with_first
from modules import objectives
from modules.distance import Quasimetric
from modules.hierarchy.levels import UpperLevel


class Multiplier(nn.Module):
    """The dual variable of a constraint, at least 0; it grows while the constraint is violated."""

    def __init__(self, start: float = 1.0, speed: float = 100.0) -> None:
        super().__init__()
        self.speed = speed
        self.raw = nn.Parameter(torch.tensor(start).expm1().log() / speed)

    def forward(self) -> Tensor:
        return nn.functional.softplus(self.speed * self.raw)


def quasimetric_loss(
    distance: Quasimetric, multiplier: Multiplier, state: Tensor, next_state: Tensor, *,
    far: float, slack: float, fading: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push everything apart, but let no lived step
    cost more than 1. States and next states `[..., B, D]`, drawn at random: a state's goal is its
    neighbour among the B; `far` in steps. A push may fade with the distance, as 1 / (1 + d): the
    best distances are the same, the largest that steps allow, but what lies near is sorted out
    first."""
    start, step = distance.embed(state), distance.embed(next_state)
    apart = distance.between(start, start.roll(1, -2))  # [..., B]
    pushed = -far * apart.log1p() if fading else nn.functional.softplus(far - apart, beta=0.1)
    violation = (distance.between(start, step) - 1).relu().square().mean() - slack**2
    price = multiplier()
    return {
        "far": pushed.mean(),
        "near": price.detach() * violation,
        "price": -price * violation.detach(),
    }


LEVEL_TERMS = ("prediction", "variance", "covariance", "information", "foresight", "prior")


def level_loss(
    level: UpperLevel, multiplier: Multiplier, states: Tensor, actions: Tensor,
    random: torch.Generator, *, far: float, slack: float, valid: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """A level above learns from states `[B, T * stride + 1, D]` of the one below and what was done
    `[B, T * stride, A]`: to predict in its own strides, what macro-actions there are, how far it
    is. Returns the terms, and its own states `[B, T + 1, D]` and macro-actions `[B, T, M]`. Of
    windows that are padded only the strides that are `valid` `[B, T]` count."""
    own, macros = level.lift(states[:, :: level.stride]), level.chunks(actions)
    model = level.model.level(0)
    chance = torch.rand((*macros.shape[:2], model.latent.chances), generator=random).to(own)
    taken, seen = Keep(valid), Keep(None if valid is None else with_first(valid))
    before, after, done = taken(own[:, :-1]), taken(own[:, 1:]), taken(macros)
    if not len(before):  # no stride of this batch is whole
        return dict.fromkeys(LEVEL_TERMS, 0 * (own.sum() + macros.sum())), own, macros
    inferred = model.latent.infer(before, done, after, taken(chance), model.dynamics)
    now, then = before.detach(), after.detach()
    if valid is None:
        now, then = now.transpose(0, 1), then.transpose(0, 1)  # [T, B, D]
    ahead = model.unroll(own[:, 0], taken.back(inferred.acting))[:, 1:]
    every = seen(own).flatten(0, -2)
    far_off = (
        quasimetric_loss(level.distance, multiplier, now, then, far=far, slack=slack)
        if isinstance(level.distance, Quasimetric)
        else {}  # it is the critic's
    )
    return {
        "prediction": objectives.prediction(taken(ahead), after),
        "variance": objectives.variance(every),
        "covariance": objectives.covariance(every),
        "information": inferred.information,
        "foresight": inferred.prior,
        "prior": level.macros(before.detach()).surprise(done.detach()).mean(),
        **far_off,
    }, own, macros  # fmt: skip


def temporal_difference_loss(
    distance: nn.Module, slow: nn.Module, state: Tensor, next_state: Tensor, goal: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """d(s, g) = 1 + d(s', g), nothing to go once there; `slow` is a lagging copy.

    Off-policy, so each lived step only promises an upper bound: errors downward weigh less, as in
    expectile regression (IQL, Kostrikov et al. 2022).
    """
    with torch.no_grad():
        there = (next_state - goal).square().sum(-1) < 1e-6
        promised = 1 + slow(next_state, goal).masked_fill(there, 0)
    error = distance(state, goal) - promised
    weight = torch.where(error > 0, 0.9, 0.1)
    return {"bellman": (weight * error.square()).mean()}


def taught_loss(
    distance: nn.Module, state: Tensor, goal: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Regression on known steps to go `[B]`; relative, so that near goals are learnt as well.

    Infinite steps, a goal that no known path leads to, teach nothing.
    """
    known = steps.isfinite()
    steps = steps.masked_fill(~known, 0)
    error = (distance(state, goal) - steps).square() / (1 + steps)
    return {"taught": (error * known).sum() / known.sum().clamp_min(1)}
