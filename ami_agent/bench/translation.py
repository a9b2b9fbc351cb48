"""Environments with plain spaces, for algorithms that support no others: discrete values count from
0, arrays have one axis, spaces are not nested, numbers are float32. Actions are converted back and
checked against the environment's own space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import nn

from modules.types import ConfigError

Path: TypeAlias = tuple[Any, ...]


class PlainSpace(NamedTuple):
    """A plain space, and the conversion to it (observations) or from it (actions), with any number
    of leading batch axes."""

    space: spaces.Space
    convert: Callable[[Any], Any]


def plain_observations(space: spaces.Space) -> PlainSpace:
    """The plain space of observations, and the conversion to it."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _plain_space(space)
    parts: dict[str, tuple[Path, PlainSpace]] = {}
    for path, leaf in _leaves(space):
        name = "/".join(str(key).replace(".", "_") for key in path)
        if not name or hasattr(nn.ModuleDict, name):  # algorithms keep networks by this name
            name += "_"
        if name in parts:
            raise ConfigError(f"two parts of the observation would both be called {name!r}")
        parts[name] = (path, _plain_space(leaf))

    def convert(obs: Any) -> dict[str, Any]:
        return {name: plain.convert(_at(obs, path)) for name, (path, plain) in parts.items()}

    return PlainSpace(
        spaces.Dict({name: plain.space for name, (_, plain) in parts.items()}), convert
    )


def _leaves(space: spaces.Space, path: Path = ()) -> Iterator[tuple[Path, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    elif not isinstance(space, spaces.Text):  # no algorithm reads text
        yield path, space


def _at(obs: Any, path: Path) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _plain_space(space: spaces.Space) -> PlainSpace:
    if isinstance(space, spaces.Discrete):
        start = space.start
        return PlainSpace(spaces.Discrete(space.n), lambda part: np.asarray(part) - start)
    if isinstance(space, spaces.MultiDiscrete):
        return PlainSpace(
            spaces.MultiDiscrete(space.nvec.flatten()),
            lambda part: _flat(np.asarray(part) - space.start, space),
        )
    if isinstance(space, spaces.Box) and not space.shape:
        low, high = (float(bound) for bound in (space.low, space.high))
        return PlainSpace(
            spaces.Box(low, high, (1,), space.dtype.type), lambda part: _flat(part, space)
        )
    return PlainSpace(space, lambda part: part)


def _flat(part: Any, space: spaces.Space) -> np.ndarray:
    array = np.asarray(part)
    lead = array.shape[: array.ndim - len(space.shape or ())]
    return array.reshape(*lead, -1)


def plain_actions(space: spaces.Space) -> PlainSpace:
    """The plain space of actions, and the conversion from it."""
    if isinstance(space, spaces.Discrete):
        kind, start = np.dtype(space.dtype), space.start
        return PlainSpace(spaces.Discrete(space.n), lambda a: (np.asarray(a) + start).astype(kind))
    if isinstance(space, spaces.MultiDiscrete):
        return PlainSpace(
            spaces.MultiDiscrete(space.nvec.flatten()),
            lambda a: (_reshaped(a, space.shape) + space.start).astype(space.dtype),
        )
    if isinstance(space, spaces.MultiBinary):
        return PlainSpace(
            spaces.MultiBinary(prod(space.shape)),
            lambda a: _reshaped(a, space.shape).astype(space.dtype),
        )
    if isinstance(space, spaces.Box) and (space.dtype != np.float32 or not space.shape):
        size = space.shape or (1,)
        low, high = (b.reshape(size).astype(np.float32) for b in (space.low, space.high))
        return PlainSpace(spaces.Box(low, high, size, np.float32), lambda a: _clipped(a, space))
    return PlainSpace(space, lambda a: np.asarray(a))


def _reshaped(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(action)
    return array.reshape((*array.shape[:-1], *shape))


def _clipped(action: Any, space: spaces.Box) -> np.ndarray:
    """The action in the space's dtype, rounded for integers, within its bounds."""
    array = _reshaped(action, space.shape) if not space.shape else np.asarray(action)
    if space.dtype.kind != "f":
        array = array.astype(np.float64).round()
    return np.asarray(np.clip(array, space.low, space.high), space.dtype)


def check_action(action: Any, space: spaces.Space, algorithm: str) -> None:
    """Raises ConfigError for an action that the environment does not take."""
    if not space.contains(action):
        text = " ".join(str(action).split())
        raise ConfigError(
            f"{algorithm} chose {text[:80]}, which is not in the environment's action space {space}"
        )


class PlainSpaceWrapper(gymnasium.Wrapper):
    """The environment with plain spaces."""

    def __init__(self, env: gymnasium.Env, algorithm: str) -> None:
        super().__init__(env)
        self.algorithm = algorithm
        self.plain_obs = plain_observations(env.observation_space)
        self.plain_action = plain_actions(env.action_space)
        self.observation_space, self.action_space = self.plain_obs.space, self.plain_action.space

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self.plain_obs.convert(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        env_action = self.plain_action.convert(action)
        check_action(env_action, self.env.action_space, self.algorithm)
        obs, reward, terminated, truncated, info = self.env.step(env_action)
        return self.plain_obs.convert(obs), reward, terminated, truncated, info
