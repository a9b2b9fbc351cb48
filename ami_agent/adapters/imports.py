"""A run folder is not a program: what its settings name is imported only where the user names it
too, or trusts the folder."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium

from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config
from modules.types import ConfigError

TRUSTED_PACKAGES = ("gymnasium", "envs")
"""Packages whose environments need no naming."""


def check_trusted(
    config: Config, folder: Path, imports: Sequence[str], trust: bool, flag: str = "--import"
) -> Config:
    """The settings of a folder, with what the user named (`imports`: files x.py, or modules) in the
    place of what they name; ConfigError where they name more, unless the user trusts them."""
    named = tuple(absolute_import(name) for name in imports)
    env_configs = (config.env, config.eval_env)
    missing = {
        item: None
        for env in env_configs
        for item in _needed_imports(env)
        if not _is_known(item, named)
    }
    if missing and not trust:
        missing_text = " ".join(shlex.quote(name) for name in missing)
        raise ConfigError(
            f"{folder} needs code that is not imported unless you name it: {flag} {missing_text} (in "
            f'Python: imports=("{next(iter(missing))}",)); a file or module of the same name '
            "elsewhere will do, and --trust (trust=True) allows whatever this folder names"
        )
    env, eval_env = (_with_named_imports(env, named) for env in env_configs)
    return replace(config, env=env, eval_env=eval_env)


def absolute_import(name: str) -> str:
    """The same file from whichever folder; modules are as they are."""
    return str(Path(name).absolute()) if name.endswith(".py") else name


def _needed_imports(env: EnvConfig) -> Iterator[str]:
    """Files and modules that are imported where this environment is made."""
    yield from env.imports
    module, _, name = env.id.rpartition(":")  # Gymnasium imports what stands before a colon
    if module:
        yield module
    inner, colon, _ = str(env.options.get("env_id", "")).rpartition(":")  # and Gym, within it
    if colon:
        yield inner
    spec = gymnasium.registry.get(name)
    for entry in (spec.entry_point, spec.vector_entry_point) if spec else ():
        package = (
            entry.partition(":")[0].partition(".")[0]
            if isinstance(entry, str)
            else TRUSTED_PACKAGES[0]
        )
        if package not in TRUSTED_PACKAGES and package not in sys.modules:
            yield package


def _is_known(needed: str, named: Sequence[str]) -> bool:
    """Whether it was named, or runs in this process already."""
    if any(_matches(name, needed) for name in named):
        return True
    if not needed.endswith(".py"):
        return needed in sys.modules
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return needed in files


def _matches(named: str, needed: str) -> bool:
    """Whether the one was named where the other is wanted: the same module or file, wherever it
    lies, or the package of a module."""
    return named == needed or needed.startswith(f"{named}.") or _stem(named) == _stem(needed)


def _stem(name: str) -> str:
    """`f` of /home/somebody/f.py, C:\\\\somebody\\\\f.py and package.f"""
    return re.split(r"[/\\.]", name.removesuffix(".py"))[-1]


def _with_named_imports(env: EnvConfig, named: Sequence[str]) -> EnvConfig:
    """With what was named in the place of what it answers."""
    kept_imports = [
        item for item in env.imports if not any(_stem(item) == _stem(name) for name in named)
    ]
    module, _, bare_id = env.id.rpartition(":")
    is_matched = any(_matches(name, module) for name in named)
    return replace(
        env,
        imports=tuple(dict.fromkeys([*named, *kept_imports])),
        id=bare_id if is_matched else env.id,
    )
