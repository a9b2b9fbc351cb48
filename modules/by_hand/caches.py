"""Tensors that are kept from call to call: constants, and what depends on weights alone, kept as
long as no weight changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def no_numbers(like: Tensor, *shape: int) -> Tensor:
    """A tensor of this shape, which holds no number, of the type and device of `like`; one tensor
    for all of this shape."""
    return _empty(shape, like.dtype, like.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def row_numbers(count: int, device: torch.device) -> Tensor:
    """0 .. count - 1, to be read only; one tensor for all of this length."""
    return torch.arange(count, device=device)


def version(tensor: Tensor) -> Any:
    """Differs once the tensor is changed in place; of a tensor of inference mode, which does not
    count, it always does."""
    return object() if tensor.is_inference() else tensor._version


def own_weights(*layers: nn.Module) -> list[Tensor]:
    """The weights of these layers, in their order."""
    # the dict itself: `parameters()` takes longer than an operation
    return [part for layer in layers for part in layer._parameters.values() if part is not None]


def transposed(weight: Tensor) -> Tensor:
    """A copy, since products with transposed views are slower."""
    return weight.t().contiguous()


class _Tracing(threading.local):
    active = False


tracing = _Tracing()
"""Whether this thread traces a function, to compile it: what is prepared from weights, or kept from
call to call, must then be computed, so that the compiled function computes it too."""


Value = TypeVar("Value")


class DerivedFromWeights(Generic[Value]):
    """What is computed from weights alone, kept until a weight changes. Nothing is computed for
    weights that take a gradient: a fused optimizer changes them without counting up their
    version, and a gradient would be missing."""

    def __init__(self) -> None:
        # one value, so that threads may share it
        self.kept: tuple[Any, Value | None, list[Tensor]] = None, None, []

    def get(self, weights: Sequence[Tensor], make: Callable[[], Value]) -> Value | None:
        """`make()` of the weights as they are; None if a weight takes a gradient, or a function is
        being traced."""
        if tracing.active or any(
            weight.requires_grad or weight.is_inference() for weight in weights
        ):
            return None
        key = [(weight.data_ptr(), weight._version) for weight in weights]
        kept = self.kept
        if key != kept[0]:
            with torch.inference_mode(False), torch.no_grad():
                # the weights too, so that no others come to lie in their place
                kept = self.kept = key, make(), [weight.detach() for weight in weights]
        return kept[1]

    def __deepcopy__(self, memo: Any) -> DerivedFromWeights[Value]:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()
