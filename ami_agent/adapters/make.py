"""Makes vector environments from Gymnasium ids, and imports the files of users.

After an episode's end the next step only resets, and its action is ignored (Gymnasium's NEXT_STEP).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec, _find_spec
from gymnasium.spaces import Space
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation, TimeLimit

from ami_agent.adapters.fault_tolerance import (
    CallTimeout,
    EnvCreationError,
    FaultTolerantVectorEnv,
    describe_error,
    is_interrupt,
    mute_gym_logger,
)
from ami_agent.adapters.graphics import choose_gl_backend, gl_hint
from ami_agent.adapters.vector_env import AsyncEnvs, SingleEnv, SyncEnvs, as_next_step
from ami_agent.resources import num_cores
from modules.types import ConfigError

RESERVED_OPTIONS = frozenset(inspect.signature(gymnasium.make_vec).parameters) - {"kwargs"}
"""Names that an environment's keyword arguments can't have."""
MAX_SINGLE_ENVS = 16
"""Environments stepped one by one that are open at the same time, where their number is free."""


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action for several steps and adds up their rewards; an episode's end stops
    it."""

    def __init__(self, env: gymnasium.Env, action_repeat: int) -> None:
        super().__init__(env)
        self.action_repeat = action_repeat

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class EnvFactory:
    """Makes one environment. In a worker process that shares no memory with this one (start methods
    spawn and forkserver), the imports that register it come before anything else is unpickled."""

    def __init__(
        self, spec: EnvSpec, imports: Sequence[str], options: Mapping[str, Any],
        wrappers: Sequence[Callable[[Any], Any]],
    ) -> None:  # fmt: skip
        files = (str(Path(n).absolute()) if n.endswith(".py") else n for n in imports)
        self.imports, self.parts = tuple(files), (deepcopy(spec), dict(options), list(wrappers))

    def __getstate__(self) -> dict[str, Any]:
        return {"imports": self.imports, "parts": cloudpickle.dumps(self.parts)}

    def __call__(self) -> gymnasium.Env:
        for module in self.imports:
            import_path(module)
        if isinstance(self.parts, bytes):
            self.parts = cloudpickle.loads(self.parts)
        spec, options, wrappers = self.parts
        if spec.entry_point is None:
            env: gymnasium.Env = SingleEnv(spec.id, _make_vec(deepcopy(spec), 1, options))
        else:
            env = gymnasium.make(deepcopy(spec), **options)
        for wrapper in wrappers:
            env = wrapper(env)
        return env


def make(
    env_id: str, num_envs: int, options: Mapping[str, Any], *, imports: Sequence[str] = (),
    max_episode_steps: int = 0, action_repeat: int = 1, frame_stack: int = 1,
    vectorization_mode: str = "auto", timeout: float = 0.0,
) -> VectorEnv:  # fmt: skip
    """`num_envs` environments of this id; ConfigError where they can't be made."""
    choose_gl_backend()
    if reserved := [option for option in options if option in RESERVED_OPTIONS]:
        raise ConfigError(
            f"option {reserved[0]!r} of environment {env_id!r} is a parameter of "
            "gymnasium.make_vec and none of the environment; --env.vectorization-mode sets how "
            "environments are stepped"
        )
    for module in imports:
        import_path(module)
    wrappers = build_wrappers(max_episode_steps, action_repeat, frame_stack)
    is_auto = vectorization_mode == "auto"
    if wrappers and is_auto and hasattr(_native_entry_point(env_id), "behaviour_action"):
        raise ConfigError(
            f"max_episode_steps, action_repeat or frame_stack would step {env_id} one by one, "
            "without the reference policies and interoception that it has as a batch: set its own "
            "keyword arguments (--env.options max_episode_steps 30), or do without them "
            "(--env.vectorization-mode sync)"
        )
    is_batched = is_auto and not wrappers
    singles = partial(
        _make_singles, env_id, num_envs, imports, options, wrappers, vectorization_mode
    )
    make_envs = partial(_make_batch, env_id, num_envs, options, singles) if is_batched else singles
    return FaultTolerantVectorEnv(
        env_id, partial(_make_checked, env_id, make_envs, bool(imports)), timeout
    )


def _make_checked(env_id: str, make: Callable[[], VectorEnv], imported: bool) -> VectorEnv:
    try:
        return make()
    except ConfigError:
        raise
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        hint = "" if imported else " If a package registers it, import that: --env.import NAME"
        raise EnvCreationError(f"environment {env_id!r} can't be made: {error}{hint}") from error
    except BaseException as error:  # third-party code may raise anything
        if is_interrupt(error) or isinstance(error, CallTimeout):
            raise
        reason = f"{describe_error(error)}{gl_hint(error)}"
        raise EnvCreationError(f"environment {env_id!r} can't be made: {reason}") from error


def _make_batch(
    env_id: str, num_envs: int, options: Mapping[str, Any], singles: Callable[[], VectorEnv]
) -> VectorEnv:
    """The environment's own batch; environments stepped one by one where it has none."""
    spec = gymnasium.registry.get(env_id)
    if spec is not None and spec.vector_entry_point is None:
        return singles()
    envs = _make_vec(env_id, num_envs, options)
    return as_next_step(env_id, envs, partial(_make_checked, env_id, singles, True))


