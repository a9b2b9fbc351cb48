"""The report card of a representation: what Bengio's priors say of a good one (Bengio, Courville &
Vincent 2013, 3.1), each as one figure, beside a network that has learnt nothing and what is seen
itself. Levels above with states of their own are judged beside the lowest: depth.

Nothing is fitted to what is judged: read-outs are fitted on some walks and judged on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from math import sqrt
from typing import Any, NamedTuple, TypeAlias

import torch
from rich.table import Table
from torch import Tensor

from ami_agent import measures
from ami_agent.agent import Agent
from ami_agent.build import Config, build
from ami_agent.cares import shared
from ami_agent.changes import Change, seen_otherwise
from ami_agent.life import Examines
from ami_agent.probe import fit, spectrum, states_of
from ami_agent.report import table
from ami_agent.strolls import WORLDS, Line, Strolls, lines, strolls
from modules.types import Observation, by_sense

WIDEST = 256
"""Numbers that what is seen is projected to, where it has more (Johnson & Lindenstrauss 1984)."""

Eye: TypeAlias = Callable[[Observation], Tensor]
"""Observations `[N, *O]` -> what somebody makes of each, `[N, D]`."""


class Prior(NamedTuple):
    """One figure by who sees: the agent, the levels above, an agent that has learnt nothing, the
    senses alone; some can't be asked of all."""

    name: str
    told: str
    marks: Mapping[str, float]


class Alone(NamedTuple):
    """States `[N, D]` as one factor moves through `places` `[N]` and all others stay."""

    name: str
    states: Tensor
    places: Tensor


class Card(NamedTuple):
    """All that was found."""

    priors: Sequence[Prior]
    changes: Sequence[Prior]  # what changes of what is seen do
    ahead: Mapping[str, Mapping[int, float]]  # by level and steps of the body: error of what is
    # imagined so far ahead; 1: nothing is foreseen
    states: Tensor  # [N, D]: of the agent, on walks nothing was fitted to
    factors: Tensor  # [N, F]
    names: tuple[str, ...]  # of the factors
    alone: Sequence[Alone]
    grouped: Tensor  # [n, D + 1]: some of the states, and the group of each

    def tables(self) -> list[Table]:
        """Each prior, its figures and what they mean; and what changes do."""
        titled = {
            "what a good representation is like": self.priors,
            "when what is seen changes": self.changes,
        }
        return [_table(title, priors) for title, priors in titled.items()]

    def figures(self) -> dict[str, Any]:
        """For machines."""
        told = {p.name: dict(p.marks) for p in (*self.priors, *self.changes)}
        return {**told, "ahead": {who: dict(errors) for who, errors in self.ahead.items()}}


def _table(title: str, priors: Sequence[Prior]) -> Table:
    who = list(priors[0].marks)
    rows = [[p.name, *(p.marks.get(name, "") for name in who), p.told] for p in priors]
    drawn = table(title, ["", *who, ""], rows)
    drawn.columns[-1].justify = "left"
    return drawn


def card(agent: Agent, config: Config, seed: int, changes: Mapping[str, Change]) -> Card:
    """The figures of an agent in the world it is judged in; `changes`: of what is seen, by name."""
    known, unknown = (strolls(config.evaluation, seed + i) for i in (0, WORLDS))
    with closing(config.evaluation.build(1)) as world:
        names = tuple(world.inner.factor_names) if isinstance(world.inner, Examines) else ()
    drawn = lines(config.evaluation, unknown)
    alone = [Alone(names[d.factor], states_of(agent, d.obs), d.places) for d in drawn]
    true = unknown.factors.flatten(0, 1)
    varies = true.amax(0) - true.amin(0) > 1e-6  # the others are nothing to be known
    names = tuple(name for name, does in zip(names, varies.tolist(), strict=True) if does)
    known, unknown = (s._replace(factors=s.factors[..., varies]) for s in (known, unknown))
    otherwise = {
        name: (seen_otherwise(name, change, known.obs), seen_otherwise(name, change, unknown.obs))
        for name, change in changes.items()
    }
    for name, (_, obs) in otherwise.items():
        agent.check(f"observation after the change {name!r}", obs)
    new = build(config, agent.spec, seed=seed + 1, device=agent.device, worlds=1, capacity=8)
    sight: dict[str, Eye] = {
        "agent": _minded(agent),
        **{f"level {n}": _above(agent, rung.lift) for n, rung in enumerate(agent.hierarchy.rungs, 2)
           if rung.own},
        "untrained": _minded(new.eval()),
        "seen": partial(_plain, seed=seed),
    }  # fmt: skip
    marks = {who: _marks(eye, known, unknown, drawn) for who, eye in sight.items()}
    for who, mind in {"agent": agent, "untrained": new}.items():
        marks[who] |= shared(mind, unknown)
    changed = {
        who: dict(_changed(eye, known.obs, unknown.obs, otherwise)) for who, eye in sight.items()
    }
    states = states_of(agent, unknown.obs)
    return Card(
        _priors(marks), _priors(changed), foreseen(agent, states, unknown.actions), states,
        unknown.factors.flatten(0, 1), names, alone, measures.groups(states)[1],
    )  # fmt: skip


def _minded(agent: Agent) -> Eye:
    return partial(states_of, agent)


