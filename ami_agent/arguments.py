"""Arguments of the Python interface: whatever is given, one line says what would be right."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any

import torch

from modules.types import UnusableInput

MOST = 2**31 - 1


def check_count(name: str, value: Any, least: int, most: int = MOST) -> None:
    """Raises UnusableInput unless the value is a whole number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UnusableInput(f"{name} is {value!r}; it must be a whole number")
    if not least <= int(value) <= most:
        raise UnusableInput(f"{name} is {value}; it must be from {least} to {most}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raises UnusableInput unless the value is a number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UnusableInput(f"{name} is {value!r}; it must be a number")
    if not least <= float(value) <= most:
        raise UnusableInput(f"{name} is {value}; it must be from {least:g} to {most:g}")


def check_is(name: str, value: Any, *kinds: type) -> None:
    """Raises UnusableInput unless the value is of one of these classes."""
    if not isinstance(value, kinds):
        wanted = " or ".join(f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in kinds)
        raise UnusableInput(
            f"{name} is a {type(value).__name__}; it must be "
            f"{wanted.replace('builtins.', '').replace('ami_agent.', 'ami.')}"
        )


def check_path(name: str, value: Any) -> None:
    """Raises UnusableInput unless the value names a file or folder."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise UnusableInput(f"{name} is {value!r}; it must be a path")


def check_device(value: Any) -> None:
    """Raises UnusableInput for a device that PyTorch doesn't know or doesn't find here."""
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):
        raise UnusableInput(f"device is {value!r}; PyTorch finds no such device here") from None
