"""What the representation knows: collapse, linear read-outs of the true state, scripted exams.

None of this is ever part of the agent: probes are fitted on frozen states, beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ami_agent.adapters.env import (
    EnvAdapter,
    EnvConfig,
    HasFactors,
    behaviour_policy,
    next_obs_of,
    rollout,
)
from ami_agent.agent import Agent
from modules.types import (
    DivergenceError,
    ModalityWeights,
    Observation,
    as_dict,
    batch_size,
    tree_map,
)

MIN_STD = 0.1
"""A state whose features vary less than this, where VICReg asks for 1, tells nothing."""

MIN_RANK = 1.5
"""A state of a lower effective rank can't say where in a plane something is; one that is seen in a
plane, but unevenly, has a little less than 2."""


class Probe(NamedTuple):
    """A linear read-out of the true factors, fitted by ridge regression."""

    mean: Tensor  # [D]
    weight: Tensor  # [D, F]
    bias: Tensor  # [F]

    def read(self, states: Tensor) -> Tensor:
        """`[..., D]` -> factors `[..., F]`"""
        return (states - self.mean) @ self.weight + self.bias


def fit_probe(states: Tensor, factors: Tensor, ridge: float = 1e-3) -> Probe:
    """States `[N, D]`, factors `[N, F]` -> the probe; `ridge` relative to the states' variance."""
    mean, bias = states.mean(0), factors.mean(0)
    centred = states - mean
    gram = centred.T @ centred
    penalty = ridge * gram.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + penalty * eye, centred.T @ (factors - bias))
    return Probe(mean, weight, bias)


def spectrum(states: Tensor) -> dict[str, float]:
    """Collapse in three figures: the least and the mean standard deviation of a dimension, and the
    effective rank exp(H(eigenvalues)) (Roy & Vetterli 2007); states `[N, D]`."""
    if not states.isfinite().all():
        raise DivergenceError("states are no longer finite; a smaller learning rate may do")
    deviation = states.std(0)
    centred = states - states.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    share = (values / values.sum().clamp_min(1e-12)).clamp_min(1e-12)
    return {
        "std_min": float(deviation.min()),
        "std_mean": float(deviation.mean()),
        "effective_rank": float(torch.exp(-(share * share.log()).sum())),
    }


class LabelledObs(NamedTuple):
    """Observations whose truth is known."""

    obs: Observation  # [N, *O]
    factors: Tensor  # [N, F]


def collect_labelled(env: EnvAdapter, steps: int, seed: int) -> LabelledObs:
    """Walks through the worlds and notes what was seen and where."""
    obs, info = env.reset(seed)
    observations, factors = [obs], [env.factors(info)]
    for _, result in zip(range(steps), rollout(behaviour_policy(env), env, obs), strict=False):
        observations.append(next_obs_of(result))
        factors.append(env.factors(result.info))
    return LabelledObs(concat_obs(observations), torch.cat(factors))


def concat_obs(observations: Sequence[Observation]) -> Observation:
    """Observations one after the other."""
    parts = [as_dict(view) for view in observations]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return whole["obs"] if isinstance(observations[0], Tensor) else whole


@torch.no_grad()
def states_of(
    agent: Agent,
    obs: Observation,
    modality_weights: ModalityWeights | None = None,
    chunk_size: int = 512,
) -> Tensor:
    """Observations `[N, *O]` -> what an agent makes of each as an episode's first, `[N, D]`;
    `gains`: as a task primes it, its own where there are none."""
    starts = range(0, batch_size(obs), chunk_size)
    parts = (
        tree_map(lambda part, i=i: part[i : i + chunk_size].to(agent.device), obs)  # type: ignore[misc]
        for i in starts
    )
    return torch.cat([agent.encode(part, modality_weights) for part in parts]).cpu()


class FactorProbe:
    """Measures an agent against a world that knows the truth."""

    def __init__(self, config: EnvConfig, seed: int, num_envs: int = 256) -> None:
        env = config.build(num_envs)
        self.names: tuple[str, ...] = env.unwrapped.factor_names
        # few steps of many worlds: as many layouts as possible
        self.train_set, self.test_set = (collect_labelled(env, 5, seed + i) for i in (0, num_envs))
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

    def probe(self, agent: Agent) -> Probe:
        """A read-out of this agent's states."""
        return fit_probe(states_of(agent, self.train_set.obs), self.train_set.factors)

    def __call__(self, agent: Agent) -> dict[str, float]:
        """Collapse, the probe's error per factor (root mean square, in arenas), and each exam's
        imagined and true displacement along the first factor."""
        states = states_of(agent, self.test_set.obs)
        probe = self.probe(agent)
        error = (probe.read(states) - self.test_set.factors).square().mean(0).sqrt()
        errors = {f"error {name}": float(e) for name, e in zip(self.names, error, strict=True)}
        return {**spectrum(states), **errors, **self._run_dynamics_tests(agent, probe)}

    @torch.no_grad()
    def _run_dynamics_tests(self, agent: Agent, probe: Probe) -> dict[str, float]:
        metrics = {}
        for name, test in self.dynamics_tests.items():
            start = states_of(agent, test.obs).to(agent.device)
            future = agent.world_model.imagine(start, test.actions[:, None].to(agent.device))
            read = probe.read(future.states[:, 0].cpu())  # [N, H + 1, F]
            metrics[f"{name} imagined"] = float((read[:, -1, 0] - read[:, 0, 0]).mean())
            metrics[f"{name} true"] = float(
                (test.end_factors[:, 0] - test.start_factors[:, 0]).mean()
            )
        return metrics


class CollapseProbe:
    """All that can be said in a world that knows no truth: collapse, on what a walk sees."""

    def __init__(self, config: EnvConfig, seed: int, num_envs: int = 16, steps: int = 31) -> None:
        observations = config.run_in_batches(
            num_envs, lambda env, first: _collect_obs(env, seed + first, steps)
        )
        self.obs = concat_obs([view for part in observations for view in part])

    def __call__(self, agent: Agent) -> dict[str, float]:
        return spectrum(states_of(agent, self.obs))


def _collect_obs(env: EnvAdapter, seed: int, steps: int) -> list[Observation]:
    obs, _ = env.reset(seed)
    return [
        obs,
        *(
            next_obs_of(result)
            for result in islice(rollout(behaviour_policy(env), env, obs), steps)
        ),
    ]


def make_probe(config: EnvConfig, seed: int) -> FactorProbe | CollapseProbe:
    """The best judge that this world allows."""
    env = config.build(1)
    has_factors = isinstance(env.unwrapped, HasFactors)
    env.close()
    return FactorProbe(config, seed) if has_factors else CollapseProbe(config, seed)


def describe_collapse(metrics: Mapping[str, float]) -> str:
    """The figures of `spectrum` in words."""
    if metrics["std_mean"] < MIN_STD:
        return (
            f"COLLAPSED: the state hardly varies (mean std {metrics['std_mean']:.3f}); unless it "
            "can be read all the same, nothing can be planned in it. Is the variance term on?"
        )
    if metrics["effective_rank"] < MIN_RANK:
        return (
            f"COLLAPSED: the state varies along a line only (effective rank "
            f"{metrics['effective_rank']:.1f}); unless it can be read all the same, nothing can "
            "be planned in it. Is the covariance term on?"
        )
    return (
        f"state alive: mean std {metrics['std_mean']:.2f}, least {metrics['std_min']:.2f}, "
        f"effective rank {metrics['effective_rank']:.1f}"
    )
