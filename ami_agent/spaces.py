"""Spaces of environments: written down without loss, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ami_agent.interface import Interface
from ami_agent.life import Spec, WorldConfig, spec_of
from modules.types import UnusableInput

DEEPEST, MOST = 16, 10_000_000
"""Levels of nested spaces, and numbers of one space, that are read from a file."""


def to_json(spec: Spec) -> dict[str, Any] | None:
    """The spaces and signals of an environment as plain data; None where a part can't be written
    down (the environment then has to be made for its spaces to be known)."""
    if spec.interface is None:
        return None
    try:
        return {
            "observation": _written(spec.interface.observation_space),
            "action": _written(spec.interface.action_space),
            "interoception": list(spec.interoception),
        }
    except TypeError:
        return None


def from_json(data: Any, config: WorldConfig, source: str) -> Spec:
    """The reverse; UnusableInput where the data are not of spaces."""
    try:
        names = data["interoception"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"interoception is {names!r}")
        interface = config.interface(_read(data["observation"]), _read(data["action"]))
        return spec_of(interface, tuple(names))
    except UnusableInput:
        raise
    except (AssertionError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise UnusableInput(
            f"{source} describes no spaces: {type(error).__name__} {error}".splitlines()[0]
        ) from None


def _written(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
        return {"is": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, spaces.Discrete):
        start, dtype = int(space.start), np.dtype(space.dtype).name
        return {"is": "Discrete", "n": int(space.n), "start": start, "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"is": "MultiDiscrete", **sizes, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiBinary):
        single = isinstance(space.n, (int, np.integer))
        return {"is": "MultiBinary", "n": space.shape[0] if single else list(space.shape)}
    if isinstance(space, spaces.Text):
        lengths = {"min_length": space.min_length, "max_length": space.max_length}
        return {"is": "Text", **lengths, "characters": "".join(sorted(space.character_set))}
    if isinstance(space, spaces.Tuple):
        return {"is": "Tuple", "spaces": [_written(part) for part in space.spaces]}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise TypeError("keys that are no strings can't be told apart in JSON")
        return {"is": "Dict", "spaces": [[k, _written(part)] for k, part in space.spaces.items()]}
    raise TypeError(f"{space} can't be written down")


def _read(data: Any, depth: int = 0) -> spaces.Space:
    if depth > DEEPEST:
        raise ValueError(f"spaces are nested more than {DEEPEST} deep")
    return READERS[data["is"]](data, depth + 1)


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
    "Tuple": lambda data, depth: spaces.Tuple([_read(part, depth) for part in data["spaces"]]),
    "Dict": lambda data, depth: spaces.Dict([(k, _read(p, depth)) for k, p in data["spaces"]]),
}  # fmt: skip


def _read_box(data: Any) -> spaces.Box:
    shape, dtype = _shape(data["shape"]), np.dtype(data["dtype"])
    low, high = (
        np.broadcast_to(np.array(_restored(data[name]), dtype=dtype), shape)
        for name in ("low", "high")
    )
    return spaces.Box(low, high, shape, dtype.type)


def _shape(data: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in data)
    if min(shape, default=0) < 0 or np.prod(shape, dtype=np.float64) > MOST:
        raise ValueError(f"shape {shape} is not one of at most {MOST} numbers")
    return shape


def _numbers(bounds: np.ndarray) -> Any:
    """Nested lists, or one number where all are the same; JSON has no infinity, so it is a word."""
    if bounds.size and (bounds == bounds.flat[0]).all():
        bounds = bounds.flat[0]
    return _finite(bounds.tolist())


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value if np.isfinite(value) else str(value)


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(part) for part in value]
    return float(value) if isinstance(value, str) else value


class Difference(NamedTuple):
    """What differs between two environments, in words."""

    of_kind: bool  # names, shapes, dtypes or signals, not bounds alone
    one: str
    two: str


def check_same_spaces(trained: Spec, other: Spec, config: WorldConfig) -> None:
    """Raises UnusableInput unless an agent of one spec may act in the environment of the other.

    What differs in kind never fits: names, shapes, dtypes, signals. What differs in bounds alone
    fits where the environment's settings say so (`accept_other_spaces`)."""
    for found in differences(trained, other):
        if found.of_kind:
            raise UnusableInput(
                f"{config.id} has {found.two}, but the agent is made for {found.one}"
            )
        if not config.accept_other_spaces:
            raise UnusableInput(
                f"{config.id} has {found.two}, but the agent was trained with {found.one}: what it "
                "learnt means something else there (with accept_other_spaces it acts there anyway)"
            )


def differences(one: Spec, two: Spec) -> Iterator[Difference]:
    """What differs in kind, then what differs in bounds."""
    told = [f"{spec.told()} and {spec.done()}" for spec in (one, two)]
    if told[0] != told[1]:
        yield Difference(True, *told)
        return
    if one.interoception != two.interoception:
        names = (", ".join(spec.interoception) for spec in (one, two))
        yield Difference(True, *(f"interoception {found}" for found in names))
    if one.interface is None or two.interface is None:
        return
    both = _both(one.interface, two.interface)
    kinds = [
        Difference(True, f"{what} {kind(first)}", f"{what} {kind(second)}")
        for what, first, second in both
        if kind(first) != kind(second)
    ]
    yield from kinds
    for what, first, second in () if kinds else both:
        for name, a, b in _leaves(what, first, second):
            if not same_bounds(a, b):
                yield Difference(False, f"{name} {bounds(a)}", f"{name} {bounds(b)}")


def _both(
    one: Interface, two: Interface
) -> tuple[tuple[str, spaces.Space, spaces.Space], tuple[str, spaces.Space, spaces.Space]]:
    return (
        ("actions", one.action_space, two.action_space),
        ("observations", one.observation_space, two.observation_space),
    )


def kind(space: spaces.Space) -> str:
    """A space without its bounds, in words."""
    if isinstance(space, spaces.Dict):
        parts = sorted(space.spaces.items(), key=lambda part: str(part[0]))
        return "Dict(" + ", ".join(f"{key!r}: {kind(part)}" for key, part in parts) + ")"
    if isinstance(space, spaces.Tuple):
        return "Tuple(" + ", ".join(map(kind, space.spaces)) + ")"
    if isinstance(space, (spaces.Text, spaces.Discrete, spaces.MultiDiscrete)):
        return type(space).__name__  # how many choices there are is what the spec says
    shape = "" if space.shape is None else f" {space.shape}"
    return f"{type(space).__name__}{shape}" + (f" {space.dtype}" if space.dtype else "")


def same_bounds(one: spaces.Space, two: spaces.Space) -> bool:
    """Whether the same numbers mean the same, for spaces of one kind."""
    return isinstance(one, (spaces.MultiBinary, spaces.Text)) or one == two


def bounds(space: spaces.Space) -> str:
    """A space in words, on one line."""
    if isinstance(space, spaces.Box):
        low, high = (np.array2string(part.ravel()[:8], separator=", ", threshold=8)
                     for part in _shown(space))  # fmt: skip
        return f"from {low} to {high}".replace("\n", "")
    return str(space).replace("\n", " ")


def _shown(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
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
