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
from modules.planners.outlook import Thought
from modules.types import Focus, Plan, Rollout

TO_GO = "steps to go"
"""What a critic of the goal alone counts."""


@contextmanager
def overheard(agent: Agent) -> Iterator[list[Tensor]]:
    """While somebody thinks: the energies `[N, P]` of all that is compared, look by look. The
    planners need not know that anybody listens."""
    looks: list[Tensor] = []

    def listen(thought: Thought) -> None:
        looks.append(thought.energy.detach())

    agent.eye.listeners.append(listen)
    try:
        yield looks
    finally:
        agent.eye.listeners.remove(listen)


def falling(looks: Sequence[Tensor], plan: Plan) -> list[np.ndarray]:
    """For each of B worlds the lowest energy that was known after each look at futures of it; who
    didn't deliberate looked at most once."""
    worlds = len(plan.energy)
    thinking = plan.deliberated.nonzero().squeeze(1).tolist()
    heard: list[list[float]] = [[] for _ in range(worlds)]
    for look in looks:
        lowest = look.amin(1).tolist()
        those = range(worlds) if len(lowest) == worlds else thinking
        for world, energy in zip(those, lowest, strict=False):
            heard[world].append(energy)
    return [np.minimum.accumulate(each) if each else np.empty(0) for each in heard]


@torch.no_grad()
def stepwise(agent: Agent, plan: Plan, focus: Focus) -> dict[str, np.ndarray]:
    """What every imagined step of the chosen future by itself would cost, by name, each `[B, H]`;
    nothing where nothing was imagined."""
    before, after = plan.states[:, :-1], plan.states[:, 1:]
    if not plan.terms or not before.shape[1]:
        return {}
    terms = _priced(agent, before, after, plan.actions[:, : before.shape[1]], focus)
    return {name: term.cpu().numpy() for name, term in terms.items()}


@torch.no_grad()
def critic(agent: Agent, states: Tensor, focus: Focus) -> np.ndarray:
    """What the critics that this focus weighs say of resting in states `[N, D]`: `[N]`; in its
    `unit`."""
    weights = {name: weight for name, weight in focus.weights.items() if "critic" in name}
    rest = states.new_zeros(len(states), 1, agent.spec.action_dim)
    here = states[:, None]
    terms = _priced(agent, here, here, rest, focus._replace(weights=weights, limits={}))
    return sum(terms.values(), rest.sum(-1))[:, 0].cpu().numpy()


def _priced(
    agent: Agent, before: Tensor, after: Tensor, actions: Tensor, focus: Focus
) -> dict[str, Tensor]:
    """Steps from states to states `[B, N, D]`, by actions `[B, N, A]`, each as a future of its
    own -> weighted energies by name, each `[B, N]`."""
    start, end, acts = before[:, :, None], after[:, :, None], actions[:, :, None]
    rollout = Rollout(
        states=torch.cat([start, end], 2),
        actions=acts,
        latents=acts[..., :0],
        interoception=agent.world_model.feeling.of(start, acts, end),
    )
    return agent.cost(rollout, focus)


def unit(focus: Focus) -> str:
    """Of what `critic` says; empty where no critic has a weight."""
    critics = [name for name, weight in focus.weights.items() if "critic" in name and weight]
    if not critics:
        return ""
    return TO_GO if critics == ["critic"] else "cost to come"


class CameTrue(NamedTuple):
    """How far what was imagined was from what came, as a share of how far states move in that
    time: 0 is foreseen exactly, 1 no better than to imagine that nothing moves. NaN where nothing
    came any more."""

    ahead: np.ndarray  # [H]: imagined k = 1..H steps ahead, mean over the life
    over_time: np.ndarray  # [N]: mean over k of what was imagined at each moment


def came_true(futures: Sequence[np.ndarray], steps: Sequence[int], states: np.ndarray) -> CameTrue:
    """Futures, each `[H + 1, D]`, imagined at some steps of a life of states `[T, D]`; H is less
    where the rest of an earlier plan is carried out."""
    horizon = max(len(future) for future in futures) - 1
    missed, moved = np.full((2, len(futures), horizon), np.nan)
    for n, (future, step) in enumerate(zip(futures, steps, strict=True)):
        came = states[step + 1 : step + len(future)]  # [k, D]
        missed[n, : len(came)] = np.linalg.norm(future[1 : 1 + len(came)] - came, axis=-1)
        moved[n, : len(came)] = np.linalg.norm(came - states[step], axis=-1)
    by_k = mean_of(moved, 0)
    share = missed / np.where(by_k > 0, by_k, np.nan)
    return CameTrue(mean_of(share, 0), mean_of(share, 1))


def mean_of(numbers: np.ndarray, axis: int) -> np.ndarray:
    """The mean of those that are not NaN; NaN where all are."""
    known = np.isfinite(numbers)
    count = known.sum(axis)
    total = np.where(known, numbers, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
