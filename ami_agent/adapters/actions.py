"""What a world lets a body do, as a mind's actions `[..., A]` in [-1, 1]."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from modules.types import ConfigError

MAX_CHOICES = 2**14
"""Numbers that a choice may take: each has one of its own."""


MAX_INTEGER_RANGE = 2**24
"""Whole numbers from the lowest to the highest action; more can't be told apart."""


class ActionAdapter(Protocol):
    """Both ways between the mind's actions and the world's."""

    size: int  # A
    choices: tuple[int, ...]  # how many there are to choose from, for each choice; () where none

    def to_env(self, action: np.ndarray) -> np.ndarray: ...
    def from_env(self, action: Any) -> np.ndarray: ...


class BoxAdapter:
    """Numbers within bounds."""

    choices: tuple[int, ...] = ()

    def __init__(self, space: spaces.Box) -> None:
        if not prod(space.shape):
            raise ConfigError(f"actions are {space}: there is nothing to do")
        self.size, self.shape, self.dtype = prod(space.shape), space.shape, space.dtype
        unit = np.result_type(space.dtype, np.float32)
        self.low, self.high = space.low.astype(unit), space.high.astype(unit)
        with np.errstate(over="ignore", invalid="ignore"):
            span = self.high - self.low
        is_integer = not np.issubdtype(self.dtype, np.floating)
        if not np.isfinite(span).all() or (is_integer and (span > MAX_INTEGER_RANGE).any()):
            raise ConfigError(
                f"actions {space} have no bounds, or bounds too far apart; the agent needs some: "
                "gymnasium.wrappers.TransformAction(env, lambda a: a, Box(low, high)) around the "
                "world gives it some"
            )

    def to_env(self, action: np.ndarray) -> np.ndarray:
        fraction = (action.reshape(*action.shape[:-1], *self.shape) + 1) / 2
        native = (self.low + fraction * (self.high - self.low)).clip(self.low, self.high)
        return (native if np.issubdtype(self.dtype, np.floating) else native.round()).astype(
            self.dtype
        )

    def from_env(self, action: Any) -> np.ndarray:
        action = np.asarray(action)
        fraction = (action - self.low) / np.maximum(self.high - self.low, 1e-12)
        return (2 * fraction - 1).reshape(*_batch_shape(action, self.shape), -1).astype(np.float32)


class DiscreteAdapter:
    """One of several, or several of these: to each choice belongs a number, 1 for what is chosen
    and 0 for the rest."""

    def __init__(self, sizes: Any, start: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self.choices = tuple(int(n) for n in np.asarray(sizes).flatten())
        if sum(self.choices) > MAX_CHOICES:
            raise ConfigError(
                f"{sum(self.choices)} things to choose from are more than the {MAX_CHOICES} that can be "
                "told apart: wrap the world so that numbers, or several smaller choices, stand for "
                "them"
            )
        self.size, self.shape, self.dtype = sum(self.choices), shape, dtype
        self.start = np.asarray(start).flatten()
        self.offsets = np.concatenate([[0], np.cumsum(self.choices)[:-1]]).astype(np.int64)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        parts = np.split(action, self.offsets[1:], -1)
        chosen = np.stack([part.argmax(-1) for part in parts], -1) + self.start
        return chosen.reshape(*action.shape[:-1], *self.shape).astype(self.dtype)

    def from_env(self, action: Any) -> np.ndarray:
        batch_shape = _batch_shape(np.asarray(action), self.shape)
        chosen = np.asarray(action).reshape(*batch_shape, -1) - self.start
        hot = np.zeros((*batch_shape, self.size), np.float32)
        np.put_along_axis(hot, chosen.astype(np.int64) + self.offsets, 1.0, -1)
        return hot


def _batch_shape(action: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many actions of that shape there are."""
    return action.shape[: action.ndim - len(shape)]


def action_adapter(space: spaces.Space) -> ActionAdapter:
    """Raises ConfigError for actions that the mind can't carry out."""
    if isinstance(space, spaces.Box):
        return BoxAdapter(space)
    if isinstance(space, spaces.Discrete):
        return DiscreteAdapter(space.n, space.start, (), space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return DiscreteAdapter(space.nvec, space.start, space.shape, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return DiscreteAdapter([2] * prod(space.shape), 0, space.shape, space.dtype)
    raise ConfigError(
        f"actions are {space}; the agent acts in Box, Discrete, MultiDiscrete and MultiBinary: "
        "wrap the world so that it takes one of them (gymnasium.wrappers.TransformAction)"
    )
