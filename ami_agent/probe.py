"""What the representation knows: collapse, linear read-outs of the true state, scripted exams.

None of this is ever part of the agent: probes are fitted on frozen states, beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.life import Examines, World, WorldConfig, live, seen, walk
from modules.types import Diverged, Gains, Observation, by_sense, count_of, each

COLLAPSED = 0.1
"""A state whose features vary less than this, where VICReg asks for 1, tells nothing."""

FLAT = 1.5
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


def fit(states: Tensor, factors: Tensor, ridge: float = 1e-3) -> Probe:
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
        raise Diverged("states are no longer finite; a smaller learning rate may do")
    deviation = states.std(0)
    centred = states - states.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    share = (values / values.sum().clamp_min(1e-12)).clamp_min(1e-12)
    return {
        "std_min": float(deviation.min()),
        "std_mean": float(deviation.mean()),
        "effective_rank": float(torch.exp(-(share * share.log()).sum())),
    }


class Sights(NamedTuple):
    """Observations whose truth is known."""

    obs: Observation  # [N, *O]
    factors: Tensor  # [N, F]


def sights(world: World, steps: int, seed: int) -> Sights:
    """Walks through the worlds and notes what was seen and where."""
    obs, info = world.reset(seed)
    views, known = [obs], [world.factors(info)]
    for _, lived in zip(range(steps), live(walk(world), world, obs), strict=False):
        views.append(seen(lived))
        known.append(world.factors(lived.info))
    return Sights(joined(views), torch.cat(known))


def joined(views: Sequence[Observation]) -> Observation:
    """Observations one after the other."""
    parts = [by_sense(view) for view in views]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return whole["obs"] if isinstance(views[0], Tensor) else whole


@torch.no_grad()
def states_of(
    agent: Agent, obs: Observation, gains: Gains | None = None, at_once: int = 512
) -> Tensor:
    """Observations `[N, *O]` -> what an agent makes of each as an episode's first, `[N, D]`;
    `gains`: as a task primes it, its own where there are none."""
    starts = range(0, count_of(obs), at_once)
    parts = (
        each(lambda part, i=i: part[i : i + at_once].to(agent.device), obs)  # type: ignore[misc]
        for i in starts
    )
    return torch.cat([agent.perceive(part, gains) for part in parts]).cpu()


class Examiner:
    """Measures an agent against a world that knows the truth."""

    def __init__(self, config: WorldConfig, seed: int, worlds: int = 256) -> None:
        world = config.build(worlds)
        self.names: tuple[str, ...] = world.inner.factor_names
        # few steps of many worlds: as many layouts as possible
        self.known, self.unknown = (sights(world, 5, seed + i) for i in (0, worlds))
        self.exams: Mapping[str, Any] = {
            name: exam._replace(
                obs=world.sensed(exam.obs),
                actions=world.from_world(exam.actions),
                start_factors=world.tensor(exam.start_factors),
                end_factors=world.tensor(exam.end_factors),
            )
            for name, exam in world.inner.dynamics_tests(seed).items()
        }
        world.close()

    def probe(self, agent: Agent) -> Probe:
        """A read-out of this agent's states."""
        return fit(states_of(agent, self.known.obs), self.known.factors)

    def __call__(self, agent: Agent) -> dict[str, float]:
        """Collapse, the probe's error per factor (root mean square, in arenas), and each exam's
        imagined and true displacement along the first factor."""
        states = states_of(agent, self.unknown.obs)
        probe = self.probe(agent)
        error = (probe.read(states) - self.unknown.factors).square().mean(0).sqrt()
        errors = {f"error {name}": float(e) for name, e in zip(self.names, error, strict=True)}
        return {**spectrum(states), **errors, **self._sit(agent, probe)}

    @torch.no_grad()
    def _sit(self, agent: Agent, probe: Probe) -> dict[str, float]:
        marks = {}
        for name, exam in self.exams.items():
            start = states_of(agent, exam.obs).to(agent.device)
            future = agent.world_model.imagine(start, exam.actions[:, None].to(agent.device))
            read = probe.read(future.states[:, 0].cpu())  # [N, H + 1, F]
            marks[f"{name} imagined"] = float((read[:, -1, 0] - read[:, 0, 0]).mean())
            marks[f"{name} true"] = float(
                (exam.end_factors[:, 0] - exam.start_factors[:, 0]).mean()
            )
        return marks


class Introspection:
    """All that can be said in a world that knows no truth: collapse, on what a walk sees."""

    def __init__(self, config: WorldConfig, seed: int, worlds: int = 16, steps: int = 31) -> None:
        views = config.in_turns(worlds, lambda world, first: _views(world, seed + first, steps))
        self.obs = joined([view for part in views for view in part])

    def __call__(self, agent: Agent) -> dict[str, float]:
        return spectrum(states_of(agent, self.obs))


def _views(world: World, seed: int, steps: int) -> list[Observation]:
    obs, _ = world.reset(seed)
    return [obs, *(seen(lived) for lived in islice(live(walk(world), world, obs), steps))]


def examiner(config: WorldConfig, seed: int) -> Examiner | Introspection:
    """The best judge that this world allows."""
    world = config.build(1)
    known = isinstance(world.inner, Examines)
    world.close()
    return Examiner(config, seed) if known else Introspection(config, seed)


def verdict(marks: Mapping[str, float]) -> str:
    """The figures of `spectrum` in words."""
    if marks["std_mean"] < COLLAPSED:
        return (
            f"COLLAPSED: the state hardly varies (mean std {marks['std_mean']:.3f}); unless it "
            "can be read all the same, nothing can be planned in it. Is the variance term on?"
        )
    if marks["effective_rank"] < FLAT:
        return (
            f"COLLAPSED: the state varies along a line only (effective rank "
            f"{marks['effective_rank']:.1f}); unless it can be read all the same, nothing can "
            "be planned in it. Is the covariance term on?"
        )
    return (
        f"state alive: mean std {marks['std_mean']:.2f}, least {marks['std_min']:.2f}, "
        f"effective rank {marks['effective_rank']:.1f}"
    )
