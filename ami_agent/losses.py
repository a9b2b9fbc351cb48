"""One pure loss per trainable box.

A loss maps a batch to its terms by name, each a scalar tensor; the names are the names of the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from modules import objectives
from modules.actor import Policy
from modules.distance import Quasimetric
from modules.drives import Drives
from modules.hierarchy.levels import UpperLevel
from modules.planners.outlook import Thought
from modules.recall import NoRecall, recalled
from modules.types import Observation, Trajectory, each
from modules.world_model import WorldModel

NONE = torch.empty(0)

See = Callable[[Observation], Tensor]
"""Observations `[N, *O]` -> features `[N, D]`."""


def world_model_loss(
    trajectory: Trajectory, perceive: See, target: Callable[[Observation, Tensor], Tensor],
    recall: NoRecall, model: WorldModel, random: torch.Generator, *, channels: int, together: int,
    context: int = 0, others: Collection[str] = (), kinds: Tensor = NONE,
) -> dict[str, Tensor]:  # fmt: skip
    """The joint-embedding prediction over several steps, and what keeps it from collapsing.

    Over the batch every dimension must vary, so that in a map every place tells layouts apart;
    within an episode every channel must, wherever it happens.
    `together`: windows come in runs of so many from one episode, whose mean the terms named
    `_within` take away. The states are encoded once; `target` says what is to be predicted. From
    each of the first `context` + 1 states the rest of the window is unrolled, `context` steps less
    than it is long. What can't be known of a step is inferred from the states it joins. `others`:
    which terms of `objectives.OTHERS` are asked for; the two views that some of them compare are
    the last state of a window as it was predicted and as it came; `kinds` `[K, D]`: prototypes.
    """
    actions, batch = trajectory.actions, trajectory.actions.shape[:2]
    flat = each(lambda part: part.flatten(0, 1), trajectory.obs)
    shape = (batch[0], batch[1] + 1)
    features = perceive(flat)
    states = recalled(recall, features.unflatten(0, shape))  # [B, T + 1, D]
    aimed = target(flat, features)
    with torch.set_grad_enabled(aimed.requires_grad):  # recall doesn't move what stands still
        targets = recalled(recall, aimed.unflatten(0, shape))
    guessed = model.level(0).dynamics.inverse(states[:, :-1], states[:, 1:])  # type: ignore[operator]
    folded = objectives.fold(states, channels)
    moving = objectives.fold(objectives.within(states, together), channels)
    unrolled, path, arrived = _unrolled(
        model, states, targets, actions, trajectory.interoception, random, context
    )
    views = path[:, -1], arrived[:, -1]
    more: dict[str, Callable[[], Tensor]] = {
        "redundancy": lambda: objectives.redundancy(
            objectives.fold(views[0], channels), objectives.fold(views[1], channels)
        ),
        "gaussianity": lambda: objectives.gaussianity(
            folded, objectives.directions(channels, random).to(folded)
        ),
        "contrast": lambda: objectives.contrast(*views),
        "margin": lambda: objectives.margin(*views),
        "straightness": lambda: objectives.straightness(states),
        "prototypes": lambda: objectives.prototypes(*views, kinds),
    }
    return {
        **unrolled,
        **{name: more[name]() for name in objectives.OTHERS if name in others},
        "variance": objectives.variance(states.flatten(0, 1)),
        "covariance": objectives.covariance(folded),
        "variance_within": objectives.variance(moving),
        "covariance_within": objectives.covariance(moving),
        "similarity": objectives.similarity(states),
        "inverse": objectives.inverse(guessed, actions),
    }


def _unrolled(
    model: WorldModel, states: Tensor, targets: Tensor, actions: Tensor, felt: Tensor,
    random: torch.Generator, context: int,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Futures from each of the first `context` + 1 states: what they predict, what is felt in them,
    and, for states as they are, what an ensemble would expect of one step. Returns the terms, the
    futures `[N, T + 1, D]` and what came, `[N, T, D]`."""
    length, level = actions.shape[1] - context, model.level(0)
    shape = (*actions.shape[:2], level.latent.chances)
    chance = torch.rand(shape, generator=random)
    before, after = states[:, :-1], targets[:, 1:]
    inferred = level.latent.infer(before, actions, after, chance.to(states), level.dynamics)
    ahead = (part.unfold(1, length, 1).movedim(-1, 2) for part in (inferred.acting, after, felt))
    acted, arrived, arrival = (part.flatten(0, 1) for part in ahead)  # [B * (context + 1), T, ..]
    path = level.unroll(states[:, : context + 1].flatten(0, 1), acted)
    now, then = before.detach(), after.detach()
    read = model.feeling.of(path[:, :-1], acted[..., : model.action_dim], path[:, 1:])
    terms = {
        "prediction": objectives.prediction(path[:, 1:], arrived),
        "change": objectives.change(path[:, 1:], arrived, then - now),
        "feeling": objectives.feeling(read, arrival, model.feeling.scale),
        "doubt": objectives.doubt(model.doubt(now, actions), then - now),
        "information": inferred.information,
        "prior": inferred.prior,
    }
    return terms, path, arrived


