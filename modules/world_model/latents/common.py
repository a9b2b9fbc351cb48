"""What every latent variable is asked for, and the one that is never needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn

Dynamics: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""State `[N, D]` and what acts on it `[N, A + Z]` -> next state `[N, D]`."""


class InferredLatent(NamedTuple):
    """What must have been the case, and what it cost to know it."""

    action_latent: Tensor  # [..., A + Z]: all that acted on the state
    kl: Tensor  # scalar: nats that z tells of the next state, to be kept few
    prior_nll: Tensor  # scalar: the same, to be foreseen by p


class Latent(Protocol):
    """z of one step of a level. States `[..., D]`, actions `[..., A]`, chance `[..., U]`."""

    size: int  # Z
    noise_dim: int  # U

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        """z as it must have been, sampled from q(z | s, a, s')."""

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Action and a z that may well be, sampled from p(z | s, a); `[..., A + Z]`."""

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        """Action and the z that p expects most, `[..., A + Z]`."""


@dataclass(frozen=True, kw_only=True)
class NoLatentConfig:
    def build(self, state: int, action_dim: int) -> NoLatent:
        return NoLatent()


class NoLatent(nn.Module):
    """All can be known: the model is deterministic."""

    size = noise_dim = 0

    def posterior(
        self, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor, dynamics: Dynamics
    ) -> InferredLatent:
        return InferredLatent(action, action.new_zeros(()), action.new_zeros(()))

    def sample(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        return action

    def mode(self, state: Tensor, action: Tensor) -> Tensor:
        return action
