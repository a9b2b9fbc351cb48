"""The spec of an environment: what it delivers and takes, checked and converted for the agent; its
JSON form without loss, and the differences of two specs in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces

from ami_agent.adapters.spaces import leaves
from ami_agent.adapters.tensors import Interface, ModalitySpec
from modules.types import ConfigError, Observation, Transition

MAX_DEPTH, MAX_NUMBERS = 16, 10_000_000
"""Levels of nested spaces, and numbers of one space, that are read from a file."""


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
        if not (isinstance(a, (spaces.MultiBinary, spaces.Text)) or _is_same(a, b)):
            name = " ".join([label, *map(repr, path)])
            yield Difference(False, *(f"{name} {_describe_bounds(space)}" for space in (a, b)))


def _is_same(a: spaces.Space, b: spaces.Space) -> bool:
    """Equality up to rounding; Gymnasium takes all bounds below 1e-8 for equal."""
    if not (isinstance(a, spaces.Box) and isinstance(b, spaces.Box)):
        return bool(a == b)
    edges = ((a.low, b.low), (a.high, b.high))
    return a.dtype == b.dtype and all(np.allclose(*edge, rtol=1e-5, atol=0) for edge in edges)


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
