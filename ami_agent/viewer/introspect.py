"""Figures of a planning step: the energies during the search, the energy of each imagined step, the
critic's value of the current state and, afterwards, the prediction error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from modules.actor.planning.risk import EvaluatedRollouts
from modules.types import Plan, Rollout, TaskContext

STEPS_TO_GO = "steps to go"
"""The unit of the goal critic."""


@contextmanager
def record_search(agent: Agent) -> Iterator[list[Tensor]]:
    """Collects the energies `[N, P]` of every batch of rollouts that the planner evaluates; N is B,
    or the number of environments that plan."""
    evaluations: list[Tensor] = []

    def record(evaluated: EvaluatedRollouts) -> None:
        evaluations.append(evaluated.energy.detach())

    agent.evaluator.callbacks.append(record)
    try:
        yield evaluations
    finally:
        agent.evaluator.callbacks.remove(record)


def best_so_far(evaluations: Sequence[Tensor], plan: Plan) -> list[np.ndarray]:
    """For each of B environments the lowest energy so far after each evaluation; environments that
    did not plan have one evaluation at most."""
    num_envs = len(plan.energy)
    planned_envs = plan.planned.nonzero().squeeze(1).tolist()
    energies_by_env: list[list[float]] = [[] for _ in range(num_envs)]
    for evaluation in evaluations:
        lowest = evaluation.amin(1).tolist()
        env_ids = range(num_envs) if len(lowest) == num_envs else planned_envs
        for env_id, energy in zip(env_ids, lowest, strict=False):
            energies_by_env[env_id].append(energy)
    return [
        np.minimum.accumulate(energies) if energies else np.empty(0) for energies in energies_by_env
    ]


@torch.no_grad()
def per_step_energy(agent: Agent, plan: Plan, context: TaskContext) -> dict[str, np.ndarray]:
    """The energy of every single imagined step of the plan, by term, each `[B, H]`; empty where
    nothing was imagined."""
    starts, ends = plan.states[:, :-1], plan.states[:, 1:]
    if not plan.terms or not starts.shape[1]:
        return {}
    terms = _step_energies(agent, starts, ends, plan.actions[:, : starts.shape[1]], context)
    return {name: term.cpu().numpy() for name, term in terms.items()}


@torch.no_grad()
def critic_value(agent: Agent, states: Tensor, context: TaskContext) -> np.ndarray:
    """The weighted sum `[N]` of the critics that the context uses, for staying in states `[N, D]`;
    `critic_unit` is its unit."""
    weights = {name: weight for name, weight in context.weights.items() if "critic" in name}
    rest = states.new_zeros(len(states), 1, agent.spec.action_dim)
    critics_only = context._replace(weights=weights, limits={})
    terms = _step_energies(agent, states[:, None], states[:, None], rest, critics_only)
    return sum(terms.values(), rest.sum(-1))[:, 0].cpu().numpy()


def _step_energies(
    agent: Agent, starts: Tensor, ends: Tensor, actions: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    """Steps from states to states `[B, N, D]` by actions `[B, N, A]`, each a rollout of its own ->
    weighted energies by term, each `[B, N]`."""
    start, end, actions_expanded = starts[:, :, None], ends[:, :, None], actions[:, :, None]
    rollout = Rollout(
        states=torch.cat([start, end], 2),
        actions=actions_expanded,
        latents=actions_expanded[..., :0],
        interoception=agent.world_model.interoception_head.predict(start, actions_expanded, end),
    )
    return agent.cost(rollout, context)


def critic_unit(context: TaskContext) -> str:
    """The unit of `critic_value`; empty where no critic has a weight."""
    critics = [name for name, weight in context.weights.items() if "critic" in name and weight]
    if not critics:
        return ""
    return STEPS_TO_GO if critics == ["critic"] else "cost to come"


class PredictionError(NamedTuple):
    """The distance from imagined to actual states, divided by the mean distance that states move in
    that many steps: 0 is exact, 1 no better than predicting no change. NaN beyond the end of the
    episode."""

    by_horizon: np.ndarray  # [H]: k = 1..H steps ahead, mean over the episode
    by_step: np.ndarray  # [N]: of the plan of each recorded step, mean over k


def prediction_error(
    futures: Sequence[np.ndarray], steps: Sequence[int], states: np.ndarray
) -> PredictionError:
    """Imagined states, each `[H + 1, D]`, of the plans at some steps of an episode with the states
    `[T, D]`; H is less where the rest of an earlier plan is executed."""
    horizon = max(len(future) for future in futures) - 1
    errors, displacements = np.full((2, len(futures), horizon), np.nan)
    for n, (future, step) in enumerate(zip(futures, steps, strict=True)):
        actual = states[step + 1 : step + len(future)]  # [k, D]
        errors[n, : len(actual)] = np.linalg.norm(future[1 : 1 + len(actual)] - actual, axis=-1)
        displacements[n, : len(actual)] = np.linalg.norm(actual - states[step], axis=-1)
    displacement_by_step = mean_of(displacements, 0)
    relative_errors = errors / np.where(displacement_by_step > 0, displacement_by_step, np.nan)
    return PredictionError(mean_of(relative_errors, 0), mean_of(relative_errors, 1))


def mean_of(numbers: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the finite numbers; NaN where there are none."""
    finite = np.isfinite(numbers)
    count = finite.sum(axis)
    total = np.where(finite, numbers, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
