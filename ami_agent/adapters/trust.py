"""What the settings of a run folder may do in this process: they import only code that the user
named or trusts, and they allocate no more memory than the folder's weights explain."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config
from modules.types import ConfigError

TRUSTED_PACKAGES = ("gymnasium", "envs")
"""Packages whose environments need no `--import`."""
MIB = 2**20


def check_trusted(
    config: Config, folder: Path, imports: Sequence[str], trust: bool, flag: str = "--import"
) -> Config:
    """The settings of a folder, in which the user's `imports` (files x.py, or modules) replace
    imports of the same name; ConfigError where the settings need code that the user did not name,
    unless `trust`."""
    named = tuple(absolute_import(name) for name in imports)
    env_configs = (config.env, config.eval_env)
    needed = (item for env in env_configs for item in _needed_imports(env))
    missing = list(dict.fromkeys(item for item in needed if not _is_known(item, named)))
    if missing and not trust:
        names = " ".join(map(shlex.quote, missing))
        raise ConfigError(
            f"{folder} needs code that is not imported unless you name it: {flag} {names} (in "
            f'Python: imports=("{missing[0]}",)); a file or module of the same name elsewhere will '
            "do, and --trust (trust=True) allows everything that this folder names"
        )
    env, eval_env = (_with_named_imports(env, named) for env in env_configs)
    return replace(config, env=env, eval_env=eval_env)


def absolute_import(name: str) -> str:
    """Files by their absolute path, modules by their name."""
    return str(Path(name).absolute()) if name.endswith(".py") else name


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
        env,
        imports=tuple(dict.fromkeys([*named, *kept])),
        id=bare_id if is_matched else env.id,
    )


class AllocationLimit(TorchFunctionMode):
    """Within it, ConfigError where new tensors (weights, buffers) take more than `max_bytes`
    together: a model is refused before its memory is filled."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes, self.allocated = max_bytes, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(isinstance(arg, Tensor) for arg in args):
            self.allocated += result.nbytes
            if self.allocated > self.max_bytes:
                raise ConfigError(
                    f"the agent would take more than {self.max_bytes // MIB} MiB, and its "
                    "checkpoint holds less: the sizes in the settings must be those of the weights"
                )
        return result
