"""The scorecard of a representation: one metric for each general prior of representation learning
(Bengio, Courville & Vincent 2013, section 3.1), for the agent, an untrained agent, and the
observations themselves. Levels above with states of their own have a column each.

Probes are fitted on one set of trajectories and evaluated on another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from rich.table import Table
from torch import Tensor

from ami_agent.adapters.env import HasFactors
from ami_agent.agent import Agent
from ami_agent.config import Config, build
from ami_agent.logger import table
from ami_agent.probing import data, metrics
from ami_agent.probing.data import FactorLine, ProbeTrajectories
from ami_agent.probing.energies import NextStateEnergy, energy_curve
from ami_agent.probing.probe import fit_probe, spectrum, states_of
from modules.actor.subgoals import LevelInfo
from modules.configurator import TaskSpec
from modules.types import Observation, as_dict, tree_map

MAX_PROJECTED = 256  # dimensions of larger observations' projection (Johnson & Lindenstrauss 1984)

BASELINES = {"untrained": "an untrained network", "observation": "the raw observation"}
MIN_DIFFERENCE = 0.02  # relative, of two figures of which one is called worse
NO_BETTER = 0.95
"""Relative error from which a prediction counts as no better than predicting no change."""

EncoderFn: TypeAlias = Callable[[Observation], Tensor]
"""Observations `[N, *O]` -> their representation `[N, D]`."""
Metrics: TypeAlias = Mapping[str, Mapping[str, float]]
"""By metric and by encoder: the agent, the levels above, an untrained agent, and the observations;
not every metric applies to all."""
FactorSweep: TypeAlias = tuple[Tensor, Tensor]
"""States `[N, D]` while one factor takes these values `[N]` and all others are constant."""


class Scorecard(NamedTuple):
    """The metrics of an agent's representation, and the states that its picture shows."""

    metrics: Metrics
    perturbations: Metrics  # invariance and equivariance, for each perturbation
    # by level and environment steps ahead; 1: no better than predicting no change
    prediction_errors: Mapping[str, Mapping[int, float]]
    states: Tensor  # [N, D]: of the agent, on the test set
    factors: Tensor  # [N, F]
    names: tuple[str, ...]  # of the factors
    factor_sweeps: Mapping[str, Sequence[FactorSweep]]  # by the name of the factor
    clustered: Tensor  # [n, D + 1]: some of the states, and the group of each
    # of true and of perturbed next states, by name: the energy and the fraction above the true one
    energies: Mapping[str, NextStateEnergy]

    def tables(self) -> list[Table]:
        """The metrics, and those of the perturbations, each with its meaning; and the energies."""
        return [
            _table("metrics of the representation", self.metrics),
            _table("under perturbations of the observations", self.perturbations),
            table(
                "energy of next states",
                ["next state", "energy (1: no change predicted)", "fraction above the true one"],
                [[name, *values] for name, values in self.energies.items()],
            ),
        ]

    def remarks(self) -> list[str]:
        """Where the agent's states are worse than the baselines, and whether its predictions are no
        better than predicting no change; a sentence each."""
        remarks = []
        for baseline, article in BASELINES.items():
            worse = [
                f"{measure_of(name).label} {values['agent']:.3g} ({values[baseline]:.3g})"
                for name, values in {**self.metrics, **self.perturbations}.items()
                if baseline in values and is_worse(name, values["agent"], values[baseline])
            ]
            if worse:
                remarks.append(f"worse than {article}: {', '.join(worse)}")
        for level, by_step in self.prediction_errors.items():
            (first, error), *_ = steps = list(by_step.items())
            last, last_error = steps[-1]
            no_better = sum(by_step.values()) / len(by_step) >= NO_BETTER
            opening = f"{level} predicts no better than 'nothing changes'" if no_better else level
            remarks.append(
                f"{opening}: the relative open-loop error is {error:.2g} at {first} and "
                f"{last_error:.2g} at {last} steps ahead, and that of predicting no change is 1"
            )
        return remarks

    def figures(self) -> dict[str, Any]:
        """The metrics as plain data."""
        return {
            **self.metrics,
            **self.perturbations,
            "prediction_error": self.prediction_errors,
            "energies": {name: values._asdict() for name, values in self.energies.items()},
        }


