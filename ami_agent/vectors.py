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

from ami_agent.autoreset import as_next_step
from ami_agent.failures import NotMade, described, is_interrupt
from ami_agent.graphics import choose_gl_backend, gl_hint
from ami_agent.guard import Guarded, quiet_workers
from ami_agent.resources import cores
from ami_agent.subenvs import AsyncEnvs, SingleEnv, SyncEnvs
from ami_agent.watchdog import TimedOut
from modules.types import UnusableInput

Worlds = VectorEnv

RESERVED = frozenset(inspect.signature(gymnasium.make_vec).parameters) - {"kwargs"}
"""Names that an environment's keyword arguments can't have."""
FEW = 16
"""Environments stepped one by one that are opened at once, where their number is free."""


class Hold(gymnasium.Wrapper):
    """An action is held for several steps; rewards add up, and an end ends it early."""

    def __init__(self, env: gymnasium.Env, repeat: int) -> None:
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeat):
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
            bring(module)
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
    name: str, count: int, options: Mapping[str, Any], *, imports: Sequence[str] = (),
    limit: int = 0, repeat: int = 1, stack: int = 1, vector: str = "auto", timeout: float = 0.0,
) -> Worlds:  # fmt: skip
    """`count` worlds of that id; UnusableInput where they can't be made."""
    choose_gl_backend()
    if taken := [option for option in options if option in RESERVED]:
        raise UnusableInput(
            f"option {taken[0]!r} of environment {name!r} is a parameter of gymnasium.make_vec and "
            "none of the environment; how environments are stepped is set by --env.vector"
        )
    for module in imports:
        bring(module)
    wrappers = around(limit, repeat, stack)
    if wrappers and vector == "auto" and hasattr(_native(name), "behaviour_action"):
        raise UnusableInput(
            f"a limit, a repeat or a stack would step {name} one by one, without the walks, the "
            "oracle and the feelings that it has for many; use its own keyword arguments (its "
            "limit is `max_episode_steps`: --env.options max_episode_steps 30), or do without "
            "them: vector sync"
        )
    batched = vector == "auto" and not wrappers
    singles = partial(_singles, name, count, imports, options, wrappers, vector)
    how = partial(_batch, name, count, options, singles) if batched else singles
    return Guarded(name, partial(_made, name, how, bool(imports)), timeout)


def _made(name: str, make: Callable[[], VectorEnv], imported: bool) -> VectorEnv:
    try:
        return make()
    except UnusableInput:
        raise
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        hint = "" if imported else " If a package registers it, import that: --env.import NAME"
        raise NotMade(f"world {name!r} can't be made: {error}{hint}") from error
    except BaseException as error:  # a stranger's code may raise anything
        if is_interrupt(error) or isinstance(error, TimedOut):
            raise
        reason = f"{described(error)}{gl_hint(error)}"
        raise NotMade(f"world {name!r} can't be made: {reason}") from error


def _batch(
    name: str, count: int, options: Mapping[str, Any], singles: Callable[[], VectorEnv]
) -> VectorEnv:
    """As the environment offers it; one by one where it offers no batch."""
    spec = gymnasium.registry.get(name)
    if spec is not None and spec.vector_entry_point is None:
        return singles()
    envs = _make_vec(name, count, options)
    return as_next_step(name, envs, partial(_made, name, singles, True))


def _make_vec(spec: str | EnvSpec, count: int, options: Mapping[str, Any]) -> VectorEnv:
    with warnings.catch_warnings():
        # of what `as_next_step` understands or speaks of by itself
        warnings.filterwarnings("ignore", message=".*(AutoresetMode|autoreset_mode)")
        return gymnasium.make_vec(spec, num_envs=count, **options)


def _singles(
    name: str, count: int, imports: Sequence[str], options: Mapping[str, Any],
    wrappers: Sequence[Callable[[Any], Any]], vector: str,
) -> VectorEnv:  # fmt: skip
    """Stepped one by one, or each in a process of its own."""
    spec = _spec(name)
    factories = [EnvFactory(spec, imports, options, wrappers)] * count
    with quiet_workers(vector == "async"):
        envs = AsyncEnvs(factories) if vector == "async" else SyncEnvs(factories)
    envs.spec = deepcopy(spec)
    envs.spec.kwargs |= options
    return envs


