"""Many worlds as Gymnasium steps them, made alike: whoever made them, after an episode's end the
next step begins another, and its action is ignored (Gymnasium's NEXT_STEP)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers import FrameStackObservation, TimeLimit

from ami_agent.guard import Guarded
from modules.types import UnusableInput

Worlds = VectorEnv


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


class NextStep(VectorWrapper):
    """For worlds that wait to be reset (DISABLED): what is over begins anew with the next step."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__(envs)
        self.over = np.zeros(envs.num_envs, dtype=bool)

    def reset(self, **asked: Any) -> Any:
        self.over[:] = False
        return self.env.reset(**asked)

    def step(self, actions: Any) -> Any:
        fresh = self.over
        if fresh.any():  # Gymnasium's own refuse to step what is over; what is born so takes a step
            self.env.reset(options={"reset_mask": fresh.copy()})
        obs, reward, terminated, truncated, info = self.env.step(actions)
        if fresh.any():
            obs, born = self.env.reset(options={"reset_mask": fresh.copy()})
            info = {**info, **{name: _either(fresh, info.get(name), n) for name, n in born.items()}}
            reward, terminated, truncated = (
                np.where(fresh, 0, part).astype(part.dtype)
                for part in (reward, terminated, truncated)
            )
        self.over = np.asarray(terminated) | np.asarray(truncated)
        return obs, reward, terminated, truncated, info


def _either(fresh: np.ndarray, lived: Any, born: Any) -> Any:
    """What is told of each world by the step, or by the reset where it was one."""
    if isinstance(lived, np.ndarray) and isinstance(born, np.ndarray) and lived.shape == born.shape:
        return np.where(fresh.reshape(-1, *[1] * (lived.ndim - 1)), born, lived)
    return born


def make(
    name: str, count: int, options: Mapping[str, Any], *, imports: Sequence[str] = (),
    limit: int = 0, repeat: int = 1, stack: int = 1, vector: str = "auto",
) -> Worlds:  # fmt: skip
    """`count` worlds of that id; UnusableInput where they can't be made."""
    for module in imports:
        bring(module)
    wrappers = around(limit, repeat, stack)
    if wrappers and vector == "auto" and hasattr(_native(name), "walk"):
        raise UnusableInput(
            f"a limit, a repeat or a stack would step {name} one by one, without the walks, the "
            "oracle and the feelings that it has for many; use its own keyword arguments (its "
            "limit is `budget`: --env.options budget 30), or do without them: vector sync"
        )
    how: dict[str, Any] = {}
    if vector != "auto" or wrappers:
        how = {"vectorization_mode": "async" if vector == "async" else "sync", "wrappers": wrappers}
    return Guarded(name, partial(_made, name, count, how, options, bool(imports)))


def _made(
    name: str, count: int, how: Mapping[str, Any], options: Mapping[str, Any], imported: bool
) -> VectorEnv:
    try:
        envs = gymnasium.make_vec(name, num_envs=count, **how, **options)
    except gymnasium.error.NameNotFound as error:
        hint = "" if imported else " If a package registers it, import that: --env.import NAME"
        raise UnusableInput(f"world {name!r} can't be made: {error}{hint}") from error
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise UnusableInput(
            f"world {name!r} can't be made: {type(error).__name__}: {error}"
        ) from error
    return _next_step(name, envs)


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
        with closing(gymnasium.make_vec(name, num_envs=1, **options)) as envs:
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


def _next_step(name: str, envs: VectorEnv) -> VectorEnv:
    mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    mode = AutoresetMode(mode) if isinstance(mode, str) else mode
    if mode == AutoresetMode.NEXT_STEP:
        return envs
    if mode == AutoresetMode.DISABLED:
        return NextStep(envs)
    envs.close()
    raise UnusableInput(
        f"world {name!r} resets within the step that ends an episode (SAME_STEP); the agent needs "
        "NEXT_STEP: --env.vector sync makes it so, where the world can be had one by one"
    )


def bring(name: str) -> ModuleType:
    """Imports a module by name, or a file by path; UnusableInput where that fails."""
    path = Path(name)
    try:
        if path.suffix != ".py":
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` would: what lies in the current folder
            return importlib.import_module(name)
        if not path.is_file():
            raise UnusableInput(f"no file {name} to import")
        known = f"_ami_{path.stem}_{abs(hash(path.resolve()))}"
        if known in sys.modules:
            return sys.modules[known]
        spec = importlib.util.spec_from_file_location(known, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[known] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known]  # or the next who asks would get half of it
            raise
        return module
    except UnusableInput:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise UnusableInput(
            f"{name!r} can't be imported: {type(error).__name__}: {error}"
        ) from error


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
        raise UnusableInput(f"{place} failed: {type(error).__name__}: {error}") from error
