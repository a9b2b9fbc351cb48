"""Living in worlds: any Gymnasium vector world, seen by the mind as tensors and actions in [-1, 1].

A world may know more than its observations tell. `Guides` and `Examines` say what it may offer
beside Gymnasium's interface: the agent never needs it; baselines, probes and pictures do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from modules.configurator import Assignment
from modules.types import Observation, Transition, UnusableInput

Info: TypeAlias = Mapping[str, Any]


class Sense(NamedTuple):
    """What one sense delivers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Spec(NamedTuple):
    """What a body can sense, do and feel."""

    senses: Mapping[str, Sense]  # a body with one sense calls it "obs"
    action_dim: int
    interoception: tuple[str, ...]  # the reward, and whatever the world declares

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: sense.shape for name, sense in self.senses.items()}

    def told(self) -> str:
        """The senses, as a person would write them."""
        named = [(n, f"{s.shape} {s.dtype}") for n, s in self.senses.items()]
        return ", ".join(told if name == "obs" else f"{name} {told}" for name, told in named)

    def blank(self, count: int) -> Observation:
        """An observation `[count, *O]` of this kind, with no meaning."""
        parts = {n: torch.zeros(count, *s.shape, dtype=s.dtype) for n, s in self.senses.items()}
        return parts.get("obs", parts)


class Lived(NamedTuple):
    """One step of life in B worlds, and what the worlds said about it."""

    transition: Transition
    info: Info


@runtime_checkable
class Guides(Protocol):
    """A world with walks of its own: aimless ones to remember, and the shortest to the goal.
    Both return actions `[B, A]` in the world's units."""

    def walk(self) -> Any: ...
    def oracle(self) -> Any: ...


@runtime_checkable
class Feels(Protocol):
    """A world that declares what a body feels beside the reward: `info["interoception"]`, `[B, I]`
    at every reset and step."""

    interoception_names: tuple[str, ...]


@runtime_checkable
class Examines(Protocol):
    """A world whose true state can be measured: `info["factors"]` `[B, F]`, named, and scripted
    exams with known outcomes for the world model."""

    factor_names: tuple[str, ...]

    def exams(self, seed: int = 0) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Which world, with which keyword arguments."""

    id: str
    variant: str = ""
    """Its keyword argument `variant`, where it has one."""
    options: dict[str, int | float | str] = field(default_factory=dict)
    """Further keyword arguments of the world."""

    def under(self, assignment: Assignment) -> WorldConfig:
        """The same world, judging this task."""
        return replace(self, options={**self.options, **assignment.options})

    def build(self, count: int, device: torch.device | str = "cpu", **options: Any) -> World:
        """`count` of these worlds; what `options` name replaces what the settings name."""
        variant = {"variant": self.variant} if self.variant else {}
        return World(self.id, count, torch.device(device), {**variant, **self.options, **options})


class World:
    """B worlds as the mind meets them."""

    def __init__(
        self, name: str, count: int, device: torch.device, options: Mapping[str, Any]
    ) -> None:
        try:
            self.envs = gymnasium.make_vec(name, num_envs=count, **options)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise UnusableInput(f"world {name!r} can't be made: {error}") from error
        self.count, self.device = count, device
        self.spec = _spec(self.envs)
        space = self.envs.single_action_space
        self.low, self.high = space.low, space.high  # type: ignore[attr-defined]

    def reset(self, seed: int | None = None, **options: Any) -> tuple[Observation, Info]:
        """World i starts the episode of seed + i; observation `[B, *O]`."""
        if seed is not None and not 0 <= seed < 2**31:
            raise UnusableInput(f"seed {seed} is out of range: it must be from 0 to {2**31 - 1}")
        self.envs.action_space.seed(seed)
        obs, info = self.envs.reset(seed=seed, options=options or None)
        return self.sensed(obs), info

    def step(self, obs: Observation, action: Tensor) -> Lived:
        """`obs` is what the last step ended with; actions `[B, A]` in [-1, 1]."""
        next_obs, reward, terminated, truncated, info = self.envs.step(self.to_world(action))
        transition = Transition(
            obs, action, self._felt(reward, info), self.sensed(next_obs),
            self.tensor(terminated), self.tensor(truncated),
        )  # fmt: skip
        return Lived(transition, info)

    def _felt(self, reward: Any, info: Info) -> Tensor:
        """`[B, I]`, in the order of the names in the spec."""
        felt = self.tensor(np.asarray(reward, dtype=np.float32))[:, None]
        if len(self.spec.interoception) == 1:
            return felt
        return torch.cat([felt, self.tensor(info["interoception"]).float()], 1)

    def sensed(self, obs: Any) -> Observation:
        """What the world's senses deliver, as tensors; UnusableInput for what is not finite."""
        sensed = {
            k: self.tensor(v) for k, v in (obs if isinstance(obs, dict) else {"obs": obs}).items()
        }
        for name, part in sensed.items():
            if part.is_floating_point() and not part.isfinite().all():
                which = "" if name == "obs" else f" {name!r}"
                raise UnusableInput(f"the world's observation{which} holds NaN or infinity")
        return sensed if isinstance(obs, dict) else sensed["obs"]

    def goal(self, info: Info) -> Observation | None:
        """What the world names as its goal, `[B, *O]`."""
        return self.sensed(info["goal"]) if "goal" in info else None

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def to_world(self, action: Tensor) -> np.ndarray:
        """Actions in [-1, 1] -> the world's units."""
        share = (action.detach().cpu().numpy() + 1) / 2
        return (self.low + share * (self.high - self.low)).astype(self.low.dtype)

    def from_world(self, action: Any) -> Tensor:
        """The world's units -> actions in [-1, 1]."""
        share = (np.asarray(action) - self.low) / (self.high - self.low)
        return self.tensor((2 * share - 1).astype(np.float32))

    @property
    def inner(self) -> Any:
        """The world itself, without Gymnasium's wrappers."""
        return self.envs.unwrapped

    def close(self) -> None:
        self.envs.close()


