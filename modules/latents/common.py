"""What every latent variable is asked for, and the one that is never needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn

Dynamics: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""State `[N, D]` and what acts on it `[N, A + Z]` -> next state `[N, D]`."""


class Inferred(NamedTuple):
    """What must have been the case, and what it cost to know it."""

    acting: Tensor  # [..., A + Z]: all that acted on the state
    information: Tensor  # scalar: nats that z tells of the next state, to be kept few
    prior: Tensor  # scalar: the same, to be foreseen by p


class Latent(Protocol):
    """z of one step of a level. States `[..., D]`, actions `[..., A]`, chance `[..., U]`."""

    size: int  # Z
    chances: int  # U

    def infer(
        self, state: Tensor, action: Tensor, next_state: Tensor, chance: Tensor, dynamics: Dynamics
    ) -> Inferred:
        """z as it must have been, sampled from q(z | s, a, s')."""

    def draw(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        """Action and a z that may well be, sampled from p(z | s, a); `[..., A + Z]`."""

    def likeliest(self, state: Tensor, action: Tensor) -> Tensor:
        """Action and the z that p expects most, `[..., A + Z]`."""


class NoLatent(nn.Module):
    """All can be known: the model is deterministic."""

    size = chances = 0

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, state: int, action_dim: int) -> NoLatent:
            return NoLatent()

    def infer(
        self, state: Tensor, action: Tensor, next_state: Tensor, chance: Tensor, dynamics: Dynamics
    ) -> Inferred:
        return Inferred(action, action.new_zeros(()), action.new_zeros(()))

    def draw(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        return action

    def likeliest(self, state: Tensor, action: Tensor) -> Tensor:
        return action