def _above(agent: Agent, lift: Callable[[Tensor], Tensor]) -> Eye:
    @torch.no_grad()
    def see(obs: Observation) -> Tensor:
        return lift(states_of(agent, obs).to(agent.device)).cpu()

    return see


def _plain(obs: Observation, seed: int) -> Tensor:
    """What is seen, as numbers `[N, D]`."""
    flat = torch.cat([part.flatten(1).float() for part in by_sense(obs).values()], 1)
    if flat.shape[1] <= WIDEST:
        return flat
    random = torch.Generator().manual_seed(seed)
    return flat @ torch.randn(flat.shape[1], WIDEST, generator=random) / sqrt(WIDEST)


def _priors(marks: Mapping[str, Mapping[str, float]]) -> list[Prior]:
    return [
        Prior(
            name,
            TOLD[name.rpartition(": ")[2]],
            {w: m[name] for w, m in marks.items() if name in m},
        )
        for name in marks["agent"]
    ]


TOLD = {
    "linear": "true factors read by a line, share of variance explained: 1 is all",
    "neighbours": "the same by nearest neighbours; far above linear: known, but folded",
    "smoothness": "states are as far apart as places are, rank correlation: 1 is always",
    "one factor": "directions the state moves in as one factor moves alone: 1 is a line",
    "slowness": "change in a step, share of all variance: small is slow",
    "sparsity": "few numbers stand out at a time (Hoyer): 0 all alike, 1 one alone",
    "dimensions": "effective rank: as many directions as matter",
    "groups": "states fall into groups (silhouette): 1 is clear, 0 not at all",
    "disentanglement": "a number tells of one factor alone (DCI): 1 is each",
    "completeness": "a factor is told by one number alone (DCI): 1 is each",
    "gap": "how much more the best number tells of a factor than the next (MIG)",
    "shared": "tasks care for the same directions of the state: 1 is all, 0 is none",
    "stays": "1: the state doesn't move; 0: as far as to any other",
    "follows": "1: a line tells what becomes of it",
}


def _marks(eye: Eye, walked: Strolls, judged: Strolls, drawn: Sequence[Line]) -> dict[str, float]:
    """Of walks that are fitted and walks that are judged; what needs factors is left out where
    there are none."""
    known, unknown, true = eye(walked.obs), eye(judged.obs), judged.factors
    found = {
        "slowness": measures.slowness(unknown.unflatten(0, true.shape[:2])),
        "sparsity": measures.sparsity(unknown),
        "dimensions": spectrum(unknown)["effective_rank"],
        "groups": measures.groups(unknown)[0],
    }
    if drawn:
        ranks = [spectrum(eye(line.obs))["effective_rank"] for line in drawn]
        found = {"one factor": sum(ranks) / len(ranks), **found}
    if not true.shape[-1]:
        return found
    taught, asked = walked.factors.flatten(0, 1), true.flatten(0, 1)
    probe = fit(known, taught)
    weight = probe.weight.abs() * unknown.std(0)[:, None] / asked.std(0).clamp_min(1e-9)
    return {
        "linear": measures.explained(probe.read(unknown), asked),
        "neighbours": measures.explained(measures.nearest(known, taught, unknown), asked),
        "smoothness": measures.smoothness(unknown, asked),
        **found,
        "disentanglement": measures.purity(weight),
        "completeness": measures.purity(weight.T),
        "gap": measures.gap(unknown, asked),
    }


def _changed(
    eye: Eye, walked: Observation, judged: Observation,
    otherwise: Mapping[str, tuple[Observation, Observation]],
) -> Iterator[tuple[str, float]]:  # fmt: skip
    """Invariance and equivariance, by change; `otherwise`: both, changed."""
    known, unknown = eye(walked), eye(judged)
    for name, (obs, asked) in otherwise.items():
        changed = eye(asked)
        yield f"{name}: stays", measures.sameness(unknown, changed)
        read = fit(known, eye(obs)).read(unknown)
        yield f"{name}: follows", measures.followed(read, changed)


@torch.no_grad()
def foreseen(agent: Agent, states: Tensor, actions: Tensor) -> dict[str, dict[int, float]]:
    """By level and by steps of the body the mean distance of what is imagined from what came, in
    units of how far states move in that time; states `[(T + 1) B, D]`, actions `[B, T, A]`."""
    came = states.unflatten(0, (-1, len(actions))).transpose(0, 1).to(agent.device)  # [B, T + 1, D]
    acts = actions.to(agent.device)
    future = agent.world_model.imagine(came[:, 0], acts[:, None]).states[:, 0]
    found = {"agent": _missed(future, came, 1)}
    for level, rung in enumerate(agent.hierarchy.rungs, 2):
        risen = rung.lift(came[:, :: rung.stride])
        found[f"level {level}"] = _missed(rung.foresee(risen[:, 0], acts), risen, rung.stride)
    return found


def _missed(future: Tensor, came: Tensor, stride: int) -> dict[int, float]:
    """Both `[B, N + 1, D]`."""
    missed = (future - came)[:, 1:].norm(dim=-1).mean(0)
    moved = (came[:, 1:] - came[:, :1]).norm(dim=-1).mean(0)
    share = (missed / moved.clamp_min(1e-9)).tolist()
    return {stride * step: error for step, error in enumerate(share, 1)}
