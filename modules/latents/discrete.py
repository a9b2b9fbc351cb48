"""Latent variables that are one of several cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.latents.common import Dynamics, Inferred
from modules.layers import mlp
from modules.types import WIDTH, require


class DiscreteLatent(nn.Module):
    """One of several cases, one-hot. Which it was is found by trying them all: q is what is known
    of them after the next state, if noise of so much is all that is left unexplained; exact, where
    straight-through gradients (Bengio et al. 2013) left most cases alike. p says how often each
    comes in this state, so that what is rare stays rare (mixture density networks, Bishop 1994)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        cases: int = 16
        """Z"""
        noise: float = 0.05
        """Standard deviation, in each dimension of the state."""
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, cases=(2, 65_536), hidden=WIDTH, noise=(1e-4, 1e3))

        def build(self, state: int, action_dim: int) -> DiscreteLatent:
            return DiscreteLatent(self, state, action_dim)

    chances = 1

    def __init__(self, config: Config, state: int, action_dim: int) -> None:
        super().__init__()
        self.size, self.noise = config.cases, config.noise
        self.prior = mlp(state + action_dim, config.hidden, config.cases)

    def infer(
        self, state: Tensor, action: Tensor, next_state: Tensor, chance: Tensor, dynamics: Dynamics
    ) -> Inferred:
        state, next_state = state.detach(), next_state.detach()
        p = self.prior(torch.cat([state, action], -1)).log_softmax(-1)
        with torch.no_grad():
            missed = next_state[..., None, :] - self._tried(state, action, dynamics)
            likelihood = -missed.square().sum(-1) / (2 * self.noise**2)
            q = (p + likelihood).log_softmax(-1)
            acting = torch.cat([action, _case(q.exp(), chance)], -1)
        nats = (q.exp() * (q - p)).sum(-1).mean()
        return Inferred(acting, nats.detach(), nats)

    def _tried(self, state: Tensor, action: Tensor, dynamics: Dynamics) -> Tensor:
        """Where each case would have led, `[..., Z, D]`."""
        count, batch = self.size, state.shape[:-1]
        cases = torch.eye(count, dtype=action.dtype, device=action.device)
        acting = torch.cat(
            [
                action[..., None, :].expand(*batch, count, -1),
                cases.expand(*batch, count, count),
            ], -1,
        )  # fmt: skip
        states = state[..., None, :].expand(*batch, count, -1)
        ahead = dynamics(states.flatten(0, -2), acting.flatten(0, -2))
        return ahead.unflatten(0, (*batch, count))

    def draw(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        p = self.prior(torch.cat([state, action], -1)).softmax(-1)
        return torch.cat([action, _case(p, chance)], -1)

    def likeliest(self, state: Tensor, action: Tensor) -> Tensor:
        case = self.prior(torch.cat([state, action], -1)).argmax(-1)
        return torch.cat([action, nn.functional.one_hot(case, self.size).to(action)], -1)


def _case(shares: Tensor, chance: Tensor) -> Tensor:
    """Shares `[..., Z]` that sum to 1, `[..., 1]` in [0, 1) -> the case it falls into, one-hot."""
    with torch.no_grad():
        passed = (shares.cumsum(-1)[..., :-1] <= chance).sum(-1)
        return nn.functional.one_hot(passed, shares.shape[-1]).to(shares)
