"""Observations as tensors, and actions as what `env.step` takes: every leaf of an observation is
one field of the agent's, `[B, *O]`. Here NaN, infinities and whatever else is not of its space are
refused, both in what an environment returns (`read_obs`) and in what a program gives to the agent
(`Interface.read`). `spaces.py` says what becomes of each space.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from operator import getitem
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ami_agent.adapters.fault_tolerance import EnvError
from modules.types import ConfigError, Observation

MAX_CHOICES = 2**14
"""Options of all discrete actions together: each is one number of the agent's action."""


MAX_INTEGER_RANGE = 2**24
"""Integers between the bounds of an action: float32 represents no more of them exactly."""


NUMERIC_KINDS = "biuf"
"""Kinds of NumPy arrays that hold numbers: booleans, integers, floats."""


MAX_ABS_VALUE = 1e19
"""The largest observation and reward, more than int64 holds: the square of a much larger number is
infinite in float32, and would make results wrong without an error."""


TOO_LARGE = f"a number beyond {MAX_ABS_VALUE:g}, too large"


OutOfBounds: TypeAlias = Literal["pass", "clip", "refuse"]
"""The treatment of a finite number outside its Box."""


TREATMENTS = {"pass": ("used as they are", "clip or refuse"), "clip": ("clipped", "pass or refuse")}
"""In words, with the other choices."""


Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a leaf."""


Convert: TypeAlias = Callable[[Any], Any]
"""`[B, *leaf]` -> `[B, *modality.shape]`"""


log = logging.getLogger(__name__)


_already_warned: set[tuple[str, ...]] = set()  # of this process: an environment is made many times


class ModalitySpec(NamedTuple):
    """Shape and dtype of one modality."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class Bounds(NamedTuple):
    """The lowest and the highest numbers of a space, and the tolerance for rounding."""

    low: np.ndarray
    high: np.ndarray
    tolerance: Any = 0.0


class OutOfBoundsError(ValueError):
    """A number outside its space."""

    def __init__(self, number: float, relation: str, index: tuple[int, ...] = ()) -> None:
        position = f" at {list(index)}" if index else ""
        super().__init__(f"{number:g}{position}, {relation}")
        self.number = number


class ObsField(NamedTuple):
    """One leaf of an observation: its place, its space and its conversion."""

    path: Path
    space: spaces.Space
    modality: ModalitySpec
    convert: Convert
    summary: str  # of the conversion, in words
    bounds: Bounds | None  # None: no number can be outside
    out_of_bounds: OutOfBounds
    name: str
    env: str

    def __call__(self, obs: Any, what: str = "observation") -> Any:
        """Raises OutOfBoundsError for a number outside the space where that is refused, ValueError
        for another shape. `what`: the observation's name in a warning."""
        part = self.leaf(obs)
        part = part if isinstance(part, Tensor) else np.asarray(part)
        if tuple(part.shape[1:]) != self.space.shape:
            raise ValueError(f"its shape is {tuple(part.shape[1:])}, not {self.space.shape}")
        if self.bounds is not None and isinstance(part, np.ndarray):
            part = self._check_bounds(part, self.bounds, what)
        return self.convert(part)

    def leaf(self, obs: Any) -> Any:
        """This field's part of an observation as the environment delivers it."""
        return reduce(getitem, self.path, obs)

    def _check_bounds(self, part: np.ndarray, bounds: Bounds, what: str) -> np.ndarray:
        """Leaves NaN and infinities to `read_obs`, which refuses them."""
        outside = (part < bounds.low - bounds.tolerance) | (part > bounds.high + bounds.tolerance)
        if not outside.any() or not np.isfinite(part).all():
            return part
        first = tuple(np.argwhere(outside)[0].tolist())
        value, index = part[first], first[1:]
        low, high = (np.broadcast_to(edge, part.shape[1:])[index] for edge in bounds[:2])
        relation = f"below its low {low:g}" if value < low else f"above its high {high:g}"
        error = OutOfBoundsError(float(value), relation, index)
        if self.out_of_bounds == "refuse" or not isinstance(self.space, spaces.Box):
            raise error
        treatment, alternatives = TREATMENTS[self.out_of_bounds]
        warn_once(
            (self.env, what, self.name),
            f"{obs_label(self.env, what, self.name)} holds {error}: this and later ones are "
            f"{treatment} (--env.out-of-bounds {alternatives})",
        )
        if self.out_of_bounds == "pass":
            return part
        return np.clip(part, self.space.low, self.space.high).astype(part.dtype)


def warn_once(key: tuple[str, ...], message: str) -> None:
    """Logs the message of this key, unless it was logged before."""
    if key not in _already_warned:
        _already_warned.add(key)
        log.warning(message)


def obs_label(env: str, what: str, name: str) -> str:
    """A part of an observation in words, for messages."""
    label = what if name == "obs" else f"{what} {name!r}"
    return f"environment {env!r}: {label}" if env else label


