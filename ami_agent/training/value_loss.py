"""What the policy learns, and the critics of drives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.actor.planning.evaluator import safe_std
from modules.actor.planning.risk import EvaluatedRollouts
from modules.actor.policy import Policy
from modules.cost.cost import ValueCritics
from modules.cost.drives import Drives


def behaviour_cloning_loss(
    policy: Policy, state: Tensor, goal: Tensor, condition: Tensor, action: Tensor
) -> dict[str, Tensor]:
    """Imitation of Mode-2's first action `[B, A]`; states, goals `[B, D]`, the task `[B, W]`."""
    return {
        "bc": policy.action_space.imitation_loss(
            policy.pre_squash(state, goal, condition), action
        ).mean()
    }


def lambda_returns(
    cost: Tensor, next_values: Tensor, continues: Tensor, discount: float, td_lambda: float,
    terminal: Tensor | None = None, valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TD(lambda): what is still to come after each of T states, `[B, T, W]`, when `cost`
    `[B, T, W]` is felt on arrival at the next, which promises `ahead` `[B, T, W]`; that much only
    as life goes on, `lives` `[B, T]`, from 0 to 1 (Sutton & Barto 2018, 12.8). `terminal`: the
    value of an episode's end, `[W]`; 0 if not given. Where windows are padded, `valid` `[B, T]`,
    nothing is taken from beyond their last valid step."""
    discounts = continues.to(cost)[..., None] * discount
    if terminal is not None:
        cost = cost + (discount - discounts) * terminal
    bootstrap, returns = next_values[:, -1], []
    for step in reversed(range(cost.shape[1])):
        if valid is not None and step + 1 < cost.shape[1]:
            is_valid = valid[:, step + 1, None].to(cost.device)
            bootstrap = torch.where(is_valid, bootstrap, next_values[:, step])
        target = (1 - td_lambda) * next_values[:, step] + td_lambda * bootstrap
        bootstrap = cost[:, step] + discounts[:, step] * target
        returns.append(bootstrap)
    return torch.stack(returns[::-1], 1)


MAX_PRE_SQUASH = 2.5
"""Where an action that is bounded by tanh hardly moves any more: 99 % of the way."""


def actor_critic_loss(
    evaluated: EvaluatedRollouts, pre_squash: Tensor, drives: Drives, value_critics: ValueCritics, target_critics: nn.Module,
    td_lambda: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Of the policy's own futures `[B, 1, H, ..]`: their energy, in units of its own spread, or a
    task with large costs would take larger steps; how far its actions before they are bounded,
    `free` `[B, A]`, are out where nothing is learnt any more; and what the states promise, against
    what is felt from there on, weighed by the chance to be alive by then."""
    energy, rollout = evaluated.energy, evaluated.rollout
    with torch.no_grad():
        costs = drives(rollout.interoception).flatten(0, 1)  # [B, H, W]
        continues = drives.continue_prob(rollout.interoception).flatten(0, 1)  # [B, H]
        survival, _ = drives.survival(rollout.interoception.flatten(0, 1))
        states = rollout.states.detach().flatten(0, 1)  # [B, H + 1, D]
        returns = lambda_returns(
            costs,
            target_critics(states[:, 1:]),
            continues,
            value_critics.discount,
            td_lambda,
            value_critics.terminal,
        )
    error = (value_critics.all_values(states[:, :-1]) - returns) / value_critics.scale
    return {
        "energy": (energy / safe_std(energy)).mean(),
        "saturation": (pre_squash.abs() - MAX_PRE_SQUASH).relu().square().mean(),
        "value": (survival[..., None] * error.square()).mean(),
    }


CHOICE_TEMPERATURE = 0.2
"""Of the softmin over options, in standard deviations of their energies."""


def choice_loss(pre_squash: Tensor, energy: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Cross-entropy of the policy's logits `[B, A]` to the softmin of the energies `[B, A]` of all
    options, one choice of these sizes at a time (the improved policy of MPO, Abdolmaleki et al.
    2018, with every action listed). Its gradient does not vanish where the policy is sure of an
    option that the critic holds to be wrong, as that of straight-through probabilities does."""
    parts = energy.split(tuple(sizes), -1)
    advantage = torch.cat([part - part.mean(-1, keepdim=True) for part in parts], -1)
    unit = advantage.square().mean().sqrt().clamp_min(1e-30)
    losses = []
    for logits, gain in zip(pre_squash.split(sizes, -1), advantage.split(sizes, -1), strict=True):
        target = (-gain / (CHOICE_TEMPERATURE * unit)).softmax(-1)
        losses.append(-(target * logits.log_softmax(-1)).sum(-1))
    return {"choice": torch.stack(losses).sum(0).mean()}


def expectile_value_loss(predicted: Tensor, returns: Tensor, expectile: float) -> dict[str, Tensor]:
    """Regression on returns, each `[..., W]`. Memory was lived for other ends, so what came cheaper
    than expected counts `expectile` and what came dearer the rest (IQL, Kostrikov et al. 2022)."""
    error = returns - predicted
    weight = torch.where(error < 0, expectile, 1 - expectile)
    return {"value": (weight * error.square()).mean()}