def _table(title: str, by_metric: Metrics) -> Table:
    encoders = list(next(iter(by_metric.values())))
    rows = []
    for name, values in by_metric.items():
        measure = measure_of(name)
        texts = filter(None, (measure.direction, measure.unit, measure.meaning))
        rows.append([measure.label, *(values.get(e, "") for e in encoders), "; ".join(texts)])
    rendered = table(title, ["", *encoders, ""], rows)
    rendered.columns[-1].justify = "left"
    return rendered


def compute_scorecard(
    agent: Agent, config: Config, seed: int, perturbations: Mapping[str, data.Perturbation]
) -> Scorecard:
    """The scorecard of an agent in its evaluation environment; `perturbations`: by name."""
    seeds = seed, seed + data.NUM_ENVS
    train_set, test_set = (data.collect_trajectories(config.eval_env, first) for first in seeds)
    with closing(config.eval_env.build(1)) as env:
        names = tuple(env.unwrapped.factor_names) if isinstance(env.unwrapped, HasFactors) else ()
    swept_lines = data.factor_lines(config.eval_env, test_set)
    factor_sweeps: dict[str, list[FactorSweep]] = defaultdict(list)
    for line in swept_lines:
        sweep = states_of(agent, line.obs), line.factor_values
        factor_sweeps[names[line.factor]].append(sweep)
    true_factors = test_set.factors.flatten(0, 1)
    is_varying = true_factors.amax(0) - true_factors.amin(0) > 1e-6
    names = tuple(name for name, varies in zip(names, is_varying.tolist(), strict=True) if varies)
    train_set, test_set = (
        trajectories._replace(factors=trajectories.factors[..., is_varying])
        for trajectories in (train_set, test_set)
    )
    perturbed = {
        name: [data.apply_perturbation(name, fn, part.obs) for part in (train_set, test_set)]
        for name, fn in perturbations.items()
    }
    untrained = build(
        config, agent.spec, seed=seed + 1, device=agent.device, num_envs=1, buffer_size=8
    )
    encoders: dict[str, EncoderFn] = {
        "agent": partial(states_of, agent),
        **{
            f"level {n}": partial(_level_states, agent, level.encode)
            for n, level in enumerate(_learned_levels(agent), 2)
            if level.has_own_states
        },
        "untrained": partial(states_of, untrained.eval()),
        "observation": partial(flatten_obs, seed=seed),
    }
    scores, perturbed_scores = {}, {}
    for name, encoder in encoders.items():
        scores[name] = _score(encoder, train_set, test_set, swept_lines)
        found = _score_perturbations(encoder, train_set.obs, test_set.obs, perturbed)
        perturbed_scores[name] = dict(found)
    for name, model in {"agent": agent, "untrained": untrained}.items():
        scores[name] |= task_gradient_overlap(model, test_set)
    states = states_of(agent, test_set.obs)
    return Scorecard(
        metrics=_by_metric(scores),
        perturbations=_by_metric(perturbed_scores),
        prediction_errors=open_loop_error(agent, states, test_set.actions),
        states=states,
        factors=test_set.factors.flatten(0, 1),
        names=names,
        factor_sweeps=factor_sweeps,
        clustered=metrics.cluster(states)[1],
        energies=energy_curve(agent, states, test_set.actions),
    )


def _learned_levels(agent: Agent) -> Sequence[LevelInfo]:
    return () if agent.subgoals is None else agent.subgoals.learned_levels


@torch.no_grad()
def _level_states(agent: Agent, encode: Callable[[Tensor], Tensor], obs: Observation) -> Tensor:
    return encode(states_of(agent, obs).to(agent.device)).cpu()


def flatten_obs(obs: Observation, seed: int) -> Tensor:
    """Observations as vectors `[N, D]`."""
    flat = torch.cat([part.flatten(1).float() for part in as_dict(obs).values()], 1)
    if flat.shape[1] <= MAX_PROJECTED:
        return flat
    random = torch.Generator().manual_seed(seed)
    return flat @ torch.randn(flat.shape[1], MAX_PROJECTED, generator=random) / sqrt(MAX_PROJECTED)


def _by_metric(scores: Mapping[str, Mapping[str, float]]) -> Metrics:
    """Scores by encoder and metric -> by metric and encoder."""
    return {
        name: {encoder: values[name] for encoder, values in scores.items() if name in values}
        for name in scores["agent"]
    }