def read_obs(fields: Mapping[str, ObsField], obs: Any, what: str) -> dict[str, Tensor]:
    """The observations `[B, *O]` of each field; EnvError where they are not of their space."""
    found = {}
    for name, reader in fields.items():
        label = obs_label(reader.env, what, name)
        try:
            part = found[name] = torch.as_tensor(reader(obs, what))
            is_valid, reason = part.shape[1:] == reader.modality.shape, ""
        except OutOfBoundsError as out_of_bounds:
            is_box = isinstance(reader.space, spaces.Box)
            alternative = ", or set --env.out-of-bounds to pass or clip" if is_box else ""
            raise EnvError(
                f"{label} holds {out_of_bounds}, outside its space {reader.space}: correct the "
                f"environment or its observation_space{alternative}"
            ) from None
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            is_valid, reason = False, f": {error}"
        if not is_valid:
            raise EnvError(f"{label} is not of its space {reader.space}{reason}")
        if part.is_floating_point():
            check_numbers(label, part)
    return found


def check_numbers(label: str, numbers: Tensor) -> None:
    """Raises EnvError for NaN, infinities and numbers that are too large."""
    if not (numbers.abs() <= MAX_ABS_VALUE).all():
        problem = TOO_LARGE if bool(numbers.isfinite().all()) else "NaN or infinity"
        raise EnvError(f"{label} holds {problem}")


def as_is(part: Any) -> Any:
    return part


def to_vectors(part: Any, shape: tuple[int, ...], double: bool = False) -> np.ndarray:
    part = np.asarray(part)
    return part.reshape(len(part), *shape).astype(np.float64 if double else np.float32)


def _channels_first(part: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    part = np.moveaxis(part, -1, -3) if last else part
    return part.reshape(len(part), *shape)


def as_bytes(part: Any) -> Any:
    """Raises ValueError for numbers that are no bytes."""
    if isinstance(part, Tensor) or part.dtype == np.uint8:
        return part
    converted = part.astype(np.uint8)
    if (converted != part).any():
        raise ValueError("it holds numbers that are no bytes")
    return converted


def to_bytes(part: Any, shape: tuple[int, ...], last: bool) -> np.ndarray:
    part = _channels_first(np.asarray(part), shape, last)
    part = 255 * part.astype(np.uint8) if part.dtype == np.bool_ else as_bytes(part)
    return np.ascontiguousarray(part)


def to_floats(
    part: Any, shape: tuple[int, ...], last: bool, origin: np.ndarray | None
) -> np.ndarray:
    part = np.asarray(part)
    part = part if origin is None else part - origin
    return np.ascontiguousarray(_channels_first(part, shape, last), np.float32)


def to_downsampled(part: Any, convert: Convert, factor: int, dtype: torch.dtype) -> Tensor:
    """Images -> `[B, C, ceil(H / factor), ceil(W / factor)]`: the means over squares of pixels; at
    the last row and column a square may be cut off."""
    image = torch.as_tensor(convert(part))
    mean = avg_pool2d(image.float(), factor, ceil_mode=True, count_include_pad=False)
    return (mean if dtype.is_floating_point else mean.round()).to(dtype)


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


@dataclass
class Interface:
    """An environment's spaces, and how the agent reads them (`interface_to`)."""

    observation_space: Space
    action_space: Space
    obs_fields: Mapping[str, ObsField] = field(compare=False)
    action_adapter: ActionAdapter = field(compare=False)

    def read(
        self, obs: Any, sizes: Collection[int] | None, what: str = "observation"
    ) -> Observation:
        """The observation that `env.reset` or `env.step` returned -> tensors for the agent's
        encoders, `[B, *O]`.

        `sizes`: the allowed batch sizes; None for a single environment, whose observations have no
        batch axis. Raises ConfigError, with the part and the environment that is wrong, for values
        that are not of the observation space, or not finite."""
        used_paths = {reader.path for reader in self.obs_fields.values()}
        arrays: dict[Path, np.ndarray] = {}
        for path, space, part in _checked_leaves(self.observation_space, obs, what):
            if path in used_paths:
                label = _label(what, path)
                array = _array(part, space, label)
                array = array[None] if sizes is None else array
                _check_shape(array, space, sizes, label)
                arrays[path] = _cast(array, space, sizes is not None, label)
        num_envs = len(next(iter(arrays.values())))
        if any(len(array) != num_envs for array in arrays.values()):
            lengths = ", ".join(f"{_label(what, p)} of {len(a)}" for p, a in arrays.items())
            raise ConfigError(f"the {what}'s parts are of different numbers of envs: {lengths}")
        try:
            return self._convert(arrays, what)
        except ConfigError:
            for env in range(num_envs) if num_envs > 1 else ():  # only to name the environment
                row = {path: array[env : env + 1] for path, array in arrays.items()}
                self._convert(row, f"{what} of environment {env}")
            raise

    def env_action(self, action: Tensor, batch: bool) -> Any:
        """Actions `[B, A]` in [-1, 1] -> the argument of `env.step`: a batch, or the action of a
        single environment."""
        if action.dtype == torch.bfloat16:  # NumPy has no such type
            action = action.float()
        native = self.action_adapter.to_env(action.detach().cpu().numpy())
        if batch:
            return native
        is_number = isinstance(self.action_space, spaces.Discrete)
        return native[0] if is_number else np.asarray(native[0])

    def _convert(self, arrays: Mapping[Path, np.ndarray], what: str) -> Observation:
        fields = {n: read._replace(path=(read.path,)) for n, read in self.obs_fields.items()}
        try:
            found = read_obs(fields, arrays, what)
        except EnvError as error:  # here the user gave the observation
            raise ConfigError(str(error)) from None
        return found.get("obs", found)


def _checked_leaves(
    space: Space, obs: Any, what: str, path: Path = ()
) -> Iterator[tuple[Path, Space, Any]]:
    """The parts of an observation, each with its path and its space."""
    label = _label(what, path)
    if isinstance(space, spaces.Dict):
        _check_keys(space, obs, label)
        for key, part in space.spaces.items():
            yield from _checked_leaves(part, obs[key], what, (*path, key))
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space.spaces):
            raise ConfigError(
                f"the {label} is {_describe(obs)}; it must be a tuple of {len(space.spaces)} parts"
            )
        for index, (part, found) in enumerate(zip(space.spaces, obs, strict=True)):
            yield from _checked_leaves(part, found, what, (*path, index))
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


