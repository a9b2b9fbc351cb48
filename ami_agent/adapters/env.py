"""Gymnasium environments as the agent meets them: observations are tensors, actions lie in [-1, 1].

An environment may offer more than Gymnasium's interface (`HasReferencePolicies`,
`HasInteroception`, `HasFactors`); baselines, drives, probes and pictures use it where it is there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from copy import deepcopy
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
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from torch import Tensor

from ami_agent.adapters.env_spec import EnvironmentSpec, differences, env_spec_of
from ami_agent.adapters.fault_tolerance import (
    EnvCreationError,
    EnvError,
    EnvResetError,
    retry_if_restarted,
)
from ami_agent.adapters.imports import import_path
from ami_agent.adapters.make import (
    Options,
    build_wrappers,
    check_options,
    declared_time_limit,
    make,
    native_entry_point,
    native_vector_space,
)
from ami_agent.adapters.spaces import Layout, ignored_fields, interface_to
from ami_agent.adapters.tensors import Interface, OutOfBounds, check_numbers, read_obs
from ami_agent.adapters.vector_env import batch_rows, fill_missing, read_table, reported
from ami_agent.hardware import num_cores
from modules.configurator import TaskSpec
from modules.types import CONTINUE, STEPS, ConfigError, Observation, Transition, validate_ranges

MAX_SINGLE_ENVS = 16
"""Environments stepped one by one that are open at the same time, where their number is free."""

Info: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")


class StepResult(NamedTuple):
    """One step of B environments, and the info that they returned."""

    transition: Transition
    info: Info

    @property
    def next_obs(self) -> Observation:
        """The observation `[B, *O]` after the step."""
        return self.transition.next_obs

    @property
    def done(self) -> Tensor:
        """`[B]` bool: the episodes that ended with this step."""
        return self.transition.terminated | self.transition.truncated


@runtime_checkable
class HasReferencePolicies(Protocol):
    """An environment with policies of its own: a behaviour policy for collecting experience, and an
    expert that takes the shortest path to the goal. Both return actions `[B, A]` in the
    environment's units."""

    def behaviour_action(self) -> Any: ...
    def expert_action(self) -> Any: ...


@runtime_checkable
class HasInteroception(Protocol):
    """An environment that declares interoceptive signals beside the reward:
    `info["interoception"]`, `[B, I]` at every reset and step."""

    interoception_names: tuple[str, ...]


