"""Spaces of environments: written down without loss, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ami_agent.adapters.env import EnvConfig, EnvironmentSpec, env_spec_of
from ami_agent.adapters.interface import Interface
from modules.types import ConfigError

MAX_DEPTH, MAX_NUMBERS = 16, 10_000_000
"""Levels of nested spaces, and numbers of one space, that are read from a file."""


def to_json(spec: EnvironmentSpec) -> dict[str, Any] | None:
    """The spaces and signals of an environment as plain data; None where a part can't be written
    down (the environment then has to be made for its spaces to be known)."""
    if spec.interface is None:
        return None
    try:
        return {
            "observation": _space_to_json(spec.interface.observation_space),
            "action": _space_to_json(spec.interface.action_space),
            "interoception": list(spec.interoception),
        }
    except TypeError:
        return None


def from_json(data: Any, config: EnvConfig, source: str) -> EnvironmentSpec:
    """The reverse; ConfigError where the data are not of spaces."""
    try:
        names = data["interoception"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"interoception is {names!r}")
        interface = config.interface(
            _space_from_json(data["observation"]), _space_from_json(data["action"])
        )
        return env_spec_of(interface, tuple(names))
    except ConfigError:
        raise
    except (AssertionError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} describes no spaces: {type(error).__name__} {error}".splitlines()[0]
        ) from None


def _space_to_json(space: spaces.Space) -> dict[str, Any]:
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
        return {"_type": "Tuple", "spaces": [_space_to_json(part) for part in space.spaces]}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise TypeError("keys that are no strings can't be told apart in JSON")
        return {
            "_type": "Dict",
            "spaces": [[k, _space_to_json(part)] for k, part in space.spaces.items()],
        }
    raise TypeError(f"{space} can't be written down")


def _space_from_json(data: Any, depth: int = 0) -> spaces.Space:
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
    "Tuple": lambda data, depth: spaces.Tuple([_space_from_json(part, depth) for part in data["spaces"]]),
    "Dict": lambda data, depth: spaces.Dict([(k, _space_from_json(p, depth)) for k, p in data["spaces"]]),
}  # fmt: skip


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
    """Nested lists, or one number where all are the same; JSON has no infinity, so it is a word."""
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
    """What differs between two environments, in words."""

    in_kind: bool  # names, shapes, dtypes or signals, not bounds alone
    one: str
    two: str


def check_same_spaces(trained: EnvironmentSpec, other: EnvironmentSpec, config: EnvConfig) -> None:
    """Raises ConfigError unless an agent of one spec may act in the environment of the other.

    What differs in kind never fits: names, shapes, dtypes, signals. What differs in bounds alone
    fits where the environment's settings say so (`accept_other_spaces`)."""
    for found in differences(trained, other):
        if found.in_kind:
            raise ConfigError(f"{config.id} has {found.two}, but the agent is made for {found.one}")
        if not config.accept_other_spaces:
            raise ConfigError(
                f"{config.id} has {found.two}, but the agent was trained with {found.one}: what it "
                "learnt means something else there (with accept_other_spaces it acts there anyway)"
            )


def differences(one: EnvironmentSpec, two: EnvironmentSpec) -> Iterator[Difference]:
    """What differs in kind, then what differs in bounds."""
    descriptions = [f"{spec.describe_obs()} and {spec.describe_actions()}" for spec in (one, two)]
    if descriptions[0] != descriptions[1]:
        yield Difference(True, *descriptions)
        return
    if one.interoception != two.interoception:
        names = (", ".join(spec.interoception) for spec in (one, two))
        yield Difference(True, *(f"interoception {found}" for found in names))
    if one.interface is None or two.interface is None:
        return
    both = _space_pairs(one.interface, two.interface)
    kinds = [
        Difference(True, f"{what} {describe_kind(first)}", f"{what} {describe_kind(second)}")
        for what, first, second in both
        if describe_kind(first) != describe_kind(second)
    ]
    yield from kinds
    for what, first, second in () if kinds else both:
        for name, a, b in _leaves(what, first, second):
            if not same_bounds(a, b):
                yield Difference(
                    False, f"{name} {describe_bounds(a)}", f"{name} {describe_bounds(b)}"
                )


def _space_pairs(
    one: Interface, two: Interface
) -> tuple[tuple[str, spaces.Space, spaces.Space], tuple[str, spaces.Space, spaces.Space]]:
    return (
        ("actions", one.action_space, two.action_space),
        ("observations", one.observation_space, two.observation_space),
    )


def describe_kind(space: spaces.Space) -> str:
    """A space without its bounds, in words."""
    if isinstance(space, spaces.Dict):
        parts = sorted(space.spaces.items(), key=lambda part: str(part[0]))
        return "Dict(" + ", ".join(f"{key!r}: {describe_kind(part)}" for key, part in parts) + ")"
    if isinstance(space, spaces.Tuple):
        return "Tuple(" + ", ".join(map(describe_kind, space.spaces)) + ")"
    if isinstance(space, (spaces.Text, spaces.Discrete, spaces.MultiDiscrete)):
        return type(space).__name__  # how many choices there are is what the spec says
    shape = "" if space.shape is None else f" {space.shape}"
    return f"{type(space).__name__}{shape}" + (f" {space.dtype}" if space.dtype else "")


def same_bounds(one: spaces.Space, two: spaces.Space) -> bool:
    """Whether the same numbers mean the same, for spaces of one kind."""
    return isinstance(one, (spaces.MultiBinary, spaces.Text)) or one == two


def describe_bounds(space: spaces.Space) -> str:
    """A space in words, on one line."""
    if isinstance(space, spaces.Box):
        low, high = (np.array2string(part.ravel()[:8], separator=", ", threshold=8)
                     for part in _bounds_shown(space))  # fmt: skip
        return f"from {low} to {high}".replace("\n", "")
    return str(space).replace("\n", " ")


def _bounds_shown(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    uniform = all((part == part.flat[0]).all() for part in (space.low, space.high))
    return (space.low.flat[0:1], space.high.flat[0:1]) if uniform else (space.low, space.high)


def _leaves(
    name: str, one: spaces.Space, two: spaces.Space
) -> Iterator[tuple[str, spaces.Space, spaces.Space]]:
    if isinstance(one, spaces.Dict) and isinstance(two, spaces.Dict):
        for key, part in one.spaces.items():
            yield from _leaves(f"{name} {key!r}", part, two.spaces[key])
    elif isinstance(one, spaces.Tuple) and isinstance(two, spaces.Tuple):
        for index, (a, b) in enumerate(zip(one.spaces, two.spaces, strict=True)):
            yield from _leaves(f"{name} {index}", a, b)
    else:
        yield name, one, two
