"""Probes of the representation: collapse, linear probes of the true factors, and dynamics tests.

No probe is part of the agent: probes are fitted on its frozen states.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ami_agent.adapters.env import EnvConfig, HasFactors
from ami_agent.agent import Agent
from ami_agent.probing.data import LabelledObs, collect_steps, concat_obs
from modules.types import DivergenceError, ModalityWeights, Observation, batch_size, tree_map

RIDGE = 1e-3  # penalty of the regression, relative to the states' variance
CHUNK_SIZE = 512  # observations that are encoded at once
FACTOR_ENVS, FACTOR_STEPS = 256, 5  # few steps of many environments: as many layouts as possible
COLLAPSE_ENVS, COLLAPSE_STEPS = 16, 31
MIN_STD = 0.1
"""Mean standard deviation of the state's dimensions below which it has collapsed (VICReg: 1)."""
CONSTANT_STD = 0.01
"""Standard deviation below which a dimension of the state does not vary."""
MIN_RANK = 1.5
"""Effective rank below which a state has collapsed: it can't encode a position in a plane, for
which it needs about 2, or a little less where positions are unevenly distributed."""


class Probe(NamedTuple):
    """A linear map from states to true factors, fitted by ridge regression."""

    mean: Tensor  # [D]
    weight: Tensor  # [D, F]
    bias: Tensor  # [F]

    def read(self, states: Tensor) -> Tensor:
        """`[..., D]` -> factors `[..., F]`"""
        return (states - self.mean) @ self.weight + self.bias


def fit_probe(states: Tensor, factors: Tensor) -> Probe:
    """States `[N, D]`, factors `[N, F]` -> the probe."""
    mean, bias = states.mean(0), factors.mean(0)
    centred = states - mean
    gram = centred.T @ centred
    penalty = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + penalty * eye, centred.T @ (factors - bias))
    return Probe(mean, weight, bias)


def spectrum(states: Tensor) -> dict[str, float]:
    """Metrics of collapse for states `[N, D]`: the smallest and the mean standard deviation of a
    dimension, the number of dimensions that do not vary, and the effective rank
    exp(H(eigenvalues)) (Roy & Vetterli 2007)."""
    if not states.isfinite().all():
        raise DivergenceError("states are not finite; a smaller learning rate may help")
    # In float32 LAPACK does not converge on many matrices with repeated eigenvalues.
    states = states.cpu().double()
    deviation = states.std(0)
    centred = states - states.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    fractions = (values / values.sum().clamp_min(1e-12)).clamp_min(1e-12)
    return {
        "std_min": float(deviation.min()),
        "std_mean": float(deviation.mean()),
        "num_constant": float((deviation < CONSTANT_STD).sum()),
        "effective_rank": float(torch.exp(-(fractions * fractions.log()).sum())),
    }


@torch.no_grad()
def states_of(
    agent: Agent, obs: Observation, modality_weights: ModalityWeights | None = None
) -> Tensor:
    """Observations `[N, *O]` -> the agent's states `[N, D]`, each as the first of an episode;
    `modality_weights`: those of a task; the agent's own by default."""
    parts = (
        tree_map(lambda part, i=i: part[i : i + CHUNK_SIZE].to(agent.device), obs)  # type: ignore[misc]
        for i in range(0, batch_size(obs), CHUNK_SIZE)
    )
    return torch.cat([agent.encode(part, modality_weights) for part in parts]).cpu()


class FactorProbe:
    """Metrics of an agent in an environment that HasFactors."""

    def __init__(self, config: EnvConfig, seed: int) -> None:
        env = config.build(FACTOR_ENVS)
        self.names: tuple[str, ...] = env.unwrapped.factor_names
        collected = (collect_steps(env, FACTOR_STEPS, seed + i) for i in (0, FACTOR_ENVS))
        self.train_set, self.test_set = (
            LabelledObs(concat_obs(steps.observations), steps.factors.flatten(0, 1))
            for steps in collected
        )
        self.dynamics_tests: Mapping[str, Any] = {
            name: test._replace(
                obs=env.to_tensors(test.obs),
                actions=env.from_env(test.actions),
                start_factors=env.tensor(test.start_factors),
                end_factors=env.tensor(test.end_factors),
            )
            for name, test in env.unwrapped.dynamics_tests(seed).items()
        }
        env.close()

    @torch.no_grad()
    def __call__(self, agent: Agent) -> dict[str, float]:
        """Metrics of collapse, the probe's root mean square error for each factor, and for each
        dynamics test the imagined and the true displacement along the first factor."""
        states = states_of(agent, self.test_set.obs)
        probe = fit_probe(states_of(agent, self.train_set.obs), self.train_set.factors)
        error = (probe.read(states) - self.test_set.factors).square().mean(0).sqrt()
        metrics = spectrum(states)
        metrics |= {f"error {name}": float(e) for name, e in zip(self.names, error, strict=True)}
        for name, test in self.dynamics_tests.items():
            start = states_of(agent, test.obs).to(agent.device)
            future = agent.world_model.imagine(start, test.actions[:, None].to(agent.device))
            read = probe.read(future.states[:, 0].cpu())  # [N, H + 1, F]
            metrics[f"{name} imagined"] = float((read[:, -1, 0] - read[:, 0, 0]).mean())
            true = test.end_factors[:, 0] - test.start_factors[:, 0]
            metrics[f"{name} true"] = float(true.mean())
        return metrics


class CollapseProbe:
    """Metrics of collapse, for an environment whose factors are unknown."""

    def __init__(self, config: EnvConfig, seed: int) -> None:
        batches = config.run_in_batches(
            COLLAPSE_ENVS, lambda env, first: collect_steps(env, COLLAPSE_STEPS, seed + first)
        )
        self.obs = concat_obs([obs for batch in batches for obs in batch.observations])

    def __call__(self, agent: Agent) -> dict[str, float]:
        """The metrics of `spectrum`."""
        return spectrum(states_of(agent, self.obs))


def make_probe(config: EnvConfig, seed: int) -> FactorProbe | CollapseProbe:
    """A FactorProbe where the environment has factors, else a CollapseProbe."""
    with closing(config.build(1)) as env:
        has_factors = isinstance(env.unwrapped, HasFactors)
    return FactorProbe(config, seed) if has_factors else CollapseProbe(config, seed)


def describe_collapse(metrics: Mapping[str, float]) -> str:
    """The metrics of `spectrum` in words."""
    deviation, rank = metrics["std_mean"], metrics["effective_rank"]
    if not (deviation < MIN_STD or rank < MIN_RANK):
        least, count = metrics["std_min"], int(metrics["num_constant"])
        vary = "number of the state does" if count == 1 else "numbers of the state do"
        constant = f"; {count} {vary} not vary" if count else ""
        return (
            f"no collapse: mean std {deviation:.2f}, least {least:.2f}, effective rank {rank:.1f}"
            f"{constant}"
        )
    fault, term = f"varies along a line only (effective rank {rank:.1f})", "covariance"
    if deviation < MIN_STD:
        fault, term = f"hardly varies (mean std {deviation:.3f})", "variance"
    return (
        f"COLLAPSED: the state {fault}; unless probes read the factors nevertheless, planning "
        f"can't work. Is the {term} term on?"
    )
