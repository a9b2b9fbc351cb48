"""What an environment delivers and takes, as Gymnasium's spaces say, checked and translated for the
agent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.adapters.actions import ActionAdapter, action_adapter
from ami_agent.adapters.failures import EnvError
from ami_agent.adapters.obs_layout import Layout
from ami_agent.adapters.observations import ObsField, OutOfBounds, obs_fields, read_obs
from modules.types import ConfigError, Observation

Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a part of an observation."""

MAX_ABS_VALUE = 1e18
"""The largest number that may be observed: the square of much more is no number in single
precision, and what comes of it is nonsense without an error."""

NUMERIC_KINDS = "biuf"
"""Kinds of NumPy arrays that hold numbers: booleans, integers, floats."""


@dataclass(frozen=True)
class Interface:
    """An environment's spaces, and what the agent makes of them."""

    observation_space: spaces.Space
    action_space: spaces.Space
    frame_stack: int = 1
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    out_of_bounds: OutOfBounds = field(default="pass", compare=False)
    env: str = field(default="", compare=False)
    obs_fields: Mapping[str, ObsField] = field(init=False, compare=False)
    action_adapter: ActionAdapter = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for spaces that the agent can't observe or act in."""
        read = obs_fields(
            self.observation_space, self.frame_stack, layouts=self.layouts,
            out_of_bounds=self.out_of_bounds, env=self.env,
        )  # fmt: skip
        object.__setattr__(self, "obs_fields", read)
        object.__setattr__(self, "action_adapter", action_adapter(self.action_space))

    def read(
        self, obs: Any, sizes: Collection[int] | None, what: str = "observation"
    ) -> Observation:
        """What `env.reset` or `env.step` returned -> what the agent's encoders take, `[B, *O]`.

        `sizes`: what the batch may contain, one of several where it names several; None for a
        single environment, whose observations have no batch axis. Raises ConfigError, with the
        part and the environment that is wrong, for what is not of the observation space, or not
        finite."""
        used_paths = {reader.path for reader in self.obs_fields.values()}
        nested_obs: Any = {}
        lengths = {}
        for path, space, part in _leaves(self.observation_space, obs, what):
            if path in used_paths:
                label = _label(what, path)
                array = _array(part, space, label)
                array = array[None] if sizes is None else array
                _check_shape(array, space, sizes, label)
                array = _cast(array, space, sizes is not None, label)
                lengths[label] = len(array)
                nested_obs = _insert(nested_obs, path, array)
        if len(set(lengths.values())) > 1:
            sizes_text = ", ".join(f"{label} of {length}" for label, length in lengths.items())
            raise ConfigError(f"the {what}'s parts are of different numbers of envs: {sizes_text}")
        return self._convert(nested_obs, next(iter(lengths.values())), what, sizes is not None)

    def env_action(self, action: Tensor, batch: bool) -> Any:
        """Actions `[B, A]` in [-1, 1] -> what `env.step` takes: a batch, or the action of a single
        environment."""
        found = self.action_adapter.to_env(action.detach().cpu().numpy())
        if batch:
            return found
        scalar = isinstance(self.action_space, spaces.Discrete)
        return found[0] if scalar else np.asarray(found[0])

    def _convert(self, nested_obs: Any, count: int, what: str, batch: bool) -> Observation:
        try:
            found = read_obs(self.obs_fields, nested_obs, what)
        except EnvError as error:
            if not batch or count == 1:
                raise ConfigError(str(error)) from None
            for env in range(count):  # only to name the environment
                self._convert(_row(nested_obs, env), 1, f"{what} of environment {env}", batch)
            raise ConfigError(str(error)) from None
        return found.get("obs", found)


def _leaves(
    space: spaces.Space, obs: Any, what: str, path: Path = ()
) -> Iterator[tuple[Path, spaces.Space, Any]]:
    """The parts of an observation, each with its path and its space."""
    label = _label(what, path)
    if isinstance(space, spaces.Dict):
        _check_keys(space, obs, label)
        for key, part in space.spaces.items():
            yield from _leaves(part, obs[key], what, (*path, key))
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space.spaces):
            raise ConfigError(
                f"the {label} is {_describe(obs)}; it must be a tuple of {len(space.spaces)} parts"
            )
        for index, (part, found) in enumerate(zip(space.spaces, obs, strict=True)):
            yield from _leaves(part, found, what, (*path, index))
    else:
        yield path, space, obs


