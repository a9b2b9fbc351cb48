"""Living in worlds: any Gymnasium vector world, seen by the mind as tensors and actions in [-1, 1].

A world may know more than its observations tell. `Guides` and `Examines` say what it may offer
beside Gymnasium's interface: the agent never needs it; baselines, probes and pictures do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

import numpy as np
import torch
import tyro
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from torch import Tensor

from ami_agent import infos
from ami_agent.failures import Failed, FailedInReset, NotMade
from ami_agent.guard import undisturbed
from ami_agent.interface import Interface
from ami_agent.layouts import Layout
from ami_agent.options import Options, check_options
from ami_agent.senses import OutOfBounds, Sense, ignored, told_by
from ami_agent.vectors import Worlds, at_once, make, own_limit, own_vector_space
from modules.configurator import Assignment
from modules.types import ALIVE, STEPS, Observation, Transition, UnusableInput, require

Info: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")


class Spec(NamedTuple):
    """What a body can sense, do and feel."""

    senses: Mapping[str, Sense]  # a body with one sense calls it "obs"
    action_dim: int
    interoception: tuple[str, ...]  # the reward, and whatever the world declares
    choices: tuple[int, ...] = ()  # of how many one is chosen, for each choice; () where none is
    interface: Interface | None = None  # the environment's spaces, where it was made of some

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: sense.shape for name, sense in self.senses.items()}

    def told(self) -> str:
        """The senses, as a person would write them."""
        named = [(n, f"{s.shape} {s.dtype}") for n, s in self.senses.items()]
        return ", ".join(told if name == "obs" else f"{name} {told}" for name, told in named)

    def done(self) -> str:
        """The actions, likewise."""
        sizes = " and ".join(f"one of {size}" for size in self.choices)
        return f"choices of {sizes}" if sizes else f"{self.action_dim} actions"

    def without_size_of(self, name: str) -> Spec:
        """The same, but for one observation that is a single number."""
        return self._replace(senses={**self.senses, name: Sense((1,), torch.float32)})

    def blank(self, count: int) -> Observation:
        """An observation `[count, *O]` of this kind, with no meaning."""
        parts = {n: torch.zeros(count, *s.shape, dtype=s.dtype) for n, s in self.senses.items()}
        return parts.get("obs", parts)


def spec_of(interface: Interface, interoception: tuple[str, ...]) -> Spec:
    """The spec of an environment with these spaces and signals."""
    senses = {name: reader.sense for name, reader in interface.senses.items()}
    deeds = interface.deeds
    return Spec(senses, deeds.size, interoception, deeds.choices, interface)


class Lived(NamedTuple):
    """One step of life in B worlds, and what the worlds said about it."""

    transition: Transition
    info: Info


@runtime_checkable
class Guides(Protocol):
    """A world with walks of its own: aimless ones to remember, and the shortest to the goal.
    Both return actions `[B, A]` in the world's units."""

    def behaviour_action(self) -> Any: ...
    def expert_action(self) -> Any: ...


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

    def dynamics_tests(self, seed: int = 0) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Which world, with which keyword arguments, and how it is lived in."""

    id: str
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Python modules (or files, x.py) whose import makes the world known to Gymnasium."""
    variant: str = ""
    """Its keyword argument `variant`, where it has one."""
    options: Options = field(default_factory=dict)
    """Further keyword arguments of the environment, as pairs NAME VALUE; a VALUE may be JSON
    ('[8, 8]', null, '"8"' for a text). None, if nothing or `none` follows."""
    limit: int = 0
    """Steps after which time has run out; 0 leaves it to the world."""
    repeat: int = 1
    """Steps of the world for which an action is held; rewards add up."""
    stack: int = 1
    """Moments that are seen at once, the latest last."""
    vector: Literal["auto", "sync", "async"] = "auto"
    """How many worlds are stepped: as the world offers, one after the other, or each in a process
    of its own."""
    step_timeout: float = 300.0
    """Seconds after which a call of the environment's code that has not returned ends the run, with
    all that was learnt saved; 0 is no limit."""
    obs_layout: dict[str, Layout] = field(default_factory=dict)
    """How arrays of observations are read, by name ("obs" where there is but one), where it is not
    as guessed from their shapes."""
    out_of_bounds: OutOfBounds = "pass"
    """What becomes of numbers outside the Box of an observation: they are used as they are, with a
    warning, clipped to it, or end the run."""
    mortal: bool = False
    """Whether the body feels that it lives on: a channel "alive", 0 where a life ends."""
    accept_other_spaces: bool = False
    """Whether an agent may be evaluated here that was trained with other bounds of actions or
    observations: its actions then stand for the same share of these bounds."""

    def __post_init__(self) -> None:
        require(self, limit=STEPS, repeat=(1, 10_000), stack=(1, 1000), step_timeout=(0.0, 1e6))
        check_options(self.options)

    def interface(self, observation: spaces.Space, action: spaces.Space) -> Interface:
        """How these spaces are read and acted in; UnusableInput where they can't be."""
        return Interface(
            observation, action, self.stack, self.obs_layout, self.out_of_bounds, self.id
        )

    def under(self, assignment: Assignment) -> WorldConfig:
        """The same world, judging this task."""
        return replace(self, options={**self.options, **assignment.options})

    def build(self, count: int, device: torch.device | str = "cpu", /, **options: Any) -> World:
        """`count` of these worlds; what `options` name replaces what the settings name."""
        return World(self, count, torch.device(device), {**self.keywords, **options})

    def at_once(self, wanted: int) -> int:
        """How many of these environments are opened at once at most, where `wanted` are to play."""
        return at_once(
            self.id, wanted, imports=self.imports, limit=self.limit, repeat=self.repeat,
            stack=self.stack, vector=self.vector,
        )  # fmt: skip

    def in_turns(
        self, wanted: int, use: Callable[[World, int], Result],
        device: torch.device | str = "cpu", at_most: int = 0, /, **options: Any,
    ) -> Iterator[Result]:  # fmt: skip
        """What comes of `use(environments, first)` in as many environments at a time as can be open
        (`at_most`, if given), until it was done in `wanted`: `first` of them came before. It begins
        again where a process died."""
        first, count = 0, self.at_once(min(wanted, at_most or wanted))
        while first < wanted:
            count = min(count, wanted - first)
            try:
                with closing(self.build(count, device, **options)) as world:
                    result = undisturbed(partial(use, world, first))
            except (NotMade, FailedInReset):  # there may be fewer of them at a time
                if count == 1:
                    raise
                count //= 2
                continue
            yield result
            first += count

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the world."""
        return {**({"variant": self.variant} if self.variant else {}), **self.options}


class World:
    """B worlds as the mind meets them."""

    def __init__(
        self, config: WorldConfig, count: int, device: torch.device, options: Mapping[str, Any]
    ) -> None:
        self.envs: Worlds = make(
            config.id, count, options, imports=config.imports, limit=config.limit,
            repeat=config.repeat, stack=config.stack, vector=config.vector,
            timeout=config.step_timeout,
        )  # fmt: skip
        self.config, self.options = config, options
        self.count, self.device, self.mortal = count, device, config.mortal
        self.imports = config.imports  # which the user has named
        try:
            self._understand(config)
        except BaseException:
            self.close()  # there may be an environment of which only one can be open
            raise

    def _understand(self, config: WorldConfig) -> None:
        """UnusableInput for spaces that the agent can't handle."""
        space = self.envs.single_observation_space
        interface = config.interface(space, self.envs.single_action_space)
        self.senses, self.deeds = interface.senses, interface.deeds
        self.ignored = ignored(space, config.obs_layout, config.id)
        inner = self.envs.unwrapped
        felt = tuple(inner.interoception_names) if isinstance(inner, Feels) else ()
        alive = (ALIVE,) if config.mortal else ()
        self.batched = not isinstance(self.inner, (SyncVectorEnv, AsyncVectorEnv))
        """Whether they are stepped as one, by code of their own."""
        spec = self.inner.spec
        self.limited = bool(config.limit or (spec and spec.max_episode_steps))
        """Whether it is known that episodes end."""
        self.about = str(self.envs.metadata.get("description", ""))
        """What a person sees here and what is asked of the agent, where the world says so."""
        self.spec = spec_of(interface, ("reward", *felt, *alive))

    def limit(self, config: WorldConfig) -> tuple[float, str]:
        """Steps of the agent after which an episode is truncated, at the latest, and what says so;
        0 where nothing does."""
        spec = self.inner.spec
        known = {"--env.limit": float(config.limit)}
        if spec is not None and spec.max_episode_steps:
            known["max_episode_steps of its registration"] = spec.max_episode_steps / config.repeat
        else:
            steps, name = own_limit(self.envs)
            known[f"{name} of the environment"] = steps / config.repeat
        found = {source: steps for source, steps in known.items() if steps}
        source = min(found, key=lambda name: found[name], default="")
        return found.get(source, 0), source

    def reset(self, seed: int | None = None, **options: Any) -> tuple[Observation, Info]:
        """World i starts the episode of seed + i; observation `[B, *O]`."""
        if seed is not None and not 0 <= seed < 2**31:
            raise UnusableInput(f"seed {seed} is out of range: it must be from 0 to {2**31 - 1}")
        self.envs.action_space.seed(seed)
        obs, info = self.envs.reset(seed=seed, options=options or None)
        self._check_ignored(obs)
        return self.sensed(obs), info

    def step(self, obs: Observation, action: Tensor) -> Lived:
        """`obs` is what the last step ended with; actions `[B, A]` in [-1, 1]."""
        next_obs, reward, terminated, truncated, info = self.envs.step(self.to_world(action))
        self._check_ignored(next_obs)
        over = self.tensor(terminated).clone()
        transition = Transition(
            obs, action, self._felt(reward, over, info), self.sensed(next_obs), over,
            self.tensor(truncated).clone(),
        )  # fmt: skip
        return Lived(transition, info)

    def _felt(self, reward: Any, over: Tensor, info: Info) -> Tensor:
        """`[B, I]`, in the order of the names in the spec."""
        earned = np.asarray(reward, dtype=np.float64)  # until a constant part is taken away
        if not np.isfinite(earned).all():
            raise Failed("the world's reward is NaN, None or infinite")
        felt = [self.tensor(earned)[:, None]]
        if len(self.spec.interoception) > 1 + self.mortal:
            width = len(self.spec.interoception) - 1 - self.mortal
            declared = self.tensor(infos.table(info, "interoception", self.count, width)).double()
            if not declared.isfinite().all():
                raise Failed("info['interoception'] of the environment holds NaN or infinity")
            felt.append(declared)
        if self.mortal:
            felt.append((~over).double()[:, None])
        return torch.cat(felt, 1)

    def sensed(self, obs: Any, what: str = "observation") -> Observation:
        """What the environment returned, as tensors that share no memory with its arrays, which it
        may go on writing into; UnusableInput for what is not finite, of another kind, or outside
        its space where that is refused."""
        sensed = {}
        for name, part in told_by(self.senses, obs, what).items():
            leaf = obs
            for key in self.senses[name].path:
                leaf = leaf[key]
            sensed[name] = owned(part.to(self.device), leaf)
        return sensed.get("obs", sensed)

    def _check_ignored(self, obs: Any) -> None:
        for part in self.ignored:
            part.check(obs)

    def obs_summary(self) -> list[str]:
        """How every part of an observation is read, a line each."""
        read = [f"{name}: {part.summary}" for name, part in self.senses.items()]
        left = [f"{part.name}: {part.summary}" for part in self.ignored]
        return [*read, *left, *self._other_version()]

    def _other_version(self) -> list[str]:
        """That the environment's own version for many at once, which shows something else, is not
        in use."""
        config = self.config
        around = {"limit": config.limit, "repeat": config.repeat - 1, "stack": config.stack - 1}
        flags = [f"--env.{name} {getattr(config, name)}" for name in around if around[name]]
        if config.vector != "auto" or not flags:
            return []
        own, here = own_vector_space(config.id, self.options), self.envs.single_observation_space
        if own is None or own == here or (config.stack > 1 and own == self._unstacked()):
            return []
        return [
            f"{config.id}: with {' and '.join(flags)} it is stepped one by one and shows {here}; "
            f"its own vector version, which is used without, shows {own} and has options of its "
            "own (--env.options)"
        ]

    def _unstacked(self) -> spaces.Space | None:
        """What a single moment shows, where an observation is one array."""
        stacked = self.envs.single_observation_space
        if not isinstance(stacked, spaces.Box):
            return None
        return spaces.Box(stacked.low[0], stacked.high[0], dtype=stacked.dtype.type)

    def goal(self, info: Info) -> Observation:
        """What the world names as its goal, `[B, *O]`; UnusableInput where it is no observation.
        Where an environment named none, the goal of another stands in its place."""
        told = infos.reported(info, "goal", self.count)
        if not told.any():
            raise UnusableInput("this world names no goal in its info; the agent needs one")
        try:
            goal = infos.filled(info, "goal", self.envs.single_observation_space, told)
        except (IndexError, TypeError, ValueError):
            goal = None
        return self.sensed(goal, "goal, info['goal'],")

    def factors(self, info: Info) -> Tensor:
        """`[B, F]`, of an environment that Examines."""
        names = self.inner.factor_names
        # a copy: the environment may go on writing into what it delivered
        return self.tensor(infos.table(info, "factors", self.count, len(names))).float().clone()

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def to_world(self, action: Tensor) -> np.ndarray:
        """Actions in [-1, 1] -> the world's units."""
        return self.deeds.to_world(action.detach().cpu().numpy())

    def from_world(self, action: Any) -> Tensor:
        """The world's units -> actions in [-1, 1]."""
        return self.tensor(self.deeds.from_world(action))

    @property
    def inner(self) -> Any:
        """The world itself, without Gymnasium's wrappers."""
        return self.envs.unwrapped

    def close(self) -> None:
        """Whatever a stranger's world does when it is asked to end, it ends."""
        with suppress(Exception, SystemExit):
            self.envs.close()


def owned(part: Tensor, source: Any) -> Tensor:
    """The same numbers, copied where they still are those of `source`, an array or a tensor."""
    if isinstance(source, Tensor):
        shared = part.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    elif isinstance(source, np.ndarray):
        shared = part.device.type == "cpu" and np.may_share_memory(part.numpy(), source)
    else:  # what converts itself into an array may hand out its own
        shared = part.device.type == "cpu" and not isinstance(source, (list, tuple, int, float))
    return part.clone() if shared else part


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
        return lambda obs: world.from_world(world.inner.behaviour_action())
    return lambda obs: world.from_world(world.envs.action_space.sample())


def oracle(world: World) -> Act:
    """The shortest way to the goal; only for worlds that know it."""
    return lambda obs: world.from_world(world.inner.expert_action())
