"""Gymnasium spaces: their leaves and limits, their JSON form without loss, and their differences in
words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from modules.types import ConfigError

MAX_DEPTH, MAX_NUMBERS = 16, 10_000_000
"""Levels of nested spaces, and numbers of one space, that are read from a file."""
ROUNDING_TOLERANCE = 1e-5
"""Fraction of its range by which a number may leave its space through rounding."""

Path: TypeAlias = tuple[Any, ...]
"""The keys that lead to a leaf."""


def named_leaves(space: spaces.Space) -> dict[str, tuple[Path, spaces.Space]]:
    """The leaves of an observation space by name, "obs" where there is but one; ConfigError for two
    of the same name."""
    leaves = dict(_leaves(space))
    if list(leaves) == [()]:
        return {"obs": ((), space)}
    found: dict[str, tuple[Path, spaces.Space]] = {}
    for path, leaf in leaves.items():
        name = "/".join(str(key).replace(".", "_") for key in path)
        name = "obs_" if name == "obs" else name  # "obs" is reserved for a single leaf
        if name in found:
            raise ConfigError(f"two parts of the observation would both be called {name!r}")
        found[name] = (path, leaf)
    return found


def _leaves(space: spaces.Space, path: Path = ()) -> Iterator[tuple[Path, spaces.Space]]:
    parts: Mapping[Any, spaces.Space] | None = None
    if isinstance(space, spaces.Dict):
        parts = dict(space.spaces)
    elif isinstance(space, spaces.Tuple):
        parts = dict(enumerate(space.spaces))
    if parts is None:
        yield path, space
        return
    for key, part in parts.items():
        yield from _leaves(part, (*path, key))


def limits(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """The lowest and the highest numbers of a space; None where there are none."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8)
    if not isinstance(space, spaces.Box):
        return None
    if space.dtype == np.uint8 and not space.low.any() and (space.high == 255).all():
        return None
    if space.dtype == np.bool_:
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (low, high) if np.isfinite(low).any() or np.isfinite(high).any() else None


class Bounds(NamedTuple):
    """The limits of a space, and the tolerance for rounding."""

    low: np.ndarray
    high: np.ndarray
    tolerance: np.ndarray


def bounds_of(space: spaces.Space) -> Bounds | None:
    """The limits of a space, with a tolerance for floating-point numbers; None where it has
    none."""
    found = limits(space)
    if found is None:
        return None
    low, high = found
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return Bounds(low, high, np.zeros(()))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
        size = np.maximum(np.where(np.isfinite(low), abs(low), abs(high)), 1.0)
    return Bounds(low, high, ROUNDING_TOLERANCE * np.where(np.isfinite(span), span, size))


def to_json(space: spaces.Space) -> dict[str, Any]:
    """A space as plain data; TypeError where it has no such form."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
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
        return {"_type": "Tuple", "spaces": [to_json(part) for part in space.spaces]}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise TypeError("keys that are no strings can't be distinguished in JSON")
        return {"_type": "Dict", "spaces": [[k, to_json(part)] for k, part in space.spaces.items()]}
    raise TypeError(f"{space} has no JSON form")


def from_json(data: Any, depth: int = 0) -> spaces.Space:
    """The reverse of `to_json`; any error that a wrong entry causes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"spaces are nested more than {MAX_DEPTH} deep")
    return READERS[data["_type"]](data, depth + 1)


READERS: Mapping[str, Callable[[Any, int], spaces.Space]] = {
    "Box": lambda data, depth: _read_box(data),
    "Discrete": lambda data, depth: spaces.Discrete(
        int(data["n"]), start=int(data["start"]), dtype=np.dtype(data["dtype"]).type
    ),
    "MultiDiscrete": lambda data, depth: spaces.MultiDiscrete(
        np.array(data["nvec"]), np.dtype(data["dtype"]).type, start=np.array(data["start"])
    ),
    "MultiBinary": lambda data, depth: spaces.MultiBinary(
        _shape(data["n"]) if isinstance(data["n"], list) else _shape([data["n"]])[0]
    ),
    "Text": lambda data, depth: spaces.Text(
        int(data["max_length"]), min_length=int(data["min_length"]), charset=data["characters"]
    ),
    "Tuple": lambda data, depth: spaces.Tuple([from_json(part, depth) for part in data["spaces"]]),
    "Dict": lambda data, depth: spaces.Dict([(k, from_json(p, depth)) for k, p in data["spaces"]]),
}


def _read_box(data: Any) -> spaces.Box:
    shape, dtype = _shape(data["shape"]), np.dtype(data["dtype"])
    low, high = (
        np.broadcast_to(np.array(_from_json_number(data[name]), dtype=dtype), shape)
        for name in ("low", "high")
    )
    return spaces.Box(low, high, shape, dtype.type)


def _shape(data: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in data)
    if min(shape, default=0) < 0 or np.prod(shape, dtype=np.float64) > MAX_NUMBERS:
        raise ValueError(f"shape {shape} is not one of at most {MAX_NUMBERS} numbers")
    return shape


def _numbers(bounds: np.ndarray) -> Any:
    """Nested lists, or one number where all are the same; infinity, which JSON lacks, as a
    string."""
    if bounds.size and (bounds == bounds.flat[0]).all():
        bounds = bounds.flat[0]
    return _to_json_number(bounds.tolist())


def _to_json_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_json_number(part) for part in value]
    return value if np.isfinite(value) else str(value)


def _from_json_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json_number(part) for part in value]
    return float(value) if isinstance(value, str) else value


class Difference(NamedTuple):
    """A difference between two environments, in words."""

    in_kind: bool  # of names, shapes, dtypes or signals, not of bounds alone
    one: str
    two: str


def differences(label: str, one: spaces.Space, two: spaces.Space) -> Iterator[Difference]:
    """The difference in kind, or else the differences in bounds; `label`: the name of both."""
    kinds = [_describe_kind(space) for space in (one, two)]
    if kinds[0] != kinds[1]:
        yield Difference(True, *(f"{label} {kind}" for kind in kinds))
        return
    for name, a, b in _leaf_pairs(label, one, two):
        if not (isinstance(a, (spaces.MultiBinary, spaces.Text)) or a == b):
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


def _leaf_pairs(
    name: str, one: spaces.Space, two: spaces.Space
) -> Iterator[tuple[str, spaces.Space, spaces.Space]]:
    if isinstance(one, spaces.Dict) and isinstance(two, spaces.Dict):
        for key, part in one.spaces.items():
            yield from _leaf_pairs(f"{name} {key!r}", part, two.spaces[key])
    elif isinstance(one, spaces.Tuple) and isinstance(two, spaces.Tuple):
        for index, (a, b) in enumerate(zip(one.spaces, two.spaces, strict=True)):
            yield from _leaf_pairs(f"{name} {index}", a, b)
    else:
        yield name, one, two
