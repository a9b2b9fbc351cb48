"""What the world model learns: to predict in representation space, and not to collapse."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ami_agent.training import representation_losses
from ami_agent.training.padding import ValidSteps, last_valid, states_from_steps
from modules.memory.short_term import NoMemory, unroll_memory
from modules.types import Observation, Trajectory, tree_map
from modules.world_model.jepa import WorldModel

NONE = torch.empty(0)

EncodeFn = Callable[[Observation], Tensor]
"""Observations `[N, *O]` -> features `[N, D]`."""


def world_model_loss(
    trajectory: Trajectory, perceive: EncodeFn, target_fn: Callable[[Observation, Tensor], Tensor],
    short_term_memory: NoMemory, model: WorldModel, random: torch.Generator, *, channels: int, group_size: int,
    context_steps: int = 0, optional_terms: Collection[str] = (), prototypes: Tensor = NONE,
) -> dict[str, Tensor]:  # fmt: skip
    """The joint-embedding prediction over several steps, and what keeps it from collapsing.

    Over the batch every dimension must vary, so that in a map every place tells layouts apart;
    within an episode every channel must, wherever it happens.
    `together`: windows come in runs of so many from one episode, whose mean the terms named
    `_within` take away. The states are encoded once; `target` says what is to be predicted. From
    each of the first `context` + 1 states the rest of the window is unrolled, `context` steps less
    than it is long. What can't be known of a step is inferred from the states it joins. `others`:
    which terms of `representation_losses.OTHERS` are asked for; the two views that some of them compare are
    the last state of a window as it was predicted and as it came; `kinds` `[K, D]`: prototypes.
    Of windows that are padded (`trajectory.valid`) no term counts what comes after the end.
    """
    actions, batch = trajectory.actions, trajectory.actions.shape[:2]
    flat = tree_map(lambda part: part.flatten(0, 1), trajectory.obs)
    shape = (batch[0], batch[1] + 1)
    features = perceive(flat)
    states = unroll_memory(short_term_memory, features.unflatten(0, shape))  # [B, T + 1, D]
    target_features = target_fn(flat, features)
    with torch.set_grad_enabled(
        target_features.requires_grad
    ):  # recall doesn't move what stands still
        targets = unroll_memory(short_term_memory, target_features.unflatten(0, shape))
    valid = None if trajectory.valid is None else states_from_steps(trajectory.valid)
    valid_states, valid_steps = ValidSteps(valid), ValidSteps(trajectory.valid)
    valid_pairs = ValidSteps(None if trajectory.valid is None else trajectory.valid[:, 1:])
    states_before, states_after = valid_steps(states[:, :-1]), valid_steps(states[:, 1:])
    inferred_actions = model.level(0).dynamics.inverse(states_before, states_after)  # type: ignore[operator]
    all_states = valid_states(states)
    all_features = representation_losses.per_location(all_states, channels)
    centered_features = representation_losses.per_location(
        valid_states(representation_losses.center_within_episode(states, group_size, valid)),
        channels,
    )
    terms, predicted, actual = _unroll_terms(
        model, states, targets, actions, trajectory.interoception, random, context_steps,
        trajectory.valid,
    )  # fmt: skip
    views = predicted, actual
    optional: dict[str, Callable[[], Tensor]] = {
        "barlow_twins": lambda: representation_losses.barlow_twins(
            representation_losses.per_location(views[0], channels),
            representation_losses.per_location(views[1], channels),
        ),
        "sigreg": lambda: representation_losses.sigreg(
            all_features, representation_losses.directions(channels, random).to(all_features)
        ),
        "info_nce": lambda: representation_losses.info_nce(*views),
        "margin": lambda: representation_losses.margin(*views),
        "straightness": lambda: representation_losses.straightness(states, valid_pairs),
        "byol": lambda: representation_losses.byol(*views),
        "prototypes": lambda: representation_losses.prototypes(*views, prototypes),
    }
    return {
        **terms,
        **{
            name: optional[name]()
            for name in representation_losses.OPTIONAL_TERMS
            if name in optional_terms
        },
        "variance": representation_losses.variance(all_states.flatten(0, -2)),
        "covariance": representation_losses.covariance(all_features),
        "variance_within": representation_losses.variance(centered_features),
        "covariance_within": representation_losses.covariance(centered_features),
        "temporal_similarity": representation_losses.temporal_similarity(states, valid_steps),
        "inverse_dynamics": representation_losses.inverse_dynamics(
            inferred_actions, valid_steps(actions)
        ),
    }


def _unroll_terms(
    model: WorldModel, states: Tensor, targets: Tensor, actions: Tensor, interoception: Tensor,
    random: torch.Generator, context_steps: int, valid: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Futures from each of the first `context` + 1 states: what they predict, what is felt in them,
    and, for states as they are, what an ensemble would expect of one step. Returns the terms, and
    the last state of every future as it was predicted and as it came, `[N, D]`."""
    length, level = actions.shape[1] - context_steps, model.level(0)
    shape = (*actions.shape[:2], level.latent.noise_dim)
    interoception = model.interoception_head.subtract_offset(interoception)
    noise = torch.rand(shape, generator=random).to(states)
    valid_steps = ValidSteps(valid)
    states_before, states_after = valid_steps(states[:, :-1]), targets[:, 1:]
    posterior = level.latent.posterior(
        states_before,
        valid_steps(actions),
        valid_steps(states_after),
        valid_steps(noise),
        level.dynamics,
    )
    action_latents = valid_steps.scatter(posterior.action_latent)  # [B, T, A + Z]
    windows = (
        part.unfold(1, length, 1).movedim(-1, 2)
        for part in (action_latents, states_after, interoception)
    )
    window_actions, window_targets, window_signals = (
        part.flatten(0, 1) for part in windows
    )  # [B * (context + 1), T, ..]
    predicted_states = level.unroll(states[:, : context_steps + 1].flatten(0, 1), window_actions)
    future_valid = None if valid is None else valid.unfold(1, length, 1).flatten(0, 1)
    valid_future, last_valid_of = ValidSteps(future_valid), last_valid(future_valid)
    current, next_states = states_before.detach(), valid_steps(states_after).detach()
    # each slice by itself: gradients are summed in the order of what they come through
    predicted_signals = model.interoception_head.predict(
        valid_future(predicted_states[:, :-1]),
        valid_future(window_actions[..., : model.action_dim]),
        valid_future(predicted_states[:, 1:]),
    )
    terms = {
        "prediction": representation_losses.prediction(
            valid_future(predicted_states[:, 1:]), valid_future(window_targets)
        ),
        "scaled_prediction": representation_losses.scaled_prediction(
            valid_future(predicted_states[:, 1:]),
            valid_future(window_targets),
            next_states - current,
        ),
        "interoception": representation_losses.interoception(
            predicted_signals, valid_future(window_signals), model.interoception_head.error_scale()
        ),
        "ensemble": representation_losses.ensemble(
            model.ensemble(current, valid_steps(actions)), next_states - current
        ),
        "kl": posterior.kl,
        "prior_nll": posterior.prior_nll,
    }
    return terms, last_valid_of(predicted_states[:, 1:]), last_valid_of(window_targets)


def unroll_loss(
    model: WorldModel, trajectory: Trajectory, random: torch.Generator
) -> dict[str, Tensor]:
    """The same prediction where observations are states already, `[B, T + 1, D]`."""
    states, actions = trajectory.states, trajectory.actions
    interoception, valid = trajectory.interoception, trajectory.valid
    return _unroll_terms(model, states, states, actions, interoception, random, 0, valid)[0]