@runtime_checkable
class HasFactors(Protocol):
    """An environment whose true state is known: named factors, `info["factors"]` `[B, F]`, and
    action sequences with known outcomes that test the world model."""

    factor_names: tuple[str, ...]

    def dynamics_tests(self, seed: int = 0) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """An environment's id, its keyword arguments, and how it is wrapped and stepped."""

    id: str
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Python modules, or files x.py, whose import registers the environment with Gymnasium."""
    variant: str = ""
    """The environment's keyword argument `variant`, where it has one."""
    options: Options = field(default_factory=dict)
    """Further keyword arguments of the environment, as pairs NAME VALUE; a VALUE may be JSON
    ('[8, 8]', null, '"8"' for a string). No pair, or `none`, removes the defaults."""
    reset_options: Options = field(default_factory=dict)
    """Options of every reset, as pairs NAME VALUE, where the environment takes some: which of its
    tasks an episode has (`task_id 3`)."""
    own_numpy_random: bool = False
    """Whether each environment has NumPy's global random generator to itself, seeded as the
    environment is: for environments that draw from it, whose episodes else depend on one
    another."""
    goal_from_obs: bool = False
    """Whether `desired_goal` in the observations of a goal environment is the goal that the agent
    plans for, and no part of what it perceives."""
    max_episode_steps: int = 0
    """Steps after which an episode is truncated; 0 leaves it to the environment."""
    action_repeat: int = 1
    """Steps of the environment for which an action is repeated; their rewards are added up."""
    frame_stack: int = 1
    """Observations that are stacked into one, the latest last."""
    vectorization_mode: Literal["auto", "sync", "async"] = "auto"
    """How several environments are stepped: as the batch that the environment offers, one after the
    other, or each in a worker process."""
    step_timeout: float = 300.0
    """Seconds after which a call of the environment's code that has not returned ends the run,
    which is saved; 0 is no limit."""
    obs_layout: dict[str, Layout] = field(default_factory=dict)
    """How arrays of observations are read, by name ("obs" where there is but one), where the guess
    from their shapes is wrong."""
    image_downsample: int = 1
    """Images become smaller by this factor: each pixel is the mean over a square of so many a
    side."""
    plain_rendering: bool = False
    """Whether an environment of MuJoCo draws without shadows, reflections and antialiasing, which
    is many times as fast without a GPU."""
    out_of_bounds: OutOfBounds = "pass"
    """How numbers outside the Box of an observation are treated: used as they are, with a warning,
    clipped to the Box, or refused, which ends the run."""
    terminal_channel: bool = False
    """Whether interoception has a signal "alive", which is 0 where an episode terminates, else
    1."""
    accept_other_spaces: bool = False
    """Whether an agent that was trained with other bounds of actions or observations may act here:
    its actions then are the same fraction of these bounds."""

    def __post_init__(self) -> None:
        validate_ranges(
            self,
            max_episode_steps=STEPS,
            action_repeat=(1, 10_000),
            frame_stack=(1, 1000),
            image_downsample=(1, 1000),
            step_timeout=(0.0, 1e6),
        )
        if self.goal_from_obs and self.frame_stack > 1:
            raise ConfigError(
                "goal_from_obs is True: a goal is one observation, so frame_stack must be 1"
            )
        check_options(self.options)
        check_options(self.reset_options, "reset_options")

    def interface(self, observation: spaces.Space, action: spaces.Space) -> Interface:
        """The interface to these spaces; ConfigError where the agent can't handle them."""
        return interface_to(
            observation, action, stack=self.frame_stack, layouts=self.obs_layout,
            downsample=self.image_downsample, out_of_bounds=self.out_of_bounds, env=self.id,
        )  # fmt: skip

    def for_task(self, task_spec: TaskSpec) -> EnvConfig:
        """The environment with the options of this task."""
        return replace(
            self,
            options={**self.options, **task_spec.options},
            reset_options={**self.reset_options, **task_spec.reset_options},
        )

    def build(
        self, num_envs: int, device: torch.device | str = "cpu", /, **options: Any
    ) -> EnvAdapter:
        """`num_envs` of these environments; `options` replace keyword arguments of the settings."""
        return EnvAdapter(self, num_envs, torch.device(device), {**self.make_kwargs, **options})

    def max_open_envs(self, num_envs: int) -> int:
        """How many of `num_envs` environments are opened at the same time at most: all of a batch,
        MAX_SINGLE_ENVS that are stepped one by one, and one worker process for each core."""
        for module in self.imports:
            import_path(module)
        if self.vectorization_mode == "async":
            return min(num_envs, num_cores())
        is_single = self.vectorization_mode == "sync" or bool(build_wrappers(self))
        if is_single or native_entry_point(self.id) is None:
            return min(num_envs, MAX_SINGLE_ENVS)
        return num_envs

    def run_in_batches(
        self, num_envs: int, fn: Callable[[EnvAdapter, int], Result],
        device: torch.device | str = "cpu", max_envs: int = 0, /, **options: Any,
    ) -> Iterator[Result]:  # fmt: skip
        """The results of `fn(env, first)` for batches of environments, `num_envs` in all; `first`:
        the number of environments in earlier batches. A batch is as large as can be open at the
        same time, at most `max_envs` if given. `fn` is started again where a worker died."""
        first, batch_size = 0, self.max_open_envs(min(num_envs, max_envs or num_envs))
        while first < num_envs:
            batch_size = min(batch_size, num_envs - first)
            try:
                with closing(self.build(batch_size, device, **options)) as env:
                    result = retry_if_restarted(partial(fn, env, first))
            except (EnvCreationError, EnvResetError):  # perhaps a smaller batch can be open
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            yield result
            first += batch_size

    @property
    def make_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the environment."""
        return {**({"variant": self.variant} if self.variant else {}), **self.options}


class EnvAdapter:
    """B environments as the agent meets them."""

    def __init__(
        self, config: EnvConfig, num_envs: int, device: torch.device, options: Mapping[str, Any]
    ) -> None:
        self.config, self.options = config, options
        self.num_envs, self.device = num_envs, device
        self.interoception: Tensor | None = None
        """The signals `[B, I]` that came with the last observation; none come with a reset."""
        self.seed = 0
        """That of the last reset with one."""
        self._random_spaces: Sequence[spaces.Space] = ()  # one for each environment
        self.vector_env: VectorEnv = make(config, num_envs, options)
        try:
            self._read_spaces()
        except BaseException:
            self.close()  # perhaps only one such environment can be open
            raise

    def _read_spaces(self) -> None:
        """ConfigError for spaces that the agent can't handle."""
        config, unwrapped = self.config, self.vector_env.unwrapped
        space = self.vector_env.single_observation_space
        interface = config.interface(space, self.vector_env.single_action_space)
        self.obs_fields, self.action_adapter = interface.obs_fields, interface.action_adapter
        self.ignored_fields = ignored_fields(space, config.obs_layout, config.id)
        signals: tuple[str, ...] = ()
        if isinstance(unwrapped, HasInteroception):
            signals = tuple(unwrapped.interoception_names)
        continue_signal = (CONTINUE,) if config.terminal_channel else ()
        self.spec = env_spec_of(interface, ("reward", *signals, *continue_signal))
        self.is_native_batch = not isinstance(unwrapped, (SyncVectorEnv, AsyncVectorEnv))
        """Whether the environment's own code steps them as one batch."""
        spec = unwrapped.spec
        self.has_time_limit = bool(config.max_episode_steps or (spec and spec.max_episode_steps))
        """Whether episodes are known to end."""
        self.description = str(self.vector_env.metadata.get("description", ""))
        """The environment's own text on its pictures and its task; empty where it has none."""

    def max_episode_steps(self) -> tuple[float, str]:
        """The agent's steps after which an episode is truncated at the latest, and the setting or
        attribute that states it; 0 where none does."""
        spec, action_repeat = self.unwrapped.spec, self.config.action_repeat
        source = "set by the recipe, or by --env.max-episode-steps"
        limits = {source: float(self.config.max_episode_steps)}
        if spec is not None and spec.max_episode_steps:
            limits["max_episode_steps of its registration"] = spec.max_episode_steps / action_repeat
        else:
            steps, name = declared_time_limit(self.vector_env)
            limits[f"{name} of the environment"] = steps / action_repeat
        found = ((steps, source) for source, steps in limits.items() if steps)
        return min(found, key=lambda limit: limit[0], default=(0, ""))

    def reset(self, seed: int | None = None, **options: Any) -> tuple[Observation, Info]:
        """Environment i starts the episode of seed + i; observation `[B, *O]`."""
        if seed is not None and not 0 <= seed < 2**31:
            raise ConfigError(f"seed {seed} is out of range: it must be from 0 to {2**31 - 1}")
        self.vector_env.action_space.seed(seed)
        if seed is not None:
            self.seed, self._random_spaces = seed, ()
        self.interoception = None
        obs, info = self.vector_env.reset(seed=seed, options=options or None)
        return self._read(obs), info

    def step(self, obs: Observation, action: Tensor) -> StepResult:
        """`obs`: the observation before this step; actions `[B, A]` in [-1, 1]."""
        next_obs, reward, terminated, truncated, info = self.vector_env.step(self.to_env(action))
        terminated_mask = self.tensor(terminated).clone()
        self.interoception = self._interoception(reward, terminated_mask, info)
        transition = Transition(
            obs, action, self.interoception,
            self._read(next_obs), terminated_mask, self.tensor(truncated).clone(),
        )  # fmt: skip
        return StepResult(transition, info)

    def _interoception(self, reward: Any, terminated: Tensor, info: Info) -> Tensor:
        """`[B, I]`, in the order of the names in the spec."""
        rewards = np.asarray(reward, dtype=np.float64)  # float32 after a constant is subtracted
        signals = [self.tensor(rewards)[:, None]]
        check_numbers("the environment's reward", signals[0])
        num_declared = len(self.spec.interoception) - 1 - self.config.terminal_channel
        if num_declared:
            table = read_table(info, "interoception", self.num_envs, num_declared)
            declared = self.tensor(table).double()
            check_numbers("info['interoception'] of the environment", declared)
            signals.append(declared)
        if self.config.terminal_channel:
            signals.append((~terminated).double()[:, None])
        return torch.cat(signals, 1)

    def to_tensors(self, obs: Any, what: str = "observation") -> Observation:
        """The environment's observations as tensors that share no memory with its arrays, which it
        may write into later; ConfigError for numbers that are not finite, of another kind, or
        outside their space where that is refused."""
        tensors = {}
        for name, part in read_obs(self.obs_fields, obs, what).items():
            source = self.obs_fields[name].leaf(obs)
            tensors[name] = owned_copy(part.to(self.device), source)
        return tensors.get("obs", tensors)

    def _read(self, obs: Any) -> Observation:
        """One observation of each environment; EnvError for another number of them."""
        tensors = self.to_tensors(obs)
        for reader in self.obs_fields.values():
            if (rows := len(reader.leaf(obs))) != self.num_envs:
                raise EnvError(
                    f"environment {self.config.id!r}: its observations have {rows} rows; they must "
                    f"have one for each of {self.num_envs} environments"
                )
        for part in self.ignored_fields:
            part.check(obs)
        return tensors

    def obs_summary(self) -> list[str]:
        """How every part of an observation is read, one line each."""
        used = [f"{name}: {part.summary}" for name, part in self.obs_fields.items()]
        ignored = [f"{part.name}: {part.summary}" for part in self.ignored_fields]
        return [*used, *ignored, *self._native_version_note()]

    def _native_version_note(self) -> list[str]:
        """A note where the environment's own batch, with another observation space, is not used."""
        config = self.config
        defaults = {"max_episode_steps": 0, "action_repeat": 1, "frame_stack": 1}
        values = {name: getattr(config, name) for name in defaults}
        flags = [
            f"--env.{name.replace('_', '-')} {n}"
            for name, n in values.items()
            if n != defaults[name]
        ]
        if config.vectorization_mode != "auto" or not flags:
            return []
        single = frame = self.vector_env.single_observation_space
        if config.frame_stack > 1 and isinstance(single, spaces.Box):
            frame = spaces.Box(single.low[0], single.high[0], dtype=single.dtype.type)
        native = native_vector_space(config.id, self.options)
        if native is None or native in (single, frame):
            return []
        return [
            f"{config.id}: with {' and '.join(flags)} it is stepped one by one and observes "
            f"{single}; its own vector version, which is used without, observes {native} "
            "and has options of its own (--env.options)"
        ]

    def goal(self, info: Info) -> Observation:
        """The goals that the infos name, `[B, *O]`; ConfigError where they are no observations. An
        environment that names none gets the goal of another."""
        has_goal = reported(info, "goal", self.num_envs)
        if not has_goal.any():
            raise ConfigError("the environment names no goal in its info; the agent needs one")
        space = self.vector_env.single_observation_space
        try:
            goal = fill_missing(info, "goal", space, has_goal)
        except (IndexError, TypeError, ValueError):
            goal = None
        return self.to_tensors(goal, "goal, info['goal'],")

    def random_action(self) -> Tensor:
        """Uniformly random actions `[B, A]` in [-1, 1]. Environments that are stepped one by one
        have a random stream each, so that their actions depend neither on how many are open nor on
        when episodes end in the others."""
        space = self.vector_env.single_action_space
        if self.is_native_batch:
            return self.from_env(self.vector_env.action_space.sample())
        if not self._random_spaces:
            self._random_spaces = [deepcopy(space) for _ in range(self.num_envs)]
            for seed, own in enumerate(self._random_spaces, self.seed):
                # with the environment's own seed, actions would repeat the draws that set its goal
                own.seed(zlib.crc32(f"random actions {seed}".encode()))
        return self.from_env(batch_rows(space, [own.sample() for own in self._random_spaces]))

    def factors(self, info: Info) -> Tensor:
        """`[B, F]`, for an environment that HasFactors."""
        num_factors = len(self.unwrapped.factor_names)
        factors = read_table(info, "factors", self.num_envs, num_factors)
        return self.tensor(factors).float().clone()  # the environment may write into its array

    def tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def to_env(self, action: Tensor) -> np.ndarray:
        """Actions in [-1, 1] -> the environment's units."""
        return self.action_adapter.to_env(action.detach().cpu().numpy())

    def from_env(self, action: Any) -> Tensor:
        """The environment's units -> actions in [-1, 1]."""
        return self.tensor(self.action_adapter.from_env(action))

    @property
    def unwrapped(self) -> Any:
        """The vector environment without wrappers."""
        return self.vector_env.unwrapped

    def close(self) -> None:
        """Closes the environments, and ignores errors of theirs."""
        with suppress(Exception, SystemExit):
            self.vector_env.close()


