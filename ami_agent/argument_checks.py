"""Checks of arguments of the Python interface; an error says in one line what is valid."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import torch

from modules.types import ConfigError

MAX_COUNT = 2**31 - 1


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among the known ones: what there is, first of all the one
    that was probably meant."""
    names = list(known)
    close = get_close_matches(name[:100], names, n=1)
    meant = f" (perhaps you meant {close[0]}?)" if close else ""
    return ConfigError(f"no {what} {name!r}{meant}; there are {', '.join(names)}")


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises ConfigError unless the value is a whole number from `minimum` to MAX_COUNT."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    if not minimum <= int(value) <= MAX_COUNT:
        raise ConfigError(f"{name} is {value}; it must be from {minimum} to {MAX_COUNT}")


def check_is(name: str, value: Any, *types: type) -> None:
    """Raises ConfigError unless the value is of one of these classes."""
    if not isinstance(value, types):
        expected = " or ".join(f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in types)
        raise ConfigError(
            f"{name} is a {type(value).__name__}; it must be "
            f"{expected.replace('builtins.', '').replace('ami_agent.', 'ami.')}"
        )


def check_path(name: str, value: Any) -> None:
    """Raises ConfigError unless the value names a file or folder."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise ConfigError(f"{name} is {value!r}; it must be a path")


def check_device(value: Any) -> None:
    """Raises ConfigError for a device that PyTorch doesn't know or doesn't find here."""
    try:
        is_known = torch.empty(0, device=value).device.type != "meta"  # it computes nothing
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError):
        is_known = False
    if not is_known:
        raise ConfigError(f"device is {value!r}; PyTorch finds no such device here")
