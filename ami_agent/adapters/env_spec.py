"""The spec of an environment: what it delivers and takes, checked and converted for the agent; its
JSON form without loss, and the differences of two specs in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from ami_agent.adapters.actions import ActionAdapter, action_adapter
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.adapters.observations import (
    Layout,
    ModalitySpec,
    ObsField,
    OutOfBounds,
    Path,
    leaves,
    obs_fields,
    read_obs,
)
from modules.types import ConfigError, Observation, Transition

MAX_ABS_VALUE = 1e18
"""The largest number that may be observed: the square of a much larger one is infinite in float32,
and would make results wrong without an error."""
NUMERIC_KINDS = "biuf"
"""Kinds of NumPy arrays that hold numbers: booleans, integers, floats."""
MAX_DEPTH, MAX_NUMBERS = 16, 10_000_000
"""Levels of nested spaces, and numbers of one space, that are read from a file."""


@dataclass
class Interface:
    """An environment's spaces, and the agent's readings of them."""

    observation_space: Space
    action_space: Space
    frame_stack: int = 1
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    out_of_bounds: OutOfBounds = field(default="pass", compare=False)
    env: str = field(default="", compare=False)
    obs_fields: Mapping[str, ObsField] = field(init=False, compare=False)
    action_adapter: ActionAdapter = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for spaces that the agent can't observe or act in."""
        self.obs_fields = obs_fields(
            self.observation_space, self.frame_stack, layouts=self.layouts,
            out_of_bounds=self.out_of_bounds, env=self.env,
        )  # fmt: skip
        self.action_adapter = action_adapter(self.action_space)

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


class EnvironmentSpec(NamedTuple):
    """The modalities, actions and interoceptive signals of an environment."""

    modalities: Mapping[str, ModalitySpec]  # by name; "obs" where there is but one
    action_dim: int
    interoception: tuple[str, ...]  # the reward, and further signals that the environment declares
    choices: tuple[int, ...] = ()  # the number of options of each discrete action; () where none
    interface: Interface | None = None  # None where the spec was not made from spaces

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: modality.shape for name, modality in self.modalities.items()}

    def empty_transition(self, num_envs: int) -> Transition:
        """A step `[B, ...]` without meaning, which lends the replay buffer its shapes and types."""
        obs = self.zeros(num_envs)
        done = torch.empty(num_envs, dtype=torch.bool)
        signals = torch.empty(num_envs, len(self.interoception), dtype=torch.float64)
        return Transition(obs, torch.empty(num_envs, self.action_dim), signals, obs, done, done)

    def describe_obs(self) -> str:
        """The modalities in words."""
        named = [(n, f"{s.shape} {s.dtype}") for n, s in self.modalities.items()]
        return ", ".join(text if name == "obs" else f"{name} {text}" for name, text in named)

    def describe_actions(self) -> str:
        """The actions in words."""
        sizes = " and ".join(f"one of {size}" for size in self.choices)
        return f"choices of {sizes}" if sizes else f"{self.action_dim} actions"

    def with_scalar(self, name: str) -> EnvironmentSpec:
        """The spec with one further modality, a single number."""
        return self._replace(modalities={**self.modalities, name: ModalitySpec((1,))})

    def zeros(self, batch_size: int) -> Observation:
        """An observation `[B, *O]` of zeros."""
        parts = {
            n: torch.zeros(batch_size, *s.shape, dtype=s.dtype) for n, s in self.modalities.items()
        }
        return parts.get("obs", parts)


def env_spec_of(interface: Interface, interoception: tuple[str, ...]) -> EnvironmentSpec:
    """The spec of an environment with these spaces and signals."""
    modalities = {name: reader.modality for name, reader in interface.obs_fields.items()}
    adapter = interface.action_adapter
    return EnvironmentSpec(modalities, adapter.size, interoception, adapter.choices, interface)


def to_json(spec: EnvironmentSpec) -> dict[str, Any] | None:
    """The spaces and signals of an environment as plain data; None where a space has no such form
    (its spec is then known only by making the environment)."""
    if spec.interface is None:
        return None
    try:
        return {
            "observation": space_to_json(spec.interface.observation_space),
            "action": space_to_json(spec.interface.action_space),
            "interoception": list(spec.interoception),
        }
    except TypeError:
        return None


