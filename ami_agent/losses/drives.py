"""What the policy learns, and the critics of drives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.actor import Policy
from modules.cost import Foresight
from modules.drives import Drives
from modules.planners.common import spread_of
from modules.planners.outlook import Thought


def policy_loss(
    policy: Policy, state: Tensor, goal: Tensor, condition: Tensor, action: Tensor
) -> dict[str, Tensor]:
    """Imitation of Mode-2's first action `[B, A]`; states, goals `[B, D]`, the task `[B, W]`."""
    return {"imitation": policy.bounds.missed(policy.free(state, goal, condition), action).mean()}


def lambda_returns(
    cost: Tensor, ahead: Tensor, lives: Tensor, discount: float, trace: float,
    terminal: Tensor | None = None, valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TD(lambda): what is still to come after each of T states, `[B, T, W]`, when `cost`
    `[B, T, W]` is felt on arrival at the next, which promises `ahead` `[B, T, W]`; that much only
    as life goes on, `lives` `[B, T]`, from 0 to 1 (Sutton & Barto 2018, 12.8). `terminal`: the
    value of an episode's end, `[W]`; 0 if not given. Where windows are padded, `valid` `[B, T]`,
    nothing is taken from beyond their last valid step."""
    goes_on = lives.to(cost)[..., None] * discount
    if terminal is not None:
        cost = cost + (discount - goes_on) * terminal
    later, found = ahead[:, -1], []
    for step in reversed(range(cost.shape[1])):
        if valid is not None and step + 1 < cost.shape[1]:
            goes_beyond = valid[:, step + 1, None].to(cost.device)
            later = torch.where(goes_beyond, later, ahead[:, step])
        mixed = (1 - trace) * ahead[:, step] + trace * later
        later = cost[:, step] + goes_on[:, step] * mixed
        found.append(later)
    return torch.stack(found[::-1], 1)


SATURATED = 2.5
"""Where an action that is bounded by tanh hardly moves any more: 99 % of the way."""


def actor_critic_loss(
    thought: Thought, free: Tensor, drives: Drives, foresight: Foresight, slow: nn.Module,
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
        returns = lambda_returns(
            felt, slow(states[:, 1:]), lives, foresight.discount, trace, foresight.terminal
        )
    error = (foresight.every(states[:, :-1]) - returns) / foresight.scale
    return {
        "energy": (energy / spread_of(energy)).mean(),
        "excess": (free.abs() - SATURATED).relu().square().mean(),
        "foresight": (alive[..., None] * error.square()).mean(),
    }


CHOICE_TEMPERATURE = 0.2
"""Of the softmin over options, in standard deviations of their energies."""


def choice_loss(free: Tensor, energy: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Cross-entropy of the policy's logits `[B, A]` to the softmin of the energies `[B, A]` of all
    options, one choice of these sizes at a time (the improved policy of MPO, Abdolmaleki et al.
    2018, with every action listed). Its gradient does not vanish where the policy is sure of an
    option that the critic holds to be wrong, as that of straight-through probabilities does."""
    parts = energy.split(tuple(sizes), -1)
    advantage = torch.cat([part - part.mean(-1, keepdim=True) for part in parts], -1)
    unit = advantage.square().mean().sqrt().clamp_min(1e-30)
    losses = []
    for logits, gain in zip(free.split(sizes, -1), advantage.split(sizes, -1), strict=True):
        target = (-gain / (CHOICE_TEMPERATURE * unit)).softmax(-1)
        losses.append(-(target * logits.log_softmax(-1)).sum(-1))
    return {"choice": torch.stack(losses).sum(0).mean()}


def foresight_loss(predicted: Tensor, returns: Tensor, expectile: float) -> dict[str, Tensor]:
    """Regression on returns, each `[..., W]`. Memory was lived for other ends, so what came cheaper
    than expected counts `expectile` and what came dearer the rest (IQL, Kostrikov et al. 2022)."""
    error = returns - predicted
    weight = torch.where(error < 0, expectile, 1 - expectile)
    return {"foresight": (weight * error.square()).mean()}