def check_same_spaces(trained: EnvironmentSpec, other: EnvironmentSpec, config: EnvConfig) -> None:
    """Raises ConfigError unless an agent of the spec `trained` may act in the environment of these
    settings, whose spec is `other`.

    A difference in kind (names, shapes, dtypes, signals) is always refused; one in bounds alone is
    allowed where the settings say so (`accept_other_spaces`)."""
    for difference in differences(trained, other):
        expected, found = difference.one, difference.two
        if difference.in_kind:
            raise ConfigError(f"{config.id} has {found}, but the agent is made for {expected}")
        if not config.accept_other_spaces:
            raise ConfigError(
                f"{config.id} has {found}, but the agent was trained with {expected}: its actions "
                "or observations mean something else there (accept_other_spaces allows it)"
            )


def owned_copy(part: Tensor, source: Any) -> Tensor:
    """`part`, copied where it shares memory with `source`, an array or a tensor."""
    if isinstance(source, Tensor):
        is_shared = part.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    elif isinstance(source, np.ndarray):
        is_shared = part.device.type == "cpu" and np.may_share_memory(part.numpy(), source)
    else:  # an object with an array interface may return its own memory
        is_shared = part.device.type == "cpu" and not isinstance(source, (list, tuple, int, float))
    return part.clone() if is_shared else part