MAX_COPIED, ITEM_COST, MAX_AXES = 2**27, 128, 64
"""Most numbers that are copied out of lists into one array; how many of them the work for one item
of a list counts for; and the most axes of an array."""


def to_array(part: Any) -> np.ndarray:
    """A tensor, an array or lists of them as one array. ConfigError for lists of too much: an array
    in one may be a view that repeats a few numbers, and a list may hold another many times. Raises
    whatever else the conversion of an object of any kind raises."""
    if isinstance(part, Tensor):
        dense = part.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    if isinstance(part, (list, tuple)) and _copying_cost(part) > MAX_COPIED:
        raise ConfigError("lists of too many numbers; it must be one array")
    return np.asarray(part)


def _copying_cost(part: Any, depth: int = MAX_AXES) -> int:
    """How many numbers a conversion of nested lists copies, and its work for items; counted no
    further than MAX_COPIED."""
    if not (isinstance(part, (list, tuple)) and depth):
        return prod(part.shape) if isinstance(part, (np.ndarray, Tensor)) else 0
    cost = 0
    for item in part:
        cost += ITEM_COST + _copying_cost(item, depth - 1)
        if cost > MAX_COPIED:
            break
    return cost


def _array(part: Any, space: Space, label: str) -> np.ndarray:
    """The part as an array of numbers that the space's dtype can hold."""
    if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_quantized):
        raise ConfigError(f"the {label} is a sparse or quantized tensor; it must be dense")
    if np.ma.isMaskedArray(part):
        raise ConfigError(f"the {label} is a masked array; it must be a plain one")
    try:
        array = to_array(part)
    except ConfigError as error:
        raise ConfigError(f"the {label} is {error}") from None
    except Exception:  # whatever the conversion of an object of any kind raises
        raise ConfigError(f"the {label} is {_describe(part)}, not an array of numbers") from None
    is_integer = _dtype(space).kind != "f"
    if array.dtype.kind not in NUMERIC_KINDS or (array.dtype.kind == "f" and is_integer):
        numbers = f"whole numbers of {space}" if is_integer else f"numbers of {_dtype(space)}"
        raise ConfigError(f"the {label} is {_describe(array)}; it must hold {numbers}")
    return array


def _check_shape(
    array: np.ndarray, space: Space, sizes: Collection[int] | None, label: str
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


def _cast(array: np.ndarray, space: Space, batch: bool, label: str) -> np.ndarray:
    """The array in the space's dtype; ConfigError where that changes a number, or where one is
    not finite."""
    dtype = _dtype(space)
    if dtype.kind == "f":
        # never narrower than float32, in which the agent computes
        dtype = np.result_type(dtype, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if dtype.kind == "f":
        is_ok, problem = np.isfinite(array), "NaN or infinity"
        if is_ok.all():
            is_ok = np.abs(converted) <= MAX_ABS_VALUE
            problem = TOO_LARGE
    else:
        is_ok, problem = converted == array, f"a number that is none of {space}"
    is_valid = is_ok.reshape(len(array), -1).all(1)
    if not is_valid.all():
        where = f" of environment {int(np.flatnonzero(~is_valid)[0])}" if batch else ""
        raise ConfigError(f"the {label}{where} holds {problem}")
    return converted


def _dtype(space: Space) -> np.dtype:
    return np.dtype(space.dtype or np.float32)


def _describe(part: Any) -> str:
    """The type of a value, in words."""
    if isinstance(part, (np.ndarray, Tensor)):
        return f"an array of {part.dtype} {tuple(part.shape)}"
    return f"a {type(part).__name__}"