def _spec(envs: gymnasium.vector.VectorEnv) -> Spec:
    """Raises UnusableInput for spaces the mind can't handle, and says which would do."""
    obs, action = envs.single_observation_space, envs.single_action_space
    parts = dict(obs.spaces) if isinstance(obs, gymnasium.spaces.Dict) else {"obs": obs}
    for name, part in parts.items():
        if not isinstance(part, gymnasium.spaces.Box):
            which = "observations are" if name == "obs" else f"observation {name!r} is"
            raise UnusableInput(f"{which} {part}; the agent needs a Box, or a Dict of Boxes")
    if not isinstance(action, gymnasium.spaces.Box) or len(action.shape) != 1:
        raise UnusableInput(f"actions are {action}; the agent needs a one-dimensional Box")
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise UnusableInput(f"actions {action} have no finite bounds; the agent needs them")
    inner = envs.unwrapped
    felt = tuple(inner.interoception_names) if isinstance(inner, Feels) else ()
    senses = {
        name: Sense(part.shape, torch.as_tensor(np.empty(0, dtype=part.dtype)).dtype)  # type: ignore[arg-type]
        for name, part in parts.items()
    }
    return Spec(senses, action.shape[0], ("reward", *felt))


def seen(lived: Lived) -> Observation:
    """`[B, *O]` what a step ended with."""
    return lived.transition.next_obs


def ended(lived: Lived) -> Tensor:
    """`[B]` bool: the episodes that were over with this step."""
    return lived.transition.terminated | lived.transition.truncated


Act: TypeAlias = Callable[[Observation], Tensor]
"""Observation `[B, *O]` -> action `[B, A]` in [-1, 1]."""


def live(act: Act, world: World, obs: Observation) -> Iterator[Lived]:
    """Lives on from an observation, step by step, for ever; stopping is the listener's business.

    The step after an episode's end only resets: its action is ignored (Gymnasium's NEXT_STEP).
    """
    while True:
        lived = world.step(obs, act(obs))
        yield lived
        obs = seen(lived)


def walk(world: World) -> Act:
    """Aimless motion: the world's own, where it has one, else uniform over its actions."""
    if isinstance(world.inner, Guides):
        return lambda obs: world.from_world(world.inner.walk())
    return lambda obs: world.from_world(world.envs.action_space.sample())


def oracle(world: World) -> Act:
    """The shortest way to the goal; only for worlds that know it."""
    return lambda obs: world.from_world(world.inner.oracle())
