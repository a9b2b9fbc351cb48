"""Mode-2 by sampling: many futures are imagined, the good ones say where to look next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.planners.common import Guesses, MindsEye, Warm, spread_of
from modules.types import HORIZON, ITERATIONS, Focus, Plan, Propose, Stateful, require


class _Sampler(Stateful):
    """A Gaussian over action sequences, refitted to its better samples a few times.

    What "better samples" means is `refit`, the one thing in which the planners differ.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        horizon: int = 8
        steps: int = 4
        """Refits of the Gaussian."""
        warm_steps: int = 4
        samples: int = 64
        """P"""
        spread: float = 0.7
        """First standard deviation, in actions of length 1."""

        def __post_init__(self) -> None:
            require(self, horizon=HORIZON, steps=ITERATIONS, warm_steps=ITERATIONS)
            require(self, samples=(1, 1_000_000), spread=(0.0, 1e3))

    def __init__(self, config: Config, eye: MindsEye, propose: Propose) -> None:
        self.config, self.eye, self.propose = config, eye, propose
        self.guess, self.warm = Guesses(eye), Warm()

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; the samples that follow depend on the seed alone."""
        self.guess.seed(seed)
        self.warm.clear()

    def resume(self, actions: Tensor) -> None:
        """The next thought goes on from these, `[B, K, H, A]`, not from the last plan."""
        self.warm.take(actions)

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, P, H, A]`, `[B, P]` -> mean and standard deviation, each `[B, 1, H, A]`."""
        raise NotImplementedError

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        """`[B, D]` -> the best plan sampled."""
        kept = self.warm.start(state, focus, self.eye.action_dim)
        offered = torch.cat([kept, self.propose(state, focus)], 1)
        rest = self.guess(state, focus, 1)
        mean = torch.cat([offered, rest], 1)[:, :1]
        spread = torch.full_like(mean, self.config.spread)
        best = mean
        for _ in range(self.config.warm_steps if kept.shape[1] else focus.steps):
            likely = self.eye.bounds.project(mean)
            actions = torch.cat([best, likely, offered, self._draw(state, mean, spread)], 1)
            energy = self.eye.look(state, actions, focus).energy
            mean, spread = self.refit(actions, energy)
            index = energy.argmin(1, keepdim=True)
            best = actions.take_along_dim(index[..., None, None], 1)
        plan = self.eye.decide(state, torch.cat([best, self.eye.bounds.project(mean)], 1), focus)
        self.warm.keep(plan.actions[:, None])
        return plan

    def _draw(self, state: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        noise = self.guess.noise(state, self.config.samples, mean.shape[2])
        return self.eye.bounds.project(mean + spread * noise)


class CEM(_Sampler):
    """The cross-entropy method: refit to an elite (Rubinstein 1999; PETS, Chua et al. 2018)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Sampler.Config):
        elite: int = 8

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self, elite=(1, 1_000_000))

        def build(self, eye: MindsEye, propose: Propose) -> CEM:
            return CEM(self, eye, propose)

    config: Config

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        index = energy.topk(min(self.config.elite, energy.shape[1]), 1, largest=False).indices
        elite = actions.take_along_dim(index[..., None, None], 1)
        return elite.mean(1, keepdim=True), elite.std(1, keepdim=True, correction=0)


class MPPI(_Sampler):
    """Model-predictive path integral control: every sample counts by exp(-energy / temperature)
    (Williams et al. 2017)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Sampler.Config):
        temperature: float = 0.2
        """In standard deviations of the energies, so that it means the same under any cost."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self, temperature=(1e-6, 1e6))

        def build(self, eye: MindsEye, propose: Propose) -> MPPI:
            return MPPI(self, eye, propose)

    config: Config

    def refit(self, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        scale = spread_of(energy, 1) * self.config.temperature
        weight = (-energy / scale).softmax(1)[..., None, None]  # [B, P, 1, 1]
        mean = (weight * actions).sum(1, keepdim=True)
        variance = (weight * (actions - mean).square()).sum(1, keepdim=True)
        return mean, variance.sqrt()
