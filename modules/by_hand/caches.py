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
    """An empty tensor of this shape, with the type and device of `like`; every call with the same
    shape returns the same tensor."""
    return _empty(shape, like.dtype, like.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def row_numbers(count: int, device: torch.device) -> Tensor:
    """The integers from 0 to count - 1, `[count]`; every call returns the same tensor, which must
    not be changed."""
    return torch.arange(count, device=device)


def version(tensor: Tensor) -> Any:
    """A value that is equal for two calls if the tensor was not changed in place between them. A
    tensor of inference mode counts no changes, so its values are never equal."""
    return object() if tensor.is_inference() else tensor._version


def own_weights(*layers: nn.Module) -> list[Tensor]:
    """The weights of these layers alone, not of layers inside them, in their order."""
    # the dict itself: `parameters()` takes longer than an operation
    return [part for layer in layers for part in layer._parameters.values() if part is not None]


def transposed(weight: Tensor) -> Tensor:
    """A copy, since products with transposed views are slower."""
    return weight.t().contiguous()


class _Tracing(threading.local):
    active = False


tracing = _Tracing()
"""`tracing.active`: whether this thread traces a function, to compile it. Then no prepared weights
are used, so that the compiled function reads the weights anew in each call."""


Value = TypeVar("Value")


class DerivedFromWeights(Generic[Value]):
    """A value that is computed from weights alone, kept until a weight changes. There is none for
    weights that take a gradient: a fused optimizer changes them without counting up their
    version, and the gradient of the weights would be missing. Nor is there under autocast."""

    def __init__(self) -> None:
        # one value, so that threads may share it
        self.kept: tuple[Any, Value | None, list[Tensor]] = None, None, []

    def get(self, weights: Sequence[Tensor], make: Callable[[], Value]) -> Value | None:
        """The result of `make` for the weights as they are; None if a weight takes a gradient, a
        function is being traced, or autocast is on."""
        if (
            tracing.active
            or any(weight.requires_grad or weight.is_inference() for weight in weights)
            or torch.is_autocast_enabled(weights[0].device.type)
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
