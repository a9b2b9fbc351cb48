"""What the world model learns: to predict in representation space, and not to collapse."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ami_agent.losses.padding import Keep, last_of, with_first
from modules import objectives
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
    Of windows that are padded (`trajectory.valid`) no term counts what comes after the end.
    """
    actions, batch = trajectory.actions, trajectory.actions.shape[:2]
    flat = each(lambda part: part.flatten(0, 1), trajectory.obs)
    shape = (batch[0], batch[1] + 1)
    features = perceive(flat)
    states = recalled(recall, features.unflatten(0, shape))  # [B, T + 1, D]
    aimed = target(flat, features)
    with torch.set_grad_enabled(aimed.requires_grad):  # recall doesn't move what stands still
        targets = recalled(recall, aimed.unflatten(0, shape))
    valid = None if trajectory.valid is None else with_first(trajectory.valid)
    seen, taken = Keep(valid), Keep(trajectory.valid)
    pairs = Keep(None if trajectory.valid is None else trajectory.valid[:, 1:])
    before, after = taken(states[:, :-1]), taken(states[:, 1:])
    guessed = model.level(0).dynamics.inverse(before, after)  # type: ignore[operator]
    every = seen(states)
    folded = objectives.fold(every, channels)
    moving = objectives.fold(seen(objectives.within(states, together, valid)), channels)
    unrolled, predicted, came = _unrolled(
        model, states, targets, actions, trajectory.interoception, random, context,
        trajectory.valid,
    )  # fmt: skip
    views = predicted, came
    more: dict[str, Callable[[], Tensor]] = {
        "redundancy": lambda: objectives.redundancy(
            objectives.fold(views[0], channels), objectives.fold(views[1], channels)
        ),
        "gaussianity": lambda: objectives.gaussianity(
            folded, objectives.directions(channels, random).to(folded)
        ),
        "contrast": lambda: objectives.contrast(*views),
        "margin": lambda: objectives.margin(*views),
        "straightness": lambda: objectives.straightness(states, pairs),
        "agreement": lambda: objectives.agreement(*views),
        "prototypes": lambda: objectives.prototypes(*views, kinds),
    }
    return {
        **unrolled,
        **{name: more[name]() for name in objectives.OTHERS if name in others},
        "variance": objectives.variance(every.flatten(0, -2)),
        "covariance": objectives.covariance(folded),
        "variance_within": objectives.variance(moving),
        "covariance_within": objectives.covariance(moving),
        "similarity": objectives.similarity(states, taken),
        "inverse": objectives.inverse(guessed, taken(actions)),
    }


def _unrolled(
    model: WorldModel, states: Tensor, targets: Tensor, actions: Tensor, felt: Tensor,
    random: torch.Generator, context: int, valid: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Futures from each of the first `context` + 1 states: what they predict, what is felt in them,
    and, for states as they are, what an ensemble would expect of one step. Returns the terms, and
    the last state of every future as it was predicted and as it came, `[N, D]`."""
    length, level = actions.shape[1] - context, model.level(0)
    shape = (*actions.shape[:2], level.latent.chances)
    felt = model.feeling.relative(felt)
    chance = torch.rand(shape, generator=random).to(states)
    taken = Keep(valid)
    before, after = taken(states[:, :-1]), targets[:, 1:]
    inferred = level.latent.infer(
        before, taken(actions), taken(after), taken(chance), level.dynamics
    )
    acting = taken.back(inferred.acting)  # [B, T, A + Z]
    ahead = (part.unfold(1, length, 1).movedim(-1, 2) for part in (acting, after, felt))
    acted, arrived, arrival = (part.flatten(0, 1) for part in ahead)  # [B * (context + 1), T, ..]
    path = level.unroll(states[:, : context + 1].flatten(0, 1), acted)
    future = None if valid is None else valid.unfold(1, length, 1).flatten(0, 1)
    keep, last = Keep(future), last_of(future)
    now, then = before.detach(), taken(after).detach()
    # each slice by itself: gradients are summed in the order of what they come through
    read = model.feeling.of(
        keep(path[:, :-1]), keep(acted[..., : model.action_dim]), keep(path[:, 1:])
    )
    terms = {
        "prediction": objectives.prediction(keep(path[:, 1:]), keep(arrived)),
        "change": objectives.change(keep(path[:, 1:]), keep(arrived), then - now),
        "feeling": objectives.feeling(read, keep(arrival), model.feeling.unit()),
        "doubt": objectives.doubt(model.doubt(now, taken(actions)), then - now),
        "information": inferred.information,
        "prior": inferred.prior,
    }
    return terms, last(path[:, 1:]), last(arrived)


def unroll_loss(
    model: WorldModel, trajectory: Trajectory, random: torch.Generator
) -> dict[str, Tensor]:
    """The same prediction where observations are states already, `[B, T + 1, D]`."""
    states, actions = trajectory.states, trajectory.actions
    felt, valid = trajectory.interoception, trajectory.valid
    return _unrolled(model, states, states, actions, felt, random, 0, valid)[0]
