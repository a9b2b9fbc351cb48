"""The report card of a representation: what Bengio's priors say of a good one (Bengio, Courville &
Vincent 2013, 3.1), each as one figure, beside a network that has learnt nothing and what is seen
itself.

Nothing is fitted to what is judged: read-outs are fitted on some walks and judged on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.build import Config, build
from ami_agent.guard import undisturbed
from ami_agent.life import Examines, World, WorldConfig, ended, live, seen, walk
from ami_agent.measures import (
    explained,
    gap,
    nearest,
    purity,
    slowness,
    smoothness,
    sparsity,
)
from ami_agent.probe import fit, joined, spectrum, states_of
from ami_agent.report import table
from modules.types import Observation, by_sense

WORLDS, STEPS = 128, 12
WIDEST = 256
"""Numbers that what is seen is projected to, where it has more (Johnson & Lindenstrauss 1984)."""


class Strolls(NamedTuple):
    """Walks of T steps through B worlds in which no episode ended meanwhile."""

    obs: Observation  # [(T + 1) B, *O], moment by moment
    factors: Tensor  # [T + 1, B, F]; F is 0 where the world doesn't say
    actions: Tensor  # [B, T, A]


class Prior(NamedTuple):
    """One figure by who sees: the agent, an agent that has learnt nothing, the senses alone."""

    name: str
    told: str
    marks: Mapping[str, float]


class Card(NamedTuple):
    """All that was found."""

    priors: Sequence[Prior]
    ahead: Sequence[float]  # [T]: error of what is imagined k steps ahead; 1: nothing is foreseen
    states: Tensor  # [N, D]: of the agent, on walks nothing was fitted to
    factors: Tensor  # [N, F]
    names: tuple[str, ...]  # of the factors

    def table(self) -> Table:
        """Each prior, its figures and what they mean."""
        rows = [[p.name, *p.marks.values(), p.told] for p in self.priors]
        return table("what a good representation is like", ["", *self.priors[0].marks, ""], rows)

    def figures(self) -> dict[str, Any]:
        """For machines."""
        return {**{p.name: dict(p.marks) for p in self.priors}, "ahead": list(self.ahead)}


def strolls(config: WorldConfig, seed: int) -> Strolls:
    """What is seen on walks of worlds `seed` and on."""
    with closing(config.build(WORLDS)) as world:
        return undisturbed(partial(_strolls, world, seed))


def _strolls(world: World, seed: int) -> Strolls:
    obs, info = world.reset(seed)
    views, actions = [obs], []
    factors = [_factors(info, world)]
    whole = torch.ones(world.count, dtype=torch.bool)
    for lived in islice(live(walk(world), world, obs), STEPS):
        views.append(seen(lived))
        actions.append(lived.transition.action)
        factors.append(_factors(lived.info, world))
        whole &= ~ended(lived).cpu()
    if not whole.any():
        whole[:] = True  # lives shorter than that: resets are seen as steps
    kept = whole.repeat(STEPS + 1).nonzero()[:, 0]
    parts = {name: part[kept] for name, part in by_sense(joined(views)).items()}
    return Strolls(
        parts["obs"] if isinstance(obs, Tensor) else parts,
        torch.stack(factors)[:, whole], torch.stack(actions, 1)[whole],
    )  # fmt: skip


def _factors(info: Mapping[str, Any], world: World) -> Tensor:
    if not isinstance(world.inner, Examines):
        return torch.empty(world.count, 0)
    return world.tensor(info["factors"]).float().cpu()


def card(agent: Agent, config: Config, seed: int) -> Card:
    """The figures of an agent in the world it is judged in."""
    known, unknown = (strolls(config.evaluation, seed + i) for i in (0, WORLDS))
    with closing(config.evaluation.build(1)) as world:
        names = tuple(world.inner.factor_names) if isinstance(world.inner, Examines) else ()
    true = unknown.factors.flatten(0, 1)
    varies = true.amax(0) - true.amin(0) > 1e-6  # the others are nothing to be known
    names = tuple(name for name, does in zip(names, varies.tolist(), strict=True) if does)
    known, unknown = (s._replace(factors=s.factors[..., varies]) for s in (known, unknown))
    new = build(config, agent.spec, seed=seed + 1, device=agent.device, worlds=1, capacity=8)
    eyes = {
        "agent": partial(states_of, agent),
        "untrained": partial(states_of, new.eval()),
        "seen": partial(_plain, seed=seed),
    }
    marks = {
        who: _marks(eye(known.obs), eye(unknown.obs), known.factors, unknown.factors)
        for who, eye in eyes.items()
    }
    priors = [
        Prior(name, TOLD[name], {who: marks[who][name] for who in eyes}) for name in marks["agent"]
    ]
    states = states_of(agent, unknown.obs)
    ahead = foreseen(agent, states, unknown.actions)
    return Card(priors, ahead, states, unknown.factors.flatten(0, 1), names)


@torch.no_grad()
def foreseen(agent: Agent, states: Tensor, actions: Tensor) -> list[float]:
    """For k = 1..T the mean distance of what is imagined from what came, in units of how far states
    move in that time."""
    came = states.unflatten(0, (-1, len(actions))).transpose(0, 1)  # [B, T + 1, D]
    start = came[:, 0].to(agent.device)
    future = agent.world_model.imagine(start, actions[:, None].to(agent.device)).states[:, 0].cpu()
    missed = (future - came)[:, 1:].norm(dim=-1).mean(0)
    moved = (came[:, 1:] - came[:, :1]).norm(dim=-1).mean(0)
    return (missed / moved.clamp_min(1e-9)).tolist()


TOLD = {
    "linear": "true factors read by a line, share of variance explained: 1 is all",
    "neighbours": "the same by nearest neighbours; far above linear: known, but folded",
    "smoothness": "states are as far apart as places are, rank correlation: 1 is always",
    "slowness": "change in a step, share of all variance: small is slow",
    "sparsity": "few numbers stand out at a time (Hoyer): 0 all alike, 1 one alone",
    "dimensions": "effective rank: as many directions as matter",
    "disentanglement": "a number tells of one factor alone (DCI): 1 is each",
    "completeness": "a factor is told by one number alone (DCI): 1 is each",
    "gap": "how much more the best number tells of a factor than the next (MIG)",
}


def _plain(obs: Observation, seed: int) -> Tensor:
    """What is seen, as numbers `[N, D]`."""
    flat = torch.cat([part.flatten(1).float() for part in by_sense(obs).values()], 1)
    if flat.shape[1] <= WIDEST:
        return flat
    random = torch.Generator().manual_seed(seed)
    return flat @ torch.randn(flat.shape[1], WIDEST, generator=random) / sqrt(WIDEST)


def _marks(
    known: Tensor, unknown: Tensor, truth: Tensor, true: Tensor
) -> dict[str, float]:  # fmt: skip
    """States `[N, D]` of walks that are fitted and of walks that are judged, and their factors
    `[T + 1, B, F]`; what needs factors is left out where there are none."""
    found = {
        "slowness": slowness(unknown.unflatten(0, true.shape[:2])),
        "sparsity": sparsity(unknown),
        "dimensions": spectrum(unknown)["effective_rank"],
    }
    if not true.shape[-1]:
        return found
    taught, asked = truth.flatten(0, 1), true.flatten(0, 1)
    probe = fit(known, taught)
    weight = probe.weight.abs() * unknown.std(0)[:, None] / asked.std(0).clamp_min(1e-9)
    return {
        "linear": explained(probe.read(unknown), asked),
        "neighbours": explained(nearest(known, taught, unknown), asked),
        "smoothness": smoothness(unknown, asked),
        **found,
        "disentanglement": purity(weight),
        "completeness": purity(weight.T),
        "gap": gap(unknown, asked),
    }
