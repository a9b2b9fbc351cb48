"""Environments as Gymnasium steps them, made alike: after an episode's end the next step only
resets, and its action is ignored (Gymnasium's NEXT_STEP)."""

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

from ami_agent.adapters.autoreset import as_next_step
from ami_agent.adapters.failures import EnvCreationError, describe_error, is_interrupt
from ami_agent.adapters.fault_tolerance import FaultTolerantVectorEnv, mute_gym_logger
from ami_agent.adapters.graphics import choose_gl_backend, gl_hint
from ami_agent.adapters.sub_envs import AsyncEnvs, SingleEnv, SyncEnvs
from ami_agent.adapters.watchdog import TimedOut
from ami_agent.resources import num_cores
from modules.types import ConfigError

RESERVED_OPTIONS = frozenset(inspect.signature(gymnasium.make_vec).parameters) - {"kwargs"}
"""Names that an environment's keyword arguments can't have."""
MAX_SINGLE_ENVS = 16
"""Environments stepped one by one that are opened at once, where their number is free."""


class ActionRepeat(gymnasium.Wrapper):
    """An action is held for several steps; rewards add up, and an end ends it early."""

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
    """Makes one environment. A worker process that knows nothing of this one (start methods spawn
    and forkserver) imports what registers it before anything else is unpickled."""

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
    max_episode_steps: int = 0, action_repeat: int = 1, frame_stack: int = 1, vectorization_mode: str = "auto", timeout: float = 0.0,
) -> VectorEnv:  # fmt: skip
    """`count` worlds of that id; ConfigError where they can't be made."""
    choose_gl_backend()
    if reserved := [option for option in options if option in RESERVED_OPTIONS]:
        raise ConfigError(
            f"option {reserved[0]!r} of environment {env_id!r} is a parameter of gymnasium.make_vec and "
            "none of the environment; how environments are stepped is set by --env.vectorization-mode"
        )
    for module in imports:
        import_path(module)
    wrappers = build_wrappers(max_episode_steps, action_repeat, frame_stack)
    if (
        wrappers
        and vectorization_mode == "auto"
        and hasattr(_native_entry_point(env_id), "behaviour_action")
    ):
        raise ConfigError(
            f"a limit, a repeat or a stack would step {env_id} one by one, without the walks, the "
            "oracle and the feelings that it has for many; use its own keyword arguments (its "
            "limit is `max_episode_steps`: --env.options max_episode_steps 30), or do without "
            "them: vector sync"
        )
    is_batched = vectorization_mode == "auto" and not wrappers
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
        raise EnvCreationError(f"world {env_id!r} can't be made: {error}{hint}") from error
    except BaseException as error:  # a stranger's code may raise anything
        if is_interrupt(error) or isinstance(error, TimedOut):
            raise
        reason = f"{describe_error(error)}{gl_hint(error)}"
        raise EnvCreationError(f"world {env_id!r} can't be made: {reason}") from error


def _make_batch(
    env_id: str, num_envs: int, options: Mapping[str, Any], singles: Callable[[], VectorEnv]
) -> VectorEnv:
    """As the environment offers it; one by one where it offers no batch."""
    spec = gymnasium.registry.get(env_id)
    if spec is not None and spec.vector_entry_point is None:
        return singles()
    envs = _make_vec(env_id, num_envs, options)
    return as_next_step(env_id, envs, partial(_make_checked, env_id, singles, True))


