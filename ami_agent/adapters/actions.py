"""Action spaces of Gymnasium as the agent's actions `[..., A]` in [-1, 1]."""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from modules.types import ConfigError

MAX_CHOICES = 2**14
"""Options of all discrete actions together: each is one number of the agent's action."""
MAX_INTEGER_RANGE = 2**24
"""Integers between the bounds of an action: float32 represents no more of them exactly."""


class BoxAdapter:
    """A Box: each bounded number is scaled to [-1, 1]. `size`: A."""

    choices: tuple[int, ...] = ()  # no discrete action

    def __init__(self, space: spaces.Box) -> None:
        if not prod(space.shape):
            raise ConfigError(f"actions are {space}: there is no number to choose")
        self.size, self.shape, self.dtype = prod(space.shape), space.shape, space.dtype
        unit = np.result_type(space.dtype, np.float32)
        self.low, self.high = space.low.astype(unit), space.high.astype(unit)
        with np.errstate(over="ignore", invalid="ignore"):
            span = self.high - self.low
        is_integer = not np.issubdtype(self.dtype, np.floating)
        if not np.isfinite(span).all() or (is_integer and (span > MAX_INTEGER_RANGE).any()):
            raise ConfigError(
                f"actions {space} have no bounds, or bounds too far apart: wrap the environment in "
                "gymnasium.wrappers.TransformAction(env, lambda a: a, Box(low, high))"
            )

    def to_env(self, action: np.ndarray) -> np.ndarray:
        fraction = (action.reshape(*action.shape[:-1], *self.shape) + 1) / 2
        native = (self.low + fraction * (self.high - self.low)).clip(self.low, self.high)
        is_float = np.issubdtype(self.dtype, np.floating)
        return (native if is_float else native.round()).astype(self.dtype)

    def from_env(self, action: Any) -> np.ndarray:
        action = np.asarray(action)
        fraction = (action - self.low) / np.maximum(self.high - self.low, 1e-12)
        return (2 * fraction - 1).reshape(*_batch_shape(action, self.shape), -1).astype(np.float32)


class DiscreteAdapter:
    """Discrete actions as one-hot vectors, one behind the other; the option with the largest number
    is chosen. `choices`: the number of options of each action; `size`: of all, A."""

    def __init__(self, sizes: Any, start: Any, shape: tuple[int, ...], dtype: Any) -> None:
        self.choices = tuple(int(n) for n in np.asarray(sizes).flatten())
        if sum(self.choices) > MAX_CHOICES:
            raise ConfigError(
                f"the discrete actions have {sum(self.choices)} options, more than {MAX_CHOICES}: "
                "wrap the environment so that it takes numbers or several smaller choices"
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
        one_hot = np.zeros((*batch_shape, self.size), np.float32)
        np.put_along_axis(one_hot, chosen.astype(np.int64) + self.offsets, 1.0, -1)
        return one_hot


ActionAdapter: TypeAlias = BoxAdapter | DiscreteAdapter
"""Converts actions between the agent and the environment."""


def _batch_shape(action: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of actions that each have this shape."""
    return action.shape[: action.ndim - len(shape)]


def action_adapter(space: spaces.Space) -> ActionAdapter:
    """The adapter for this space; ConfigError for a space that the agent can't act in."""
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
        "wrap the environment so that it takes one of them (gymnasium.wrappers.TransformAction)"
    )
