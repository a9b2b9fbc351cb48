"""What critics of distance learn, and the levels above, which have one each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ami_agent.training import representation_losses
from ami_agent.training.padding import ValidSteps, states_from_steps
from modules.cost.quasimetric import Quasimetric
from modules.world_model.hjepa import JEPALevel


class LagrangeMultiplier(nn.Module):
    """The dual variable of a constraint, at least 0; it grows while the constraint is violated."""

    def __init__(self, embedding: float = 1.0, speed: float = 100.0) -> None:
        super().__init__()
        self.speed = speed
        self.raw = nn.Parameter(torch.tensor(embedding).expm1().log() / speed)

    def forward(self) -> Tensor:
        return nn.functional.softplus(self.speed * self.raw)


def quasimetric_loss(
    distance: Quasimetric, multiplier: LagrangeMultiplier, state: Tensor, next_state: Tensor, *,
    max_distance: float, epsilon: float, log_push: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push everything apart, but let no lived step
    cost more than 1. States and next states `[..., B, D]`, drawn at random: a state's goal is its
    neighbour among the B; `far` in steps. A push may fade with the distance, as 1 / (1 + d): the
    best distances are the same, the largest that steps allow, but what lies near is sorted out
    first."""
    embedding, next_embedding = distance.embed(state), distance.embed(next_state)
    distances = distance.from_embeddings(embedding, embedding.roll(1, -2))  # [..., B]
    push = (
        -max_distance * distances.log1p()
        if log_push
        else nn.functional.softplus(max_distance - distances, beta=0.1)
    )
    violation = (
        distance.from_embeddings(embedding, next_embedding) - 1
    ).relu().square().mean() - epsilon**2
    value = multiplier()
    return {
        "push": push.mean(),
        "constraint": value.detach() * violation,
        "multiplier": -value * violation.detach(),
    }


LEVEL_TERMS = ("prediction", "variance", "covariance", "kl", "latent_prior_nll", "action_prior_nll")


def hjepa_level_loss(
    level: JEPALevel, multiplier: LagrangeMultiplier, states: Tensor, actions: Tensor,
    random: torch.Generator, *, max_distance: float, epsilon: float, valid: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """A level above learns from states `[B, T * stride + 1, D]` of the one below and what was done
    `[B, T * stride, A]`: to predict in its own strides, what macro-actions there are, how far it
    is. Returns the terms, and its own states `[B, T + 1, D]` and macro-actions `[B, T, M]`. Of
    windows that are padded only the strides that are `valid` `[B, T]` count."""
    level_states, macro_actions = (
        level.state_encoder(states[:, :: level.num_steps]),
        level.encode_actions(actions),
    )
    model = level.world_model.level(0)
    noise = torch.rand((*macro_actions.shape[:2], model.latent.noise_dim), generator=random).to(
        level_states
    )
    valid_steps, valid_states = (
        ValidSteps(valid),
        ValidSteps(None if valid is None else states_from_steps(valid)),
    )
    states_before, states_after, valid_macros = (
        valid_steps(level_states[:, :-1]),
        valid_steps(level_states[:, 1:]),
        valid_steps(macro_actions),
    )
    if not len(states_before):  # no stride of this batch is whole
        return (
            dict.fromkeys(LEVEL_TERMS, 0 * (level_states.sum() + macro_actions.sum())),
            level_states,
            macro_actions,
        )
    posterior = model.latent.posterior(
        states_before, valid_macros, states_after, valid_steps(noise), model.dynamics
    )
    detached_before, detached_after = states_before.detach(), states_after.detach()
    if valid is None:
        detached_before, detached_after = (
            detached_before.transpose(0, 1),
            detached_after.transpose(0, 1),
        )  # [T, B, D]
    predicted = model.unroll(level_states[:, 0], valid_steps.scatter(posterior.action_latent))[
        :, 1:
    ]
    all_states = valid_states(level_states).flatten(0, -2)
    distance_terms = (
        quasimetric_loss(
            level.distance,
            multiplier,
            detached_before,
            detached_after,
            max_distance=max_distance,
            epsilon=epsilon,
        )
        if isinstance(level.distance, Quasimetric)
        else {}  # it is the critic's
    )
    return {
        "prediction": representation_losses.prediction(valid_steps(predicted), states_after),
        "variance": representation_losses.variance(all_states),
        "covariance": representation_losses.covariance(all_states),
        "kl": posterior.kl,
        "latent_prior_nll": posterior.prior_nll,
        "action_prior_nll": level.action_prior(states_before.detach()).nll(valid_macros.detach()).mean(),
        **distance_terms,
    }, level_states, macro_actions  # fmt: skip


def temporal_difference_loss(
    distance: nn.Module, target_critic: nn.Module, state: Tensor, next_state: Tensor, goal: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """d(s, g) = 1 + d(s', g), nothing to go once there; `slow` is a lagging copy.

    Off-policy, so each lived step only promises an upper bound: errors downward weigh less, as in
    expectile regression (IQL, Kostrikov et al. 2022).
    """
    with torch.no_grad():
        at_goal = (next_state - goal).square().sum(-1) < 1e-6
        target = 1 + target_critic(next_state, goal).masked_fill(at_goal, 0)
    error = distance(state, goal) - target
    weight = torch.where(error > 0, 0.9, 0.1)
    return {"td": (weight * error.square()).mean()}


def path_regression_loss(
    distance: nn.Module, state: Tensor, goal: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Regression on known steps to go `[B]`; relative, so that near goals are learnt as well.

    Infinite steps, a goal that no known path leads to, teach nothing.
    """
    is_known = steps.isfinite()
    steps = steps.masked_fill(~is_known, 0)
    error = (distance(state, goal) - steps).square() / (1 + steps)
    return {"regression": (error * is_known).sum() / is_known.sum().clamp_min(1)}
