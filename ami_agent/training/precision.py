"""The floating-point format in which the networks of a loss compute. Weights, gradients and the
optimizer's moments are float32 always, and so is everything outside of losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from modules.types import ConfigError, shorten

Precision = Literal["float32", "bf16"]
"""bf16: bfloat16 in matrix products and convolutions, forward and backward (`torch.autocast`)."""

_of_losses: ContextVar[Precision] = ContextVar("precision of losses", default="float32")
"""Of this thread alone: another may train in another precision."""


def check_precision(source: str, value: Any) -> Precision:
    """The value, if it is a precision; else ConfigError, which names the source."""
    if value not in get_args(Precision):
        raise ConfigError(f"{source} is {shorten(value)}; it must be float32 or bf16")
    return value  # type: ignore[no-any-return]


def check_available(precision: Precision, device: torch.device | str) -> None:
    """Raises ConfigError where the device does not compute in this precision."""
    if precision == "bf16" and not _has_bf16(torch.device(device).type):
        raise ConfigError(
            f"--precision bf16: the device {device} does not compute in bfloat16; use float32"
        )


def _has_bf16(kind: str) -> bool:
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    try:
        with warnings.catch_warnings(), torch.autocast(kind, torch.bfloat16):
            warnings.simplefilter("error")  # PyTorch warns and computes in float32
            one = torch.ones(1, 1, device=kind)
            return (one @ one).dtype == torch.bfloat16
    except (RuntimeError, UserWarning, NotImplementedError):
        return False


@contextmanager
def losses_in(precision: Precision) -> Iterator[None]:
    """Within the block, losses compute in this precision."""
    token = _of_losses.set(precision)
    try:
        yield
    finally:
        _of_losses.reset(token)


def full(state: Tensor) -> Tensor:
    """States as float32, where networks that compute in bf16 return them: they are added up over
    steps, and noise of their type must not round to 1."""
    return state.float() if state.dtype == torch.bfloat16 else state


def exact(device: torch.device) -> AbstractContextManager[None]:
    """Within the block, networks compute in float32 whatever the precision of losses is."""
    return torch.autocast(device.type, enabled=False)


def in_precision(
    loss: Callable[[torch.Generator], dict[str, Tensor]], generator: torch.Generator,
    device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """The terms of a loss, whose networks compute in this precision on the device."""
    if _of_losses.get() == "float32":
        return loss(generator)
    with torch.autocast(device.type, torch.bfloat16):
        return {name: term.float() for name, term in loss(generator).items()}