def _make_vec(spec: str | EnvSpec, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    with warnings.catch_warnings():
        # `as_next_step` handles the modes, or warns of them
        warnings.filterwarnings("ignore", message=".*(AutoresetMode|autoreset_mode)")
        return gymnasium.make_vec(spec, num_envs=num_envs, **options)


def _make_singles(
    env_id: str, num_envs: int, imports: Sequence[str], options: Mapping[str, Any],
    wrappers: Sequence[Callable[[Any], Any]], vectorization_mode: str,
) -> VectorEnv:  # fmt: skip
    """Environments stepped one by one, or each in a worker process."""
    spec = _spec(env_id)
    factories = [EnvFactory(spec, imports, options, wrappers)] * num_envs
    with mute_gym_logger(vectorization_mode == "async"):
        envs = AsyncEnvs(factories) if vectorization_mode == "async" else SyncEnvs(factories)
    envs.spec = deepcopy(spec)
    envs.spec.kwargs |= options
    return envs


def _spec(env_id: str) -> EnvSpec:
    """Raises Gymnasium's own error for an id that is not registered."""
    if env_id in gymnasium.registry:
        return gymnasium.registry[env_id]
    return _find_spec(env_id)  # "module:Name-v0", or the latest version of "Name"


def max_open_envs(
    env_id: str, num_envs: int, *, imports: Sequence[str] = (), max_episode_steps: int = 0,
    action_repeat: int = 1, frame_stack: int = 1, vectorization_mode: str = "auto",
) -> int:  # fmt: skip
    """How many of `num_envs` environments are opened at the same time: all of a batch, at most
    MAX_SINGLE_ENVS that are stepped one by one, and one worker process for each core."""
    for module in imports:
        import_path(module)
    if vectorization_mode == "async":
        return min(num_envs, num_cores())
    is_batched = (
        vectorization_mode == "auto"
        and not build_wrappers(max_episode_steps, action_repeat, frame_stack)
        and _native_entry_point(env_id) is not None
    )
    return num_envs if is_batched else min(num_envs, MAX_SINGLE_ENVS)


def _native_entry_point(env_id: str) -> Any:
    """The constructor of the environment's own batch; None where it has none."""
    spec = gymnasium.registry.get(env_id)
    entry = spec.vector_entry_point if spec else None
    return gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry


def native_vector_space(env_id: str, options: Mapping[str, Any]) -> Space | None:
    """The single observation space of the environment's own batch; None where it has none, or none
    with these options."""
    if _native_entry_point(env_id) is None:
        return None
    try:
        with contextlib.closing(gymnasium.make_vec(env_id, num_envs=1, **options)) as envs:
            return envs.single_observation_space
    except (Exception, SystemExit):  # third-party code may raise anything
        return None


def build_wrappers(
    max_episode_steps: int, action_repeat: int, frame_stack: int
) -> list[Callable[[Any], Any]]:
    """The wrappers around each single environment, the inner first."""
    wrappers: list[Callable[[Any], Any]] = []
    if action_repeat > 1:
        wrappers.append(partial(ActionRepeat, action_repeat=action_repeat))
    if max_episode_steps:
        wrappers.append(partial(TimeLimit, max_episode_steps=max_episode_steps))
    if frame_stack > 1:
        wrappers.append(partial(FrameStackObservation, stack_size=frame_stack))
    return wrappers


LIMIT_ATTRIBUTES = ("max_episode_steps", "max_steps", "_max_episode_steps")
"""Attributes in which environments that truncate episodes themselves keep their limit."""


def declared_time_limit(envs: VectorEnv) -> tuple[int, str]:
    """The number of steps after which the environment itself truncates an episode, and the
    attribute that states it; 0 where none does."""
    unwrapped = envs.unwrapped
    env = unwrapped.envs[0] if isinstance(unwrapped, SyncVectorEnv) else unwrapped
    for name in LIMIT_ATTRIBUTES:
        try:
            value = env.get_wrapper_attr(name) if isinstance(env, Env) else getattr(env, name)
        except Exception:  # a property of third-party code may raise anything
            continue
        if isinstance(value, int | np.integer) and value > 1:
            return int(value), name
    return 0, ""


def import_path(name: str) -> ModuleType:
    """Imports a module by name, or a file by path; ConfigError where that fails."""
    choose_gl_backend()  # the module may import MuJoCo
    path = Path(name)
    try:
        if path.suffix != ".py":
            if "" not in sys.path:
                sys.path.insert(0, "")  # the current folder, as `python -m` does
            return importlib.import_module(name)
        if not path.is_file():
            raise ConfigError(f"no file {name} to import")
        # the same name in every process, for pickled objects refer to it
        module_name = f"_ami_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        _allow_sibling_imports(path.resolve().parent)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]  # a later import must not find half of the module
            raise
        return module
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        raise ConfigError(f"{name!r} can't be imported: {describe_error(error)}") from error


def _allow_sibling_imports(folder: Path) -> None:
    """Lets a file import its neighbours, now and later. The folder comes last in the search path,
    so that it hides no package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load_function(path_spec: str, returns: str) -> Callable[[], Any]:
    """The function `FILE.py:FUNCTION`; ConfigError where there is none. `returns`: what it should
    return, in words."""
    file, _, name = path_spec.rpartition(":")
    if not file:
        raise ConfigError(
            f"{path_spec!r} must be FILE.py:FUNCTION, a function that returns {returns}"
        )
    function = getattr(import_path(file), name, None)
    if not callable(function):
        raise ConfigError(f"{file} has no function {name!r} that returns {returns}")
    return function  # type: ignore[no-any-return]


def call_function(path_spec: str, returns: str) -> Any:
    """The result of the function `FILE.py:FUNCTION`; ConfigError where it fails."""
    function = load_function(path_spec, returns)
    try:
        return function()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        raise ConfigError(f"{path_spec} failed: {describe_error(error)}") from error
