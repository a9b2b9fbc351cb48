"""Code of the user's: modules and files x.py are imported by name, and the settings of a run folder
import only what the user named or trusts.

The OpenGL backend with which MuJoCo renders is chosen before any of them is imported.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import os
import re
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium

from ami_agent.adapters.fault_tolerance import as_config_errors
from modules.types import ConfigError

if TYPE_CHECKING:
    from ami_agent.adapters.env import EnvConfig
    from ami_agent.config import Config

TRUSTED_PACKAGES = ("gymnasium", "envs")
"""Packages whose environments need no `--import`."""
BACKENDS = {
    "egl": ("libEGL.so.1", "libEGL.so"),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
"""The backends that need no display, each with the names of the library that it needs."""


def import_path(name: str) -> ModuleType:
    """Imports a module by name, or a file by path; ConfigError where that fails."""
    choose_gl_backend()  # the module may import MuJoCo
    path = Path(name)
    with as_config_errors(f"{name!r} can't be imported"):
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
        folder = str(path.resolve().parent)
        if folder not in sys.path:  # it imports its neighbours; last, so that it hides no package
            sys.path.append(folder)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]  # a later import must not find half of the module
            raise
        return module


def check_names_function(path_spec: str, returns: str) -> None:
    """Raises ConfigError, with the functions that there are, for a file x.py without one."""
    if not path_spec.endswith(".py"):
        return
    names: list[str] = []
    with suppress(OSError, SyntaxError, ValueError):
        body = ast.parse(Path(path_spec).read_bytes()).body
        names = [part.name for part in body if isinstance(part, ast.FunctionDef)]
    defined = f"; it defines {', '.join(names)}" if names else ""
    raise ConfigError(
        f"{path_spec} is a file: add the function that returns {returns}, {path_spec}:FUNCTION"
        f"{defined}"
    )


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
    with as_config_errors(f"{path_spec} failed"):
        return function()


def absolute_import(name: str) -> str:
    """Files by their absolute path, modules by their name."""
    return str(Path(name).absolute()) if name.endswith(".py") else name


def check_trusted(
    config: Config, folder: Path, imports: Sequence[str], trust: bool | None,
    flag: str = "--import",
) -> Config:  # fmt: skip
    """The settings of a folder, in which the user's `imports` (files x.py, or modules) replace
    imports of the same name; ConfigError where the settings need code that the user did not name,
    unless `trust` (None: the command has no such flag)."""
    named = tuple(absolute_import(name) for name in imports)
    env_configs = (config.env, config.eval_env)
    needed = (item for env in env_configs for item in _needed_imports(env))
    missing = list(dict.fromkeys(item for item in needed if not _is_known(item, named)))
    if missing and not trust:
        names = " ".join(map(shlex.quote, missing))
        if trust is None:
            raise ConfigError(
                f"{folder} needs code that is not imported unless you name it: {flag} {names}"
            )
        raise ConfigError(
            f"{folder} needs code that is not imported unless you name it: {flag} {names} (in "
            f'Python: imports=("{missing[0]}",)); a file or module of the same name elsewhere will '
            "do, and --trust (trust=True) allows everything that this folder names"
        )
    env, eval_env = (_with_named_imports(env, named) for env in env_configs)
    return replace(config, env=env, eval_env=eval_env)


def _needed_imports(env: EnvConfig) -> Iterator[str]:
    """Files and modules that are imported when this environment is made."""
    yield from env.imports
    module, _, name = env.id.rpartition(":")  # Gymnasium imports what stands before a colon
    if module:
        yield module
    inner, colon, _ = str(env.options.get("env_id", "")).rpartition(":")  # and Gym, within it
    if colon:
        yield inner
    spec = gymnasium.registry.get(name)
    for entry in (spec.entry_point, spec.vector_entry_point) if spec else ():
        if not isinstance(entry, str):
            continue
        package = entry.partition(":")[0].partition(".")[0]
        if package not in TRUSTED_PACKAGES and package not in sys.modules:
            yield package


def _is_known(needed: str, named: Sequence[str]) -> bool:
    """Whether the user named it, or this process has imported it already."""
    if any(_matches(name, needed) for name in named):
        return True
    if not needed.endswith(".py"):
        return needed in sys.modules
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return needed in files


def _matches(named: str, needed: str) -> bool:
    """Whether both are the same module, files of the same name, or `named` is the package of
    `needed`."""
    return named == needed or needed.startswith(f"{named}.") or _stem(named) == _stem(needed)


def _stem(name: str) -> str:
    """`f` of /home/ann/f.py, C:\\ann\\f.py and package.f"""
    return re.split(r"[/\\.]", name.removesuffix(".py"))[-1]


def _with_named_imports(env: EnvConfig, named: Sequence[str]) -> EnvConfig:
    """The settings with the user's imports in the place of those that they match."""
    stems = [_stem(name) for name in named]
    kept = [item for item in env.imports if _stem(item) not in stems]
    module, _, bare_id = env.id.rpartition(":")
    is_matched = any(_matches(name, module) for name in named)
    return replace(
        env, imports=tuple(dict.fromkeys([*named, *kept])), id=bare_id if is_matched else env.id
    )


def choose_gl_backend() -> None:
    """Sets MUJOCO_GL to a backend that needs no display, where there is none and the user has not
    set the variable: MuJoCo would open a window. MuJoCo and Gymnasium read the variable when they
    are imported or when the first environment renders."""
    if sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        return
    if not os.environ.get("MUJOCO_GL"):
        found = (name for name, files in BACKENDS.items() if any(map(_loads, files)))
        os.environ["MUJOCO_GL"] = next(found, "egl")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
