"""What is raised where an environment fails, and where in its code it was raised."""

from __future__ import annotations

import dis
import os
import sysconfig
from pathlib import Path
from traceback import walk_tb

import gymnasium
import numpy as np
import torch

from modules.types import ConfigError

_ROOT = Path(__file__).resolve().parents[2]
_GYMNASIUM = Path(gymnasium.__file__).parent
_NOT_ENVS = tuple(
    f"{path}{os.sep}"
    for path in (
        _ROOT / "ami_agent",
        _ROOT / "modules",
        _GYMNASIUM,
        Path(np.__file__).parent,
        Path(torch.__file__).parent,
    )
)
_AMI_AGENT_DIR = f"{_ROOT / 'ami_agent'}{os.sep}"
_ENVS = f"{_GYMNASIUM / 'envs'}{os.sep}"
_REGISTRATION = f"{_ENVS}registration.py"
_STDLIB = f"{sysconfig.get_path('stdlib')}{os.sep}"
_PACKAGES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib"))


class EnvError(ConfigError):
    """An environment broke its contract while it was being stepped; what was learnt by then
    stands."""


class EnvResetError(EnvError):
    """Before anything was stepped."""


class EnvCreationError(ConfigError):
    """The environment's constructor failed."""


class WorkerDied(EnvError):
    """All environments were made anew, as the process of one died: no episode goes on, and they
    must be reset."""


class EnvWorkerError(RuntimeError):
    """An environment's code raised something in a worker process; the message says all of it, as
    what was raised may not be known in this process."""


def _is_env_code(file: str) -> bool:
    if file.startswith(_ENVS):
        return file != _REGISTRATION
    if file.startswith(_STDLIB):
        return file.startswith(_PACKAGES)
    return not file.startswith((*_NOT_ENVS, "<"))


def error_location(error: BaseException) -> str:
    """` (file.py:LINE)`, the innermost line of the environment's code; empty where Gymnasium raised
    it by itself."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if _is_env_code(frame.f_code.co_filename):
            found = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return found


def describe_error(error: BaseException) -> str:
    """Type, text and place of what an environment's code raised."""
    if isinstance(error, EnvWorkerError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{error_location(error)}"


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal interrupted the environment's code (Ctrl-C). What that code raises by itself
    under the same name comes from a `raise` statement of its own."""
    if isinstance(error, Exception) or error.__traceback__ is None:
        return False
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    if code.co_filename.startswith(_AMI_AGENT_DIR):  # a handler of ours
        return True
    raised = code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return isinstance(error, KeyboardInterrupt) and not (raised and _is_env_code(code.co_filename))