def _make_vec(spec: str | EnvSpec, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    with warnings.catch_warnings():
        # of what `as_next_step` understands or speaks of by itself
        warnings.filterwarnings("ignore", message=".*(AutoresetMode|autoreset_mode)")
        return gymnasium.make_vec(spec, num_envs=num_envs, **options)


def _make_singles(
    env_id: str, num_envs: int, imports: Sequence[str], options: Mapping[str, Any],
    wrappers: Sequence[Callable[[Any], Any]], vectorization_mode: str,
) -> VectorEnv:  # fmt: skip
    """Stepped one by one, or each in a process of its own."""
    spec = _spec(env_id)
    factories = [EnvFactory(spec, imports, options, wrappers)] * num_envs
    with mute_gym_logger(vectorization_mode == "async"):
        envs = AsyncEnvs(factories) if vectorization_mode == "async" else SyncEnvs(factories)
    envs.spec = deepcopy(spec)
    envs.spec.kwargs |= options
    return envs


def _spec(env_id: str) -> EnvSpec:
    """Raises what Gymnasium says of an id that it does not know."""
    if env_id in gymnasium.registry:
        return gymnasium.registry[env_id]
    return _find_spec(env_id)  # "module:Name-v0", or the latest version of "Name"


def max_open_envs(
    env_id: str, num_envs: int, *, imports: Sequence[str] = (), max_episode_steps: int = 0, action_repeat: int = 1,
    frame_stack: int = 1, vectorization_mode: str = "auto",
) -> int:  # fmt: skip
    """How many of these environments are opened at once where `wanted` would do: all of a batch,
    few of those that are stepped one by one, and one for each core of those in processes."""
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
    """What makes that world many at once by itself; None where nothing does."""
    spec = gymnasium.registry.get(env_id)
    entry = spec.vector_entry_point if spec else None
    return gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry


def native_vector_space(env_id: str, options: Mapping[str, Any]) -> Space | None:
    """What that environment shows of each of many if it steps them itself; None where it doesn't,
    or not with these options."""
    if _native_entry_point(env_id) is None:
        return None
    try:
        with contextlib.closing(gymnasium.make_vec(env_id, num_envs=1, **options)) as envs:
            return envs.single_observation_space
    except (Exception, SystemExit):  # a stranger's code may raise anything
        return None


def build_wrappers(
    max_episode_steps: int, action_repeat: int, frame_stack: int
) -> list[Callable[[Any], Any]]:
    """What is put around each single world, inner first."""
    wrappers: list[Callable[[Any], Any]] = []
    if action_repeat > 1:
        wrappers.append(partial(ActionRepeat, action_repeat=action_repeat))
    if max_episode_steps:
        wrappers.append(partial(TimeLimit, max_episode_steps=max_episode_steps))
    if frame_stack > 1:
        wrappers.append(partial(FrameStackObservation, stack_size=frame_stack))
    return wrappers


LIMIT_ATTRIBUTES = ("max_episode_steps", "max_steps", "_max_episode_steps")
"""Attributes by which environments that truncate episodes themselves call their limit."""


def declared_time_limit(envs: VectorEnv) -> tuple[int, str]:
    """Steps after which the environment says that it truncates an episode, and the attribute that
    says so; 0 where none does."""
    unwrapped = envs.unwrapped
    env = unwrapped.envs[0] if isinstance(unwrapped, SyncVectorEnv) else unwrapped
    for name in LIMIT_ATTRIBUTES:
        try:
            value = env.get_wrapper_attr(name) if isinstance(env, Env) else getattr(env, name)
        except Exception:  # a property of a stranger's environment may raise anything
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
                sys.path.insert(0, "")  # as `python -m` would: what lies in the current folder
            return importlib.import_module(name)
        if not path.is_file():
            raise ConfigError(f"no file {name} to import")
        # the same name in every process: worker processes find by it what they are sent
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
            del sys.modules[module_name]  # or the next who asks would get half of it
            raise
        return module
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise ConfigError(f"{name!r} can't be imported: {describe_error(error)}") from error


def _allow_sibling_imports(folder: Path) -> None:
    """A file may import its neighbours, then and later. Their folder comes last, so that it hides
    no package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load_function(path_spec: str, what: str) -> Callable[[], Any]:
    """A function of somebody's file, `FILE.py:FUNCTION`; ConfigError where there is none. `what`
    it should return, in words."""
    file, _, name = path_spec.rpartition(":")
    if not file:
        raise ConfigError(f"{path_spec!r} must be FILE.py:FUNCTION, a function that returns {what}")
    function = getattr(import_path(file), name, None)
    if not callable(function):
        raise ConfigError(f"{file} has no function {name!r} that returns {what}")
    return function  # type: ignore[no-any-return]


def call_function(path_spec: str, what: str) -> Any:
    """What that function returns."""
    function = load_function(path_spec, what)
    try:
        return function()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise ConfigError(f"{path_spec} failed: {describe_error(error)}") from error