def unroll_loss(
    model: WorldModel, trajectory: Trajectory, random: torch.Generator
) -> dict[str, Tensor]:
    """The same prediction where observations are states already, `[B, T + 1, D]`."""
    states = trajectory.states
    felt = trajectory.interoception
    return _unrolled(model, states, states, trajectory.actions, felt, random, 0)[0]


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
    far: float, slack: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push everything apart, but let no lived step
    cost more than 1. States and next states `[..., B, D]`, drawn at random: a state's goal is its
    neighbour among the B; `far` in steps."""
    start, step = distance.embed(state), distance.embed(next_state)
    apart = distance.between(start, start.roll(1, -2))  # [..., B]
    push = nn.functional.softplus(far - apart, beta=0.1).mean()
    violation = (distance.between(start, step) - 1).relu().square().mean() - slack**2
    price = multiplier()
    return {
        "far": push,
        "near": price.detach() * violation,
        "price": -price * violation.detach(),
    }


def level_loss(
    level: UpperLevel, multiplier: Multiplier, states: Tensor, actions: Tensor,
    random: torch.Generator, *, far: float, slack: float,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """A level above learns from states `[B, T * stride + 1, D]` of the one below and what was done
    `[B, T * stride, A]`: to predict in its own strides, what macro-actions there are, how far it
    is. Returns the terms, and its own states `[B, T + 1, D]` and macro-actions `[B, T, M]`."""
    own, macros = level.lift(states[:, :: level.stride]), level.chunks(actions)
    before, after, model = own[:, :-1], own[:, 1:], level.model.level(0)
    chance = torch.rand((*macros.shape[:2], model.latent.chances), generator=random).to(own)
    inferred = model.latent.infer(before, macros, after, chance, model.dynamics)
    now, then = (part.detach().transpose(0, 1) for part in (before, after))  # [T, B, D]
    terms = {
        "prediction": objectives.prediction(model.unroll(own[:, 0], inferred.acting)[:, 1:], after),
        "variance": objectives.variance(own.flatten(0, 1)),
        "covariance": objectives.covariance(own.flatten(0, 1)),
        "information": inferred.information,
        "foresight": inferred.prior,
        "prior": level.macros(before.detach()).surprise(macros.detach()).mean(),
        **quasimetric_loss(level.distance, multiplier, now, then, far=far, slack=slack),
    }
    return terms, own, macros


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


def policy_loss(
    policy: Policy, state: Tensor, goal: Tensor, condition: Tensor, action: Tensor
) -> dict[str, Tensor]:
    """Imitation of Mode-2's first action `[B, A]`; states, goals `[B, D]`, the task `[B, W]`."""
    return {"imitation": policy.bounds.missed(policy.free(state, goal, condition), action).mean()}


def lambda_returns(
    cost: Tensor, ahead: Tensor, lives: Tensor, discount: float, trace: float
) -> Tensor:
    """TD(lambda): what is still to come after each of T states, `[B, T, W]`, when `cost`
    `[B, T, W]` is felt on arrival at the next, which promises `ahead` `[B, T, W]`; that much only
    as life goes on, `lives` `[B, T]`, from 0 to 1 (Sutton & Barto 2018, 12.8)."""
    goes_on = lives.to(cost)[..., None] * discount
    later, found = ahead[:, -1], []
    for step in reversed(range(cost.shape[1])):
        mixed = (1 - trace) * ahead[:, step] + trace * later
        later = cost[:, step] + goes_on[:, step] * mixed
        found.append(later)
    return torch.stack(found[::-1], 1)


SATURATED = 2.5
"""Where an action that is bounded by tanh hardly moves any more: 99 % of the way."""


def actor_critic_loss(
    thought: Thought, free: Tensor, drives: Drives, foresight: nn.Module, slow: nn.Module,
    trace: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Of the policy's own futures `[B, 1, H, ..]`: their energy, in units of its own spread, or a
    task with large costs would take larger steps; how far its actions before they are bounded,
    `free` `[B, A]`, are out where nothing is learnt any more; and what the states promise, against
    what is felt from there on, weighed by the chance to be alive by then."""
    energy, future = thought.energy, thought.rollout
    with torch.no_grad():
        felt = drives(future.interoception).flatten(0, 1)  # [B, H, W]
        lives = drives.lives(future.interoception).flatten(0, 1)  # [B, H]
        alive, _ = drives.alive(future.interoception.flatten(0, 1))
        states = future.states.detach().flatten(0, 1)  # [B, H + 1, D]
        returns = lambda_returns(felt, slow(states[:, 1:]), lives, foresight.discount, trace)  # type: ignore[arg-type]
    error = (foresight.every(states[:, :-1]) - returns) / foresight.scale  # type: ignore[operator]
    return {
        "energy": (energy / energy.detach().std(correction=0).clamp_min(1e-6)).mean(),
        "excess": (free.abs() - SATURATED).relu().square().mean(),
        "foresight": (alive[..., None] * error.square()).mean(),
    }


def foresight_loss(predicted: Tensor, returns: Tensor, expectile: float) -> dict[str, Tensor]:
    """Regression on returns, each `[..., W]`. Memory was lived for other ends, so what came cheaper
    than expected counts `expectile` and what came dearer the rest (IQL, Kostrikov et al. 2022)."""
    error = returns - predicted
    weight = torch.where(error < 0, expectile, 1 - expectile)
    return {"foresight": (weight * error.square()).mean()}
