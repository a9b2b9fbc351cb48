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

from ami_agent.adapters.env import HasFactors
from ami_agent.agent import Agent
from ami_agent.config import Config, build
from ami_agent.logger import table
from ami_agent.probing import metrics
from ami_agent.probing.data import (
    NUM_ENVS,
    FactorLine,
    ProbeTrajectories,
    collect_trajectories,
    factor_lines,
)
from ami_agent.probing.perturbations import Perturbation, apply_perturbation
from ami_agent.probing.probe import fit_probe, spectrum, states_of
from ami_agent.probing.task_gradients import task_gradient_overlap
from modules.types import Observation, as_dict

MAX_PROJECTED = 256
"""Numbers that what is seen is projected to, where it has more (Johnson & Lindenstrauss 1984)."""

EncoderFn: TypeAlias = Callable[[Observation], Tensor]
"""Observations `[N, *O]` -> what somebody makes of each, `[N, D]`."""


class Criterion(NamedTuple):
    """One figure by who sees: the agent, the levels above, an agent that has learnt nothing, the
    senses alone; some can't be asked of all."""

    name: str
    description: str
    values: Mapping[str, float]


class FactorSweep(NamedTuple):
    """States `[N, D]` as one factor moves through `places` `[N]` and all others stay."""

    name: str
    states: Tensor
    factor_values: Tensor


class Scorecard(NamedTuple):
    """All that was found."""

    criteria: Sequence[Criterion]
    perturbations: Sequence[Criterion]  # what changes of what is seen do
    prediction_errors: Mapping[
        str, Mapping[int, float]
    ]  # by level and steps of the body: error of what is
    # imagined so far ahead; 1: nothing is foreseen
    states: Tensor  # [N, D]: of the agent, on walks nothing was fitted to
    factors: Tensor  # [N, F]
    names: tuple[str, ...]  # of the factors
    factor_sweeps: Sequence[FactorSweep]
    clustered: Tensor  # [n, D + 1]: some of the states, and the group of each

    def tables(self) -> list[Table]:
        """Each prior, its figures and what they mean; and what changes do."""
        titled = {
            "what a good representation is like": self.criteria,
            "when what is seen changes": self.perturbations,
        }
        return [_table(title, criteria) for title, criteria in titled.items()]

    def figures(self) -> dict[str, Any]:
        """For machines."""
        figures = {p.name: dict(p.values) for p in (*self.criteria, *self.perturbations)}
        return {
            **figures,
            "prediction_error": {
                who: dict(errors) for who, errors in self.prediction_errors.items()
            },
        }


def _table(title: str, criteria: Sequence[Criterion]) -> Table:
    encoders = list(criteria[0].values)
    rows = [
        [p.name, *(p.values.get(name, "") for name in encoders), p.description] for p in criteria
    ]
    rendered = table(title, ["", *encoders, ""], rows)
    rendered.columns[-1].justify = "left"
    return rendered


def compute_scorecard(
    agent: Agent, config: Config, seed: int, perturbations: Mapping[str, Perturbation]
) -> Scorecard:
    """The figures of an agent in the world it is judged in; `changes`: of what is seen, by name."""
    train_set, test_set = (collect_trajectories(config.eval_env, seed + i) for i in (0, NUM_ENVS))
    with closing(config.eval_env.build(1)) as env:
        names = tuple(env.unwrapped.factor_names) if isinstance(env.unwrapped, HasFactors) else ()
    swept_lines = factor_lines(config.eval_env, test_set)
    factor_sweeps = [
        FactorSweep(names[line.factor], states_of(agent, line.obs), line.factor_values)
        for line in swept_lines
    ]
    true_factors = test_set.factors.flatten(0, 1)
    is_varying = (
        true_factors.amax(0) - true_factors.amin(0) > 1e-6
    )  # the others are nothing to be known
    names = tuple(name for name, keeps in zip(names, is_varying.tolist(), strict=True) if keeps)
    train_set, test_set = (
        trajectories._replace(factors=trajectories.factors[..., is_varying])
        for trajectories in (train_set, test_set)
    )
    perturbed = {
        name: (
            apply_perturbation(name, change, train_set.obs),
            apply_perturbation(name, change, test_set.obs),
        )
        for name, change in perturbations.items()
    }
    for name, (_, obs) in perturbed.items():
        agent.check_obs(f"observation after the change {name!r}", obs)
    untrained = build(
        config, agent.spec, seed=seed + 1, device=agent.device, num_envs=1, buffer_size=8
    )
    encoders: dict[str, EncoderFn] = {
        "agent": _agent_encoder(agent),
        **{f"level {n}": _level_encoder(agent, rung.encode) for n, rung in enumerate(agent.subgoals.learned_levels, 2)
           if rung.has_own_states},
        "untrained": _agent_encoder(untrained.eval()),
        "observation": partial(_flatten_obs, seed=seed),
    }  # fmt: skip
    scores = {
        encoder_name: _score(encoder, train_set, test_set, swept_lines)
        for encoder_name, encoder in encoders.items()
    }
    for encoder_name, model in {"agent": agent, "untrained": untrained}.items():
        scores[encoder_name] |= task_gradient_overlap(model, test_set)
    perturbed_scores = {
        encoder_name: dict(_score_perturbations(encoder, train_set.obs, test_set.obs, perturbed))
        for encoder_name, encoder in encoders.items()
    }
    states = states_of(agent, test_set.obs)
    return Scorecard(
        _criteria(scores), _criteria(perturbed_scores), open_loop_error(agent, states, test_set.actions), states,
        test_set.factors.flatten(0, 1), names, factor_sweeps, metrics.cluster(states)[1],
    )  # fmt: skip