class Measure(NamedTuple):
    """How a metric is called in tables, pictures and documentation."""

    label: str
    unit: str
    better: Literal["higher", "lower", ""]  # the better direction; empty where neither is
    meaning: str

    @property
    def direction(self) -> str:
        """The better direction in words; empty where neither is."""
        return f"{self.better} is better" if self.better else ""


MEASURES: Mapping[str, Measure] = {
    "linear": Measure(
        "linear probe", "fraction of variance", "higher",
        "variance of the true factors that a linear map of the states explains, at most 1",
    ),
    "neighbours": Measure(
        "nearest neighbours", "fraction of variance", "higher",
        "the same by nearest neighbours; far above: encoded nonlinearly",
    ),
    "smoothness": Measure(
        "smoothness", "rank correlation", "higher",
        "of distances between states and between factors, at most 1",
    ),
    "one factor": Measure(
        "directions per factor", "effective rank", "lower",
        "of the states while one factor varies alone: 1 is a line",
    ),
    "slowness": Measure(
        "change in a step", "fraction of variance", "lower",
        "squared change over twice the variance: 1 is that of random states",
    ),
    "sparsity": Measure(
        "sparsity", "Hoyer's measure", "", "0 all dimensions alike, 1 a single one active",
    ),
    "dimensions": Measure(
        "effective rank", "directions", "", "in which the states vary; near 1 they have collapsed",
    ),
    "groups": Measure(
        "clusters", "silhouette", "", "how clearly states form clusters: 1 clear, 0 none",
    ),
    "disentanglement": Measure(
        "disentanglement", "DCI", "higher",
        "each dimension informs about one factor alone: 1 is all",
    ),
    "completeness": Measure(
        "completeness", "DCI", "higher",
        "each factor is encoded in one dimension alone: 1 is all",
    ),
    "gap": Measure(
        "information gap", "MIG", "higher",
        "mutual information with a factor: the best dimension's less the second best's",
    ),
    "task_gradient_overlap": Measure(
        "overlap of tasks", "cosine", "",
        "of the tasks' energy gradients in the state: 1 the same directions, 0 none",
    ),
    "stays": Measure(
        "invariance", "1 - relative distance", "",
        "1 the state is unchanged, 0 as far as a random other",
    ),
    "follows": Measure(
        "equivariance", "fraction of variance", "higher",
        "variance of the changed state that a linear map explains, at most 1",
    ),
}  # fmt: skip
"""By the names of the metrics; of those under perturbations, by the part after the colon."""


def is_worse(name: str, value: float, baseline: float) -> bool:
    """Whether a value of a metric is worse than that of a baseline by more than rounding."""
    better = MEASURES[name.rpartition(": ")[2]].better
    gain = value - baseline if better == "higher" else baseline - value
    return bool(better) and gain < -MIN_DIFFERENCE * max(abs(value), abs(baseline))


def measure_of(name: str) -> Measure:
    """The measure of a metric, which may be that under a perturbation, `noise: stays`."""
    perturbation, colon, key = name.rpartition(": ")
    measure = MEASURES[key]
    return measure._replace(label=f"{perturbation}{colon}{measure.label}")


def _score(
    encoder: EncoderFn,
    train_set: ProbeTrajectories,
    test_set: ProbeTrajectories,
    lines: Sequence[FactorLine],
) -> dict[str, float]:
    """The metrics of one encoder; those that need factors only where there are some."""
    train_states, test_states = encoder(train_set.obs), encoder(test_set.obs)
    true_factors = test_set.factors
    found = {
        "slowness": metrics.slowness(test_states.unflatten(0, true_factors.shape[:2])),
        "sparsity": metrics.sparsity(test_states),
        "dimensions": spectrum(test_states)["effective_rank"],
        "groups": metrics.cluster(test_states)[0],
    }
    if lines:
        ranks = [spectrum(encoder(line.obs))["effective_rank"] for line in lines]
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
    perturbed: Mapping[str, Sequence[Observation]],
) -> Iterator[tuple[str, float]]:  # fmt: skip
    """Invariance and equivariance of one encoder; `perturbed`: both sets of observations."""
    train_states, test_states = encoder(train_obs), encoder(test_obs)
    for name, (perturbed_train, perturbed_test) in perturbed.items():
        perturbed_states = encoder(perturbed_test)
        yield f"{name}: stays", metrics.invariance(test_states, perturbed_states)
        read = fit_probe(train_states, encoder(perturbed_train)).read(test_states)
        yield f"{name}: follows", metrics.equivariance(read, perturbed_states)


