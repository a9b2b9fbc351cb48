"""Latent variables that are one of several cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.nets import silu_mlp
from modules.types import WIDTH, validate_ranges
from modules.world_model.latents.common import Dynamics, InferredLatent


@dataclass(frozen=True, kw_only=True)
class CategoricalLatentConfig:
    num_categories: int = 16
    """Z"""
    noise_std: float = 0.05
    """Standard deviation, in each dimension of the state."""
    hidden: int = 64

    def __post_init__(self) -> None:
        validate_ranges(self, num_categories=(2, 65_536), hidden=WIDTH, noise_std=(1e-4, 1e3))

    def build(self, state: int, action_dim: int) -> CategoricalLatent:
        return CategoricalLatent(self, state, action_dim)


class CategoricalLatent(nn.Module):
    """One of several cases, one-hot. Which it was is found by trying them all: q is what is known
    of them after the next state, if noise of so much is all that is left unexplained; exact, where
    straight-through gradients (Bengio et al. 2013) left most cases alike. p says how often each
    comes in this state, so that what is rare stays rare (mixture density networks, Bishop 1994)."""

    noise_dim = 1

    def __init__(self, config: CategoricalLatentConfig, state: int, action_dim: int) -> None:
        super().__init__()
        self.size, self.noise_std = config.num_categories, config.noise_std
        self.prior_net = silu_mlp(state + action_dim, config.hidden, config.num_categories)

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        state, next_state = state.detach(), next_state.detach()
        p = self.prior_net(torch.cat([state, action], -1)).log_softmax(-1)
        with torch.no_grad():
            error = next_state[..., None, :] - self._predict_all(state, action, dynamics)
            log_likelihood = -error.square().sum(-1) / (2 * self.noise_std**2)
            q = (p + log_likelihood).log_softmax(-1)
            action_latent = torch.cat([action, _sample_one_hot(q.exp(), noise)], -1)
        kl = (q.exp() * (q - p)).sum(-1).mean()
        return InferredLatent(action_latent, kl.detach(), kl)

    def _predict_all(self, state: Tensor, action: Tensor, dynamics: Dynamics) -> Tensor:
        """Where each case would have led, `[..., Z, D]`."""
        count, batch = self.size, state.shape[:-1]
        categories = torch.eye(count, dtype=action.dtype, device=action.device)
        action_latent = torch.cat(
            [
                action[..., None, :].expand(*batch, count, -1),
                categories.expand(*batch, count, count),
            ], -1,
        )  # fmt: skip
        states = state[..., None, :].expand(*batch, count, -1)
        next_states = dynamics(states.flatten(0, -2), action_latent.flatten(0, -2))
        return next_states.unflatten(0, (*batch, count))

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        p = self.prior_net(torch.cat([state, action], -1)).softmax(-1)
        return torch.cat([action, _sample_one_hot(p, noise)], -1)

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        category = self.prior_net(torch.cat([state, action], -1)).argmax(-1)
        return torch.cat([action, nn.functional.one_hot(category, self.size).to(action)], -1)


def _sample_one_hot(probs: Tensor, noise: Tensor) -> Tensor:
    """Shares `[..., Z]` that sum to 1, `[..., 1]` in [0, 1) -> the case it falls into, one-hot."""
    with torch.no_grad():
        category = (probs.cumsum(-1)[..., :-1] <= noise).sum(-1)
        return nn.functional.one_hot(category, probs.shape[-1]).to(probs)