def _spec(name: str) -> EnvSpec:
    """Raises what Gymnasium says of an id that it does not know."""
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    return _find_spec(name)  # "module:Name-v0", or the latest version of "Name"


def at_once(
    name: str, wanted: int, *, imports: Sequence[str] = (), limit: int = 0, repeat: int = 1,
    stack: int = 1, vector: str = "auto",
) -> int:  # fmt: skip
    """How many of these environments are opened at once where `wanted` would do: all of a batch,
    few of those that are stepped one by one, and one for each core of those in processes."""
    for module in imports:
        bring(module)
    if vector == "async":
        return min(wanted, cores())
    batched = vector == "auto" and not around(limit, repeat, stack) and _native(name) is not None
    return wanted if batched else min(wanted, FEW)


def _native(name: str) -> Any:
    """What makes that world many at once by itself; None where nothing does."""
    spec = gymnasium.registry.get(name)
    entry = spec.vector_entry_point if spec else None
    return gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry


def own_vector_space(name: str, options: Mapping[str, Any]) -> Space | None:
    """What that environment shows of each of many if it steps them itself; None where it doesn't,
    or not with these options."""
    if _native(name) is None:
        return None
    try:
        with contextlib.closing(gymnasium.make_vec(name, num_envs=1, **options)) as envs:
            return envs.single_observation_space
    except (Exception, SystemExit):  # a stranger's code may raise anything
        return None


def around(limit: int, repeat: int, stack: int) -> list[Callable[[Any], Any]]:
    """What is put around each single world, inner first."""
    wrappers: list[Callable[[Any], Any]] = []
    if repeat > 1:
        wrappers.append(partial(Hold, repeat=repeat))
    if limit:
        wrappers.append(partial(TimeLimit, max_episode_steps=limit))
    if stack > 1:
        wrappers.append(partial(FrameStackObservation, stack_size=stack))
    return wrappers


LIMITS = ("max_episode_steps", "max_steps", "_max_episode_steps")
"""Attributes by which environments that truncate episodes themselves call their limit."""


def own_limit(envs: VectorEnv) -> tuple[int, str]:
    """Steps after which the environment says that it truncates an episode, and the attribute that
    says so; 0 where none does."""
    inner = envs.unwrapped
    env = inner.envs[0] if isinstance(inner, SyncVectorEnv) else inner
    for name in LIMITS:
        try:
            value = env.get_wrapper_attr(name) if isinstance(env, Env) else getattr(env, name)
        except Exception:  # a property of a stranger's environment may raise anything
            continue
        if isinstance(value, int | np.integer) and value > 1:
            return int(value), name
    return 0, ""


def bring(name: str) -> ModuleType:
    """Imports a module by name, or a file by path; UnusableInput where that fails."""
    choose_gl_backend()  # the module may import MuJoCo
    path = Path(name)
    try:
        if path.suffix != ".py":
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` would: what lies in the current folder
            return importlib.import_module(name)
        if not path.is_file():
            raise UnusableInput(f"no file {name} to import")
        # the same name in every process: worker processes find by it what they are sent
        known = f"_ami_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
        if known in sys.modules:
            return sys.modules[known]
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[known] = importlib.util.module_from_spec(spec)
        _find_neighbours(path.resolve().parent)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known]  # or the next who asks would get half of it
            raise
        return module
    except UnusableInput:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise UnusableInput(f"{name!r} can't be imported: {described(error)}") from error


def _find_neighbours(folder: Path) -> None:
    """A file may import its neighbours, then and later. Their folder comes last, so that it hides
    no package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def function_of(place: str, what: str) -> Callable[[], Any]:
    """A function of somebody's file, `FILE.py:FUNCTION`; UnusableInput where there is none. `what`
    it should return, in words."""
    file, _, name = place.rpartition(":")
    if not file:
        raise UnusableInput(f"{place!r} must be FILE.py:FUNCTION, a function that returns {what}")
    function = getattr(bring(file), name, None)
    if not callable(function):
        raise UnusableInput(f"{file} has no function {name!r} that returns {what}")
    return function  # type: ignore[no-any-return]


def called(place: str, what: str) -> Any:
    """What that function returns."""
    function = function_of(place, what)
    try:
        return function()
    except UnusableInput:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise UnusableInput(f"{place} failed: {described(error)}") from error