def _agent_encoder(agent: Agent) -> EncoderFn:
    return partial(states_of, agent)


def _level_encoder(agent: Agent, encode: Callable[[Tensor], Tensor]) -> EncoderFn:
    @torch.no_grad()
    def encode_level(obs: Observation) -> Tensor:
        return encode(states_of(agent, obs).to(agent.device)).cpu()

    return encode_level


def _flatten_obs(obs: Observation, seed: int) -> Tensor:
    """What is seen, as numbers `[N, D]`."""
    flat = torch.cat([part.flatten(1).float() for part in as_dict(obs).values()], 1)
    if flat.shape[1] <= MAX_PROJECTED:
        return flat
    random = torch.Generator().manual_seed(seed)
    return flat @ torch.randn(flat.shape[1], MAX_PROJECTED, generator=random) / sqrt(MAX_PROJECTED)


def _criteria(scores: Mapping[str, Mapping[str, float]]) -> list[Criterion]:
    return [
        Criterion(
            name,
            DESCRIPTIONS[name.rpartition(": ")[2]],
            {w: m[name] for w, m in scores.items() if name in m},
        )
        for name in scores["agent"]
    ]


DESCRIPTIONS = {
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
    "task_gradient_overlap": "tasks care for the same directions of the state: 1 is all, 0 is none",
    "stays": "1: the state doesn't move; 0: as far as to any other",
    "follows": "1: a line tells what becomes of it",
}


def _score(
    encoder: EncoderFn,
    train_set: ProbeTrajectories,
    test_set: ProbeTrajectories,
    factor_lines: Sequence[FactorLine],
) -> dict[str, float]:
    """Of walks that are fitted and walks that are judged; what needs factors is left out where
    there are none."""
    train_states, test_states, true_factors = (
        encoder(train_set.obs),
        encoder(test_set.obs),
        test_set.factors,
    )
    found = {
        "slowness": metrics.slowness(test_states.unflatten(0, true_factors.shape[:2])),
        "sparsity": metrics.sparsity(test_states),
        "dimensions": spectrum(test_states)["effective_rank"],
        "groups": metrics.cluster(test_states)[0],
    }
    if factor_lines:
        ranks = [spectrum(encoder(line.obs))["effective_rank"] for line in factor_lines]
        found = {"one factor": sum(ranks) / len(ranks), **found}
    if not true_factors.shape[-1]:
        return found
    train_factors, test_factors = train_set.factors.flatten(0, 1), true_factors.flatten(0, 1)
    probe = fit_probe(train_states, train_factors)
    weight = probe.weight.abs() * test_states.std(0)[:, None] / test_factors.std(0).clamp_min(1e-9)
    return {
        "linear": metrics.explained_variance(probe.read(test_states), test_factors),
        "neighbours": metrics.explained_variance(
            metrics.knn_read(train_states, train_factors, test_states), test_factors
        ),
        "smoothness": metrics.smoothness(test_states, test_factors),
        **found,
        "disentanglement": metrics.dci(weight),
        "completeness": metrics.dci(weight.T),
        "gap": metrics.mig(test_states, test_factors),
    }


def _score_perturbations(
    encoder: EncoderFn, train_obs: Observation, test_obs: Observation,
    perturbed: Mapping[str, tuple[Observation, Observation]],
) -> Iterator[tuple[str, float]]:  # fmt: skip
    """Invariance and equivariance, by change; `otherwise`: both, changed."""
    train_states, test_states = encoder(train_obs), encoder(test_obs)
    for name, (obs, perturbed_test) in perturbed.items():
        perturbed_states = encoder(perturbed_test)
        yield f"{name}: stays", metrics.invariance(test_states, perturbed_states)
        read = fit_probe(train_states, encoder(obs)).read(test_states)
        yield f"{name}: follows", metrics.equivariance(read, perturbed_states)


@torch.no_grad()
def open_loop_error(agent: Agent, states: Tensor, actions: Tensor) -> dict[str, dict[int, float]]:
    """By level and by steps of the body the mean distance of what is imagined from what came, in
    units of how far states move in that time; states `[(T + 1) B, D]`, actions `[B, T, A]`."""
    true_states = (
        states.unflatten(0, (-1, len(actions))).transpose(0, 1).to(agent.device)
    )  # [B, T + 1, D]
    device_actions = actions.to(agent.device)
    predicted = agent.world_model.imagine(true_states[:, 0], device_actions[:, None]).states[:, 0]
    found = {"agent": _relative_error(predicted, true_states, 1)}
    for level, level_info in enumerate(agent.subgoals.learned_levels, 2):
        level_states = level_info.encode(true_states[:, :: level_info.num_steps])
        found[f"level {level}"] = _relative_error(
            level_info.predict(level_states[:, 0], device_actions),
            level_states,
            level_info.num_steps,
        )
    return found


def _relative_error(
    predicted: Tensor, true_states: Tensor, steps_per_prediction: int
) -> dict[int, float]:
    """Both `[B, N + 1, D]`."""
    mean_error = (predicted - true_states)[:, 1:].norm(dim=-1).mean(0)
    displacement = (true_states[:, 1:] - true_states[:, :1]).norm(dim=-1).mean(0)
    ratio = (mean_error / displacement.clamp_min(1e-9)).tolist()
    return {steps_per_prediction * step: error for step, error in enumerate(ratio, 1)}
