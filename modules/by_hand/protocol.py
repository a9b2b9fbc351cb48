"""What a class offers so that planners compute it by hand, and the one function that asks for
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from modules.types import Rollout

Pullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, ...]]
"""The gradient with respect to a function's output -> those with respect to its inputs."""

SquashByHand: TypeAlias = Callable[[Tensor], tuple[Tensor, Pullback]]
"""An action space, `squash_by_hand`: unbounded numbers `[..., A]` -> actions `[..., A]` and the
pullback."""

PathEnergy: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Callable[[float], Tensor]]]
"""A goal critic, `by_hand(goal)`: imagined states `[H, B, P, D]`, time first as they lie in memory;
goals `[B, D]` or `[1, D]`; the states `[B, D]` where the paths begin -> an energy `[B, P]`, and its
gradient with respect to the imagined states as a function of its weight."""

ImagineByHand: TypeAlias = Callable[[Tensor, Tensor], tuple[Rollout, Callable[[Tensor], Tensor]]]
"""A world model, `imagine_by_hand()`: states `[B, D]`, actions `[B, P, H, A]` -> their futures, and
a function from the gradient with respect to the states after the first, time first,
`[H, B, P, D]`, to that of the actions."""

CostByHand: TypeAlias = Callable[[Rollout], tuple[dict[str, Tensor], Tensor]]
"""A cost, `by_hand(context)`: imagined futures -> the energies by name, and the gradient of their
sum with respect to the states after the first, time first, `[H, B, P, D]`."""


class UnrollByHand(Protocol):
    """Dynamics, `unroll_by_hand()`: H steps from the states `[B, D]` under P action sequences
    each."""

    def states(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[B, D]`, `[B, P, H, A]` -> the states, time first, `[H + 1, B, P, D]`."""

    def states_and_pullback(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """The same states, and the pullback to start and actions. The gradient that it takes may
        lack the first states."""


def own_method(owner: object, name: str) -> Callable[..., Any] | None:
    """The method `name` of `owner`, if the class of `owner` defines it itself; None otherwise. A
    subclass that inherits the method may have another forward, which the method does not
    compute."""
    return getattr(owner, name) if name in vars(type(owner)) else None


def unroll_of(dynamics: nn.Module) -> UnrollByHand | None:
    """None for dynamics that offer no unroll by hand, or have none for the weights as they are."""
    offered = own_method(dynamics, "unroll_by_hand")
    return None if offered is None else offered()