ActFn: TypeAlias = Callable[[Observation], Tensor]
"""Observation `[B, *O]` -> action `[B, A]` in [-1, 1]."""


def rollout(act_fn: ActFn, env: EnvAdapter, obs: Observation) -> Iterator[StepResult]:
    """Steps the environments from an observation on, without end: the caller stops.

    The step after an episode's end only resets: its action is ignored (Gymnasium's NEXT_STEP).
    """
    while True:
        result = env.step(obs, act_fn(obs))
        yield result
        obs = result.next_obs


def behaviour_policy(env: EnvAdapter) -> ActFn:
    """The environment's own behaviour policy, where it has one, else uniformly random actions."""
    if isinstance(env.unwrapped, HasReferencePolicies):
        return lambda obs: env.from_env(env.unwrapped.behaviour_action())
    return lambda obs: env.from_env(env.vector_env.action_space.sample())


def expert_policy(env: EnvAdapter) -> ActFn:
    """The shortest path to the goal, for environments that HasReferencePolicies."""
    return lambda obs: env.from_env(env.unwrapped.expert_action())


def check_step(config: EnvConfig) -> None:
    """Raises ConfigError where the first step of an episode fails, before anything is trained."""
    with closing(config.build(1)) as env:
        obs, _ = env.reset(0)
        env.vector_env.action_space.seed(0)
        next(rollout(behaviour_policy(env), env, obs))
