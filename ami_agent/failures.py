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

from modules.types import UnusableInput

_HERE = Path(__file__).resolve().parent.parent
_GYMNASIUM = Path(gymnasium.__file__).parent
_NOT_ENVS = tuple(
    f"{path}{os.sep}"
    for path in (
        _HERE / "ami_agent",
        _HERE / "modules",
        _GYMNASIUM,
        Path(np.__file__).parent,
        Path(torch.__file__).parent,
    )
)
_ENVS = f"{_GYMNASIUM / 'envs'}{os.sep}"
_REGISTRATION = f"{_ENVS}registration.py"
_STDLIB = f"{sysconfig.get_path('stdlib')}{os.sep}"
_PACKAGES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib"))


class Failed(UnusableInput):
    """An environment broke its contract while it was being stepped; what was learnt by then
    stands."""


class FailedInReset(Failed):
    """Before anything was stepped."""


class NotMade(UnusableInput):
    """The environment's constructor failed."""


class Died(Failed):
    """All environments were made anew, as the process of one died: no episode goes on, and they
    must be reset."""


class EnvFailed(RuntimeError):
    """An environment's code raised something in a worker process; the message says all of it, as
    what was raised may not be known in this process."""


def _is_env_code(file: str) -> bool:
    if file.startswith(_ENVS):
        return file != _REGISTRATION
    if file.startswith(_STDLIB):
        return file.startswith(_PACKAGES)
    return not file.startswith((*_NOT_ENVS, "<"))


def location(error: BaseException) -> str:
    """` (file.py:LINE)`, the innermost line of the environment's code; empty where Gymnasium raised
    it by itself."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if _is_env_code(frame.f_code.co_filename):
            found = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return found


def described(error: BaseException) -> str:
    """Type, text and place of what an environment's code raised."""
    if isinstance(error, EnvFailed):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{location(error)}"


def is_interrupt(error: BaseException) -> bool:
    """Whether somebody pressed Ctrl-C. What the environment's code raises itself by the same name
    comes from a `raise` statement of its own; an interruption comes between statements."""
    if not isinstance(error, KeyboardInterrupt) or error.__traceback__ is None:
        return isinstance(error, KeyboardInterrupt)
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return not (raised and _is_env_code(code.co_filename))
