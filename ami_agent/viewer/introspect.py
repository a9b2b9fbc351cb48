"""What there is to tell of one thought: how it went, what each imagined step would cost, what the
critics say of the present, and, when time has passed, how much of it came true."""

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
"""What a critic of the goal alone counts."""


@contextmanager
def record_search(agent: Agent) -> Iterator[list[Tensor]]:
    """While somebody thinks: the energies `[N, P]` of all that is compared, look by look. The
    planners need not know that anybody listens."""
    evaluations: list[Tensor] = []

    def record(evaluated: EvaluatedRollouts) -> None:
        evaluations.append(evaluated.energy.detach())

    agent.evaluator.callbacks.append(record)
    try:
        yield evaluations
    finally:
        agent.evaluator.callbacks.remove(record)


def best_so_far(evaluations: Sequence[Tensor], plan: Plan) -> list[np.ndarray]:
    """For each of B worlds the lowest energy that was known after each look at futures of it; who
    didn't deliberate looked at most once."""
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
    """What every imagined step of the chosen future by itself would cost, by name, each `[B, H]`;
    nothing where nothing was imagined."""
    starts, ends = plan.states[:, :-1], plan.states[:, 1:]
    if not plan.terms or not starts.shape[1]:
        return {}
    terms = _step_energies(agent, starts, ends, plan.actions[:, : starts.shape[1]], context)
    return {name: term.cpu().numpy() for name, term in terms.items()}


@torch.no_grad()
def critic_value(agent: Agent, states: Tensor, context: TaskContext) -> np.ndarray:
    """What the critics that this focus weighs say of resting in states `[N, D]`: `[N]`; in its
    `unit`."""
    weights = {name: weight for name, weight in context.weights.items() if "critic" in name}
    rest = states.new_zeros(len(states), 1, agent.spec.action_dim)
    resting = states[:, None]
    terms = _step_energies(
        agent, resting, resting, rest, context._replace(weights=weights, limits={})
    )
    return sum(terms.values(), rest.sum(-1))[:, 0].cpu().numpy()


def _step_energies(
    agent: Agent, starts: Tensor, ends: Tensor, actions: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    """Steps from states to states `[B, N, D]`, by actions `[B, N, A]`, each as a future of its
    own -> weighted energies by name, each `[B, N]`."""
    start, end, actions_expanded = starts[:, :, None], ends[:, :, None], actions[:, :, None]
    rollout = Rollout(
        states=torch.cat([start, end], 2),
        actions=actions_expanded,
        latents=actions_expanded[..., :0],
        interoception=agent.world_model.interoception_head.predict(start, actions_expanded, end),
    )
    return agent.cost(rollout, context)


def critic_unit(context: TaskContext) -> str:
    """Of what `critic` says; empty where no critic has a weight."""
    critics = [name for name, weight in context.weights.items() if "critic" in name and weight]
    if not critics:
        return ""
    return STEPS_TO_GO if critics == ["critic"] else "cost to come"


class PredictionError(NamedTuple):
    """How far what was imagined was from what came, as a share of how far states move in that
    time: 0 is foreseen exactly, 1 no better than to imagine that nothing moves. NaN where nothing
    came any more."""

    by_horizon: np.ndarray  # [H]: imagined k = 1..H steps ahead, mean over the life
    by_step: np.ndarray  # [N]: mean over k of what was imagined at each moment


def prediction_error(
    futures: Sequence[np.ndarray], steps: Sequence[int], states: np.ndarray
) -> PredictionError:
    """Futures, each `[H + 1, D]`, imagined at some steps of a life of states `[T, D]`; H is less
    where the rest of an earlier plan is carried out."""
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
    """The mean of those that are not NaN; NaN where all are."""
    finite = np.isfinite(numbers)
    count = finite.sum(axis)
    total = np.where(finite, numbers, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
