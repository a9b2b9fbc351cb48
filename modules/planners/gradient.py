"""Mode-2 by gradient: the energy of an imagined future is differentiable in the actions, so they
are improved by descent (LeCun 2022, 3.1.2), replanned at every step with a warm start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modules.planners.common import Guesses, MindsEye, Warm, epsilon
from modules.types import HORIZON, ITERATIONS, Focus, Plan, Propose, Stateful, require


class GradientPlanner(Stateful):
    """Adam on the actions of several proposals at once; the best actions ever seen win."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        horizon: int = 8
        """Imagined steps, H."""
        steps: int = 8
        """Improvements of a proposal when there is no plan to go on from."""
        warm_steps: int = 4
        """Improvements when the last plan, one step later, is where thinking starts."""
        proposals: int = 4
        """Random first guesses beside those of the policy, P."""
        carried: int = 2
        """How many of the last proposals are kept, the best; the others start afresh."""
        lr: float = 0.2
        """Adam's step on the unbounded actions, which saturate near 1."""

        def __post_init__(self) -> None:
            require(self, horizon=HORIZON, proposals=(1, 1_000_000), carried=(0, 1_000_000))
            require(self, steps=ITERATIONS, warm_steps=ITERATIONS, lr=(0.0, 100.0))

        def build(self, eye: MindsEye, propose: Propose) -> GradientPlanner:
            return GradientPlanner(self, eye, propose)

    def __init__(self, config: Config, eye: MindsEye, propose: Propose) -> None:
        self.config, self.eye, self.propose = config, eye, propose
        self.guess, self.warm = Guesses(eye), Warm()

    def reset(self, seed: int = 0) -> None:
        """Forgets the last plan; the guesses that follow depend on the seed alone."""
        self.guess.seed(seed)
        self.warm.clear()

    def resume(self, actions: Tensor) -> None:
        """The next thought goes on from these, `[B, K, H, A]`, not from the last plan."""
        self.warm.take(actions)

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        """`[B, D]` -> the best plan found; no gradient is left in any parameter."""
        kept = self.warm.start(state, focus, self.eye.action_dim)
        fresh = self.guess(state, focus, max(0, self.config.proposals - kept.shape[1]))
        first = torch.cat([kept, self.propose(state, focus), fresh], 1)
        steps = self.config.warm_steps if kept.shape[1] else focus.steps
        best, energy = self._descend(state, first, focus, steps)
        ranked = energy.topk(min(self.config.carried, energy.shape[1]), largest=False).indices
        self.warm.keep(best[torch.arange(len(best), device=best.device)[:, None], ranked])
        return self.eye.decide(state, best, focus)

    def _descend(
        self, state: Tensor, first: Tensor, focus: Focus, steps: int
    ) -> tuple[Tensor, Tensor]:
        """From `[B, P, H, A]` downhill -> the best seen of each proposal, its energy `[B, P]`."""
        free = self.eye.bounds.free(first)
        momentum, scale = torch.zeros_like(free), torch.zeros_like(free)
        small: Tensor | float = 1e-8
        best, lowest = first, first.new_full(first.shape[:2], torch.inf)
        for step in range(1, steps + 1):
            actions, energy, slope = self._slope(state, free, focus)
            best, lowest = better(best, lowest, actions, energy)
            small = epsilon(slope) if step == 1 else small
            momentum = momentum.lerp(slope, 0.1)
            scale = scale.lerp(slope.square(), 0.001)
            unbiased = (scale / (1 - 0.999**step)).sqrt() + small
            free = free - self.config.lr / (1 - 0.9**step) * momentum / unbiased
        actions = self.eye.bounds.bound(free)
        return better(best, lowest, actions, self.eye.look(state, actions, focus).energy)

    def _slope(self, state: Tensor, free: Tensor, focus: Focus) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their energy `[B, P]`, and its gradient in the unbounded actions."""
        with torch.enable_grad():
            free = free.detach().requires_grad_()
            actions = self.eye.bounds.bound(free)
            energy = self.eye.look(state, actions, focus).energy
            # not backward(): the world model and the critic keep no gradient
            (slope,) = torch.autograd.grad(energy.sum(), free)
        return actions.detach(), energy.detach(), slope


def better(best: Tensor, lowest: Tensor, actions: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Of each proposal `[B, P, H, A]` the best actions so far, and their energy `[B, P]`."""
    improved = energy < lowest
    best = torch.where(improved[..., None, None], actions, best)
    return best, torch.where(improved, energy, lowest)