def _check_keys(space: spaces.Dict, obs: Any, label: str) -> None:
    names = ", ".join(map(repr, space.spaces))
    if not isinstance(obs, Mapping):
        raise ConfigError(f"the {label} is {_describe(obs)}; it must be a dict of {names}")
    # Gymnasium puts a mask `_name` beside every `name` that it merges from infos
    masks = {f"_{key}" for key in space.spaces}
    for problem, keys in (
        ("lacks", [key for key in space.spaces if key not in obs]),
        ("also has", [key for key in obs if key not in space.spaces and key not in masks]),
    ):
        if keys:
            found = ", ".join(map(repr, keys))
            raise ConfigError(f"the {label} {problem} {found}; it must be a dict of {names}")


def _label(what: str, path: Path) -> str:
    return what + (f" {'/'.join(map(str, path))!r}" if path else "")


def _insert(nested_obs: Any, path: Path, part: np.ndarray) -> Any:
    """The nested mapping with a part at this path; the part itself where the path is empty."""
    if not path:
        return part
    return {**nested_obs, path[0]: _insert(nested_obs.get(path[0], {}), path[1:], part)}


def _row(nested_obs: Any, env: int) -> Any:
    """The observation of one environment, as a batch of one."""
    if isinstance(nested_obs, dict):
        return {key: _row(part, env) for key, part in nested_obs.items()}
    return nested_obs[env : env + 1]


def _array(part: Any, space: spaces.Space, label: str) -> np.ndarray:
    """The part as an array of numbers that the space's dtype can hold."""
    if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_quantized):
        raise ConfigError(f"the {label} is a sparse or quantized tensor; it must be dense")
    if np.ma.isMaskedArray(part):
        raise ConfigError(f"the {label} is a masked array; it must be a plain one")
    try:
        if isinstance(part, Tensor):
            dense = part.detach().cpu()
            part = (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
        array = np.asarray(part)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"the {label} is {_describe(part)} that is no array of numbers") from None
    is_integer = _dtype(space).kind != "f"
    if array.dtype.kind not in NUMERIC_KINDS or (array.dtype.kind == "f" and is_integer):
        numbers = f"whole numbers of {space}" if is_integer else f"numbers of {_dtype(space)}"
        raise ConfigError(f"the {label} is {_describe(array)}; it must hold {numbers}")
    return array


def _check_shape(
    array: np.ndarray, space: spaces.Space, sizes: Collection[int] | None, label: str
) -> None:
    shape = tuple(space.shape or ())
    if sizes is None:
        if array.shape[1:] != shape:
            raise ConfigError(
                f"the {label} is of shape {array.shape[1:]}; of a single environment it must be "
                f"{shape} (several at once: agent.controller(num_envs=...))"
            )
    elif array.ndim == 0 or array.shape[1:] != shape or array.shape[0] not in sizes:
        expected = " or ".join(str((size, *shape)) for size in sorted(sizes))
        raise ConfigError(f"the {label} is of shape {array.shape}; it must be {expected}")


def _cast(array: np.ndarray, space: spaces.Space, batch: bool, label: str) -> np.ndarray:
    """The array in the space's dtype; ConfigError where that changes a number, or where one is
    not finite."""
    dtype = _dtype(space)
    if dtype.kind == "f":
        # never narrower than single precision, which is what the agent computes with
        dtype = np.result_type(dtype, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if dtype.kind == "f":
        is_ok, problem = np.isfinite(array), "NaN or infinity"
        if is_ok.all():
            is_ok, problem = (
                np.abs(converted) <= MAX_ABS_VALUE,
                f"a number beyond {MAX_ABS_VALUE:g}, too large",
            )
    else:
        is_ok, problem = converted == array, f"a number that is none of {space}"
    is_valid = is_ok.reshape(len(array), -1).all(1)
    if not is_valid.all():
        where = f" of environment {int(np.flatnonzero(~is_valid)[0])}" if batch else ""
        raise ConfigError(f"the {label}{where} holds {problem}")
    return converted


def _dtype(space: spaces.Space) -> np.dtype:
    return np.dtype(space.dtype or np.float32)


def _describe(part: Any) -> str:
    """What was given, in words."""
    if isinstance(part, (np.ndarray, Tensor)):
        return f"an array of {part.dtype} {tuple(part.shape)}"
    return f"a {type(part).__name__}"