def from_json(
    data: Any, make_interface: Callable[[Space, Space], Interface], source: str
) -> EnvironmentSpec:
    """The reverse of `to_json`; ConfigError where the data describe no spaces."""
    try:
        names = data["interoception"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"interoception is {names!r}")
        interface = make_interface(
            space_from_json(data["observation"]), space_from_json(data["action"])
        )
        return env_spec_of(interface, tuple(names))
    except ConfigError:
        raise
    except (AssertionError, LookupError, OverflowError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ConfigError(f"{source} describes no spaces: {reason[:300]}") from None


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A space as plain data; TypeError where it has no such form."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds_to_json(space.low), "high": _bounds_to_json(space.high)}
        return {"_type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, spaces.Discrete):
        start, dtype = int(space.start), np.dtype(space.dtype).name
        return {"_type": "Discrete", "n": int(space.n), "start": start, "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"_type": "MultiDiscrete", **sizes, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiBinary):
        single = isinstance(space.n, (int, np.integer))
        return {"_type": "MultiBinary", "n": space.shape[0] if single else list(space.shape)}
    if isinstance(space, spaces.Text):
        lengths = {"min_length": space.min_length, "max_length": space.max_length}
        return {"_type": "Text", **lengths, "characters": "".join(sorted(space.character_set))}
    if isinstance(space, spaces.Tuple):
        return {"_type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise TypeError("keys that are no strings can't be distinguished in JSON")
        return {
            "_type": "Dict",
            "spaces": [[k, space_to_json(part)] for k, part in space.spaces.items()],
        }
    raise TypeError(f"{space} has no JSON form")


def _bounds_to_json(bounds: np.ndarray) -> Any:
    """Nested lists, or one number where all are the same; infinity, which JSON lacks, as a
    string."""
    if bounds.size and (bounds == bounds.flat[0]).all():
        bounds = np.asarray(bounds.flat[0])
    return np.where(np.isfinite(bounds), bounds.astype(object), bounds.astype(str)).tolist()


def space_from_json(data: Any, depth: int = 0) -> Space:
    """The reverse of `space_to_json`; any error that a wrong entry causes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"spaces are nested more than {MAX_DEPTH} deep")
    kind = data["_type"]
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part, depth + 1) for part in data["spaces"]])
    if kind == "Dict":
        return spaces.Dict([(key, space_from_json(p, depth + 1)) for key, p in data["spaces"]])
    if kind == "Text":
        lengths = {"max_length": int(data["max_length"]), "min_length": int(data["min_length"])}
        return spaces.Text(**lengths, charset=data["characters"])
    if kind == "MultiBinary":
        n = data["n"]
        return spaces.MultiBinary(_shape(n) if isinstance(n, list) else _shape([n])[0])
    dtype = np.dtype(data["dtype"])
    if kind == "Discrete":
        n, start = int(data["n"]), int(data["start"])
        # Gymnasium 1.1 knows int64 alone
        other = {} if dtype == np.int64 else {"dtype": dtype.type}
        return spaces.Discrete(n, start=start, **other)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            np.array(data["nvec"]), dtype.type, start=np.array(data["start"])
        )
    if kind == "Box":
        shape = _shape(data["shape"])
        low, high = (np.array(data[name], dtype) for name in ("low", "high"))
        low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        return spaces.Box(low, high, shape, dtype.type)
    raise LookupError(kind)


def _shape(data: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in data)
    if min(shape, default=0) < 0 or np.prod(shape, dtype=np.float64) > MAX_NUMBERS:
        raise ValueError(f"shape {shape} is not one of at most {MAX_NUMBERS} numbers")
    return shape


class Difference(NamedTuple):
    """A difference between two environments, in words."""

    in_kind: bool  # of names, shapes, dtypes or signals, not of bounds alone
    one: str
    two: str


def differences(one: EnvironmentSpec, two: EnvironmentSpec) -> Iterator[Difference]:
    """The differences in kind, or else the differences in bounds."""
    descriptions = [f"{spec.describe_obs()} and {spec.describe_actions()}" for spec in (one, two)]
    if descriptions[0] != descriptions[1]:
        yield Difference(True, *descriptions)
        return
    if one.interoception != two.interoception:
        names = (", ".join(spec.interoception) for spec in (one, two))
        yield Difference(True, *(f"interoception {found}" for found in names))
    if one.interface is None or two.interface is None:
        return
    a, b = one.interface, two.interface
    found = [
        *_space_differences("actions", a.action_space, b.action_space),
        *_space_differences("observations", a.observation_space, b.observation_space),
    ]
    yield from [difference for difference in found if difference.in_kind] or found


def _space_differences(label: str, one: spaces.Space, two: spaces.Space) -> Iterator[Difference]:
    """`label`: the name of both spaces."""
    kinds = [_describe_kind(space) for space in (one, two)]
    if kinds[0] != kinds[1]:
        yield Difference(True, *(f"{label} {kind}" for kind in kinds))
        return
    others = dict(leaves(two))
    for path, a in leaves(one):
        b = others[path]
        if not (isinstance(a, (spaces.MultiBinary, spaces.Text)) or a == b):
            name = " ".join([label, *map(repr, path)])
            yield Difference(False, *(f"{name} {_describe_bounds(space)}" for space in (a, b)))


def _describe_kind(space: spaces.Space) -> str:
    """A space without its bounds, in words."""
    if isinstance(space, spaces.Dict):
        parts = sorted(space.spaces.items(), key=lambda part: str(part[0]))
        return "Dict(" + ", ".join(f"{key!r}: {_describe_kind(part)}" for key, part in parts) + ")"
    if isinstance(space, spaces.Tuple):
        return "Tuple(" + ", ".join(map(_describe_kind, space.spaces)) + ")"
    if isinstance(space, (spaces.Text, spaces.Discrete, spaces.MultiDiscrete)):
        return type(space).__name__  # the number of options is part of `EnvironmentSpec`
    shape = "" if space.shape is None else f" {space.shape}"
    return f"{type(space).__name__}{shape}" + (f" {space.dtype}" if space.dtype else "")


def _describe_bounds(space: spaces.Space) -> str:
    """A space in words, on one line."""
    if not isinstance(space, spaces.Box):
        return str(space).replace("\n", " ")
    bounds = (space.low, space.high)
    if all((part == part.flat[0]).all() for part in bounds):
        bounds = (space.low.flat[0:1], space.high.flat[0:1])
    low, high = (np.array2string(b.ravel()[:8], separator=", ", threshold=8) for b in bounds)
    return f"from {low} to {high}".replace("\n", "")


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


def _array(part: Any, space: Space, label: str) -> np.ndarray:
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
            problem = f"a number beyond {MAX_ABS_VALUE:g}, too large"
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