@torch.no_grad()
def open_loop_error(agent: Agent, states: Tensor, actions: Tensor) -> dict[str, dict[int, float]]:
    """By level and environment steps ahead: the mean distance of predicted from true states over
    that which true states move; states `[(T + 1) B, D]`, actions `[B, T, A]`."""
    true_states = states.unflatten(0, (-1, len(actions))).transpose(0, 1)  # [B, T + 1, D]
    true_states = true_states.to(agent.device)
    device_actions = actions.to(agent.device)
    predicted = agent.world_model.imagine(true_states[:, 0], device_actions[:, None]).states[:, 0]
    found = {"agent": _relative_error(predicted, true_states, 1)}
    for n, level in enumerate(_learned_levels(agent), 2):
        level_states = level.encode(true_states[:, :: level.num_steps])
        level_predicted = level.predict(level_states[:, 0], device_actions)
        found[f"level {n}"] = _relative_error(level_predicted, level_states, level.num_steps)
    return found


def _relative_error(
    predicted: Tensor, true_states: Tensor, steps_per_prediction: int
) -> dict[int, float]:
    """Both `[B, N + 1, D]`."""
    mean_error = (predicted - true_states)[:, 1:].norm(dim=-1).mean(0)
    displacement = (true_states[:, 1:] - true_states[:, :1]).norm(dim=-1).mean(0)
    ratio = (mean_error / displacement.clamp_min(1e-9)).tolist()
    return {steps_per_prediction * step: error for step, error in enumerate(ratio, 1)}


def task_gradient_overlap(agent: Agent, trajectories: ProbeTrajectories) -> dict[str, float]:
    """The overlap of the energy gradients of the agent's tasks; empty where there are no two."""
    tasks: list[TaskSpec] = []
    for task_spec in agent.tasks.values():
        core_spec = replace(task_spec, options={}, horizon=0)  # the same in every environment
        if core_spec not in tasks:
            tasks.append(core_spec)
    if len(tasks) < 2:
        return {}
    gradients = [energy_gradient(agent, trajectories, task) for task in tasks]
    return {"task_gradient_overlap": metrics.gradient_overlap(gradients)}


def energy_gradient(agent: Agent, trajectories: ProbeTrajectories, task_spec: TaskSpec) -> Tensor:
    """The gradient `[B, D]` of the energy of one step without action with respect to the last
    states of the trajectories, in units of each dimension's standard deviation. The goal is the
    first observation of the trajectory, or of another one where the environment names the goals."""
    count = len(trajectories.actions)
    shift = 1 if task_spec.goal_source == "env" else 0
    goal = tree_map(lambda part: part[:count].roll(shift, 0), trajectories.obs)
    task = task_spec.to_task(None if task_spec.goal_source == "none" else goal, "plan")
    modality_weights = agent.configurator.modality_weights(task)
    states = states_of(agent, trajectories.obs, modality_weights).to(agent.device)
    episode_states = states.unflatten(0, (-1, count)).transpose(0, 1)  # [B, T + 1, D]
    last_state = episode_states[:, -1].clone().requires_grad_()
    context = agent.configurator.context(task, episode_states[:, 0].roll(shift, 0))
    reference_states = agent.encode(agent.reference_obs.observations(), modality_weights)
    context = context._replace(
        episode_states=episode_states[:, :-1],
        step_scale=agent.world_model.step_scale(last_state.detach()),
        reference_states=reference_states.detach(),
    )
    no_action = last_state.new_zeros(count, 1, 1, agent.spec.action_dim)
    terms = agent.cost(agent.world_model.imagine(last_state, no_action), context)
    energy = sum(term.sum() for term in terms.values())
    energy = energy + 0 * last_state.sum()  # a gradient of zero where no term depends on the state
    (gradient,) = torch.autograd.grad(energy, last_state)
    return (gradient * states.std(0)).cpu()
