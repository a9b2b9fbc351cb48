"""Failures of environments: what their code raises, calls that do not return, and worker processes
that die. Every error is one line with the place in the environment's code.

A daemon thread checks the deadlines of calls, so that a call costs two dictionary entries and no
system call. It interrupts the calling thread with `CallTimeout`. Code that never returns to the
interpreter can't be interrupted; then the process ends with one line and exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import logging
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium import logger as gymnasium_logger
from gymnasium.vector import AsyncVectorEnv, VectorEnv, VectorWrapper

from ami_agent import interrupt
from modules.types import ConfigError

MAX_DEATHS, DEATH_WINDOW = 3, 100  # so many deaths of workers within so many steps end the run
EXIT_TIMEOUT = 5.0  # seconds in which a process whose pipe is broken should have ended
SIGNAL_WINDOW = 0.3
"""Seconds after the death of a worker in which a signal to this process explains it."""
POLL_INTERVAL = 0.25  # seconds between two checks of the deadlines
GRACE = 5.0  # seconds between the first interruption of a call and the end of the process

log = logging.getLogger(__name__)

T = TypeVar("T")


class EnvError(ConfigError):
    """An environment broke its contract while it was stepped; training up to then is kept."""


class EnvResetError(EnvError):
    """An environment failed in a reset."""


class EnvCreationError(ConfigError):
    """The environment's constructor failed."""


class EpisodesRestarted(EnvError):
    """All environments were made again, which broke off their episodes: they must be reset."""


class WorkerDied(EpisodesRestarted):
    """All environments were made again because a worker process died."""


class EnvWorkerError(RuntimeError):
    """The code of an environment raised something in a worker process. The message describes it,
    as its type may not be known in this process."""


class SameStepDetected(Exception):
    """Some sub-environments of a batch reset within the step that ended their episodes (SAME_STEP),
    while others go on. `make` makes as many that are stepped one by one."""

    def __init__(self, make: Callable[[], VectorEnv]) -> None:
        super().__init__(
            "resets within the step that ends an episode (SAME_STEP): its sub-environments are "
            "stepped one by one from here on, and all episodes are restarted"
        )
        self.make = make


class CallTimeout(BaseException):
    """A call took too long. Not an Exception: environments catch those."""


_ROOT = Path(__file__).resolve().parents[2]
_GYMNASIUM = Path(gymnasium.__file__).parent
_NOT_ENVS = (
    _ROOT / "ami_agent", _ROOT / "modules", _GYMNASIUM, Path(np.__file__).parent,
    Path(torch.__file__).parent,
)  # fmt: skip
_STDLIB, *_PACKAGES = map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))


def _is_env_code(file: str) -> bool:
    path = Path(file)
    if path.is_relative_to(_GYMNASIUM / "envs"):
        return path != _GYMNASIUM / "envs" / "registration.py"
    if file.startswith("<") or any(map(path.is_relative_to, _NOT_ENVS)):
        return False
    # packages may be installed in a folder of the standard library
    return not path.is_relative_to(_STDLIB) or any(map(path.is_relative_to, _PACKAGES))


def error_location(error: BaseException) -> str:
    """` (file.py:LINE)`, the innermost line of the environment's code; empty without any."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if _is_env_code(frame.f_code.co_filename):
            found = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return found


def describe_error(error: BaseException) -> str:
    """Type, message and place of what an environment's code raised, on one line."""
    if isinstance(error, EnvWorkerError):
        return str(error)
    text = _message(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{error_location(error)}"


def _message(error: BaseException) -> str:
    """The message of an error, on one line; empty where its class can't make one."""
    try:
        return " ".join(str(error).split())
    except Exception:  # third-party code may raise anything
        return ""


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal interrupted the environment's code (Ctrl-C). A KeyboardInterrupt that this
    code raises by itself comes from a `raise` statement in it."""
    if isinstance(error, Exception) or error.__traceback__ is None:
        return False
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    if Path(code.co_filename).is_relative_to(_ROOT / "ami_agent"):  # a handler of ours
        return True
    raised = code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return isinstance(error, KeyboardInterrupt) and not (raised and _is_env_code(code.co_filename))


@contextlib.contextmanager
def as_config_errors(what: str) -> Iterator[None]:
    """Whatever third-party code in the block raises becomes a ConfigError of one line that begins
    with `what`; ConfigErrors and interrupts stay what they are."""
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise ConfigError(f"{what}: {describe_error(error)}") from error


@dataclass
class _Call:
    deadline: float
    message: str


class _Watchdog:
    def __init__(self) -> None:
        self.calls: dict[int, _Call] = {}  # by the identifier of the calling thread
        self.thread: threading.Thread | None = None
        self.previous: Any = None  # the signal's handler before

    def start(self) -> None:
        """Only the main thread may install a handler for the signal that wakes it up."""
        self.thread = threading.Thread(target=self._run, name="env-watchdog", daemon=True)
        if _SIGNALS and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGALRM, self._on_signal)
        self.thread.start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        call = self.calls.get(threading.main_thread().ident or 0)
        if call is not None and time.monotonic() >= call.deadline:
            raise CallTimeout
        if callable(self.previous):
            self.previous(number, frame)

    def _run(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(POLL_INTERVAL)
            now = time.monotonic()
            # while the process was stopped (Ctrl-Z) no call could go on
            lost, before = max(0.0, now - before - 10 * POLL_INTERVAL), now
            for thread, call in list(self.calls.items()):
                call.deadline += lost
                if now >= call.deadline + GRACE:
                    with contextlib.suppress(OSError):
                        message = f"\nami: {call.message}; what was checkpointed is kept\n"
                        os.write(2, message.encode())
                    os._exit(1)
                by_signal = _SIGNALS and thread == threading.main_thread().ident
                if by_signal and call.deadline <= now < call.deadline + GRACE / 2:
                    signal.pthread_kill(thread, signal.SIGALRM)  # ends waiting in a system call too
                elif now >= call.deadline:  # another thread, or the environment handles the signal
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(CallTimeout)
                    )


_SIGNALS = hasattr(signal, "SIGALRM") and hasattr(signal, "pthread_kill")  # not on Windows
_watchdog = _Watchdog()
if sys.platform != "win32":  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc]


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raises CallTimeout in a block that takes longer than that; 0 is no limit. `message` is
    written where the block can't be interrupted and the process ends."""
    if not seconds:
        yield
        return
    if _watchdog.thread is None:
        _watchdog.start()
    thread = threading.get_ident()
    outer = _watchdog.calls.get(thread)
    _watchdog.calls[thread] = _Call(time.monotonic() + seconds, message)
    try:
        yield
    finally:
        if outer is None:
            del _watchdog.calls[thread]
        else:
            _watchdog.calls[thread] = outer


def retry_if_restarted(fn: Callable[[], T]) -> T:
    """The result of `fn`, which is called again where all environments were made again."""
    for _ in range(MAX_DEATHS - 1):
        with contextlib.suppress(EpisodesRestarted):
            return fn()
    return fn()


class FaultTolerantVectorEnv(VectorWrapper):
    """The environments that `make` makes. Where they run in worker processes and one dies (killed,
    out of memory), all are made again. An error in an environment's code closes them, and so does
    a call that takes longer than `timeout` seconds (0: no limit)."""

    def __init__(self, name: str, make: Callable[[], VectorEnv], timeout: float = 0.0) -> None:
        self.name, self.make, self.timeout = name, make, timeout
        super().__init__(self._make_envs())
        self.action_space = self.env.action_space  # its random stream outlives remade environments
        self.steps = 0
        self.deaths: list[int] = []  # the step of each, the latest few
        self.is_hung = False

    def reset(self, **kwargs: Any) -> Any:
        while True:  # a worker that dies in a reset has lost no episode
            with contextlib.suppress(EpisodesRestarted):
                return self._call("reset", lambda: self.env.reset(**kwargs))

    def step(self, actions: Any) -> Any:
        """Raises EpisodesRestarted, or another EnvError."""
        self.steps += 1
        return self._call("step", lambda: self.env.step(actions))

    def render(self) -> Any:
        return self._call("render", self.env.render)

    def close(self, **kwargs: Any) -> None:
        """An environment that hangs in a call is not called again."""
        if self.is_hung:
            return
        try:
            with self._guard("close"):
                self.env.close(**kwargs)
        except CallTimeout:
            _kill(self.env, kill_only=True)

    def _make_envs(self) -> VectorEnv:
        """Raises EnvCreationError, or EnvError where the constructor does not return."""
        message = self._timeout_message("its constructor")
        try:
            with time_limit(self.timeout, message):
                return self.make()
        except CallTimeout as timeout:
            raise EnvError(f"{message}{error_location(timeout)}") from timeout

    @contextlib.contextmanager
    def _guard(self, method: str) -> Iterator[None]:
        with (
            mute_gym_logger(isinstance(self.env.unwrapped, AsyncVectorEnv)),
            time_limit(self.timeout, self._timeout_message(method)),
        ):
            yield

    def _timeout_message(self, method: str) -> str:
        return (
            f"environment {self.name!r}: {method} did not return within {self.timeout:g} s "
            "(--env.step-timeout)"
        )

    def _call(self, method: str, fn: Callable[[], Any]) -> Any:
        """The result of `fn`. Raises EpisodesRestarted where all environments were made again,
        another EnvError where the run must end."""
        try:
            with self._guard(method):
                return fn()
        except ConfigError:
            raise
        except CallTimeout as timeout:
            raise self._end_hung(method, timeout) from timeout
        except SameStepDetected as detected:
            message = f"environment {self.name!r} {detected}"
            self._restart(detected.make, message)
            raise EpisodesRestarted(message) from None
        except BaseException as error:  # third-party code may raise anything
            if is_interrupt(error):
                raise
            death = self._end_failed(error)
            if not death:
                raise self._error_of_env(method, error) from error
            if self._dies_often():
                raise EnvError(
                    f"environment {self.name!r}: {death}, the third death within {DEATH_WINDOW} "
                    "steps"
                ) from error
        self._restart(
            self.make,
            f"environment {self.name!r}: {death}; all {self.num_envs} environments are made again, "
            "and their episodes restarted",
        )
        raise WorkerDied(f"environment {self.name!r} failed in {method}: {death}")

    def _end_hung(self, method: str, timeout: CallTimeout) -> EnvError:
        """Ends the environments after a call that did not return; the error that says which."""
        self.is_hung = True
        location = error_location(timeout)
        if isinstance(self.env.unwrapped, AsyncVectorEnv):
            pipes = enumerate(self.env.unwrapped.parent_pipes)
            hung = [str(index) for index, pipe in pipes if pipe is None or not pipe.poll()]
            location = f" (worker {', '.join(hung)})" if hung else location
        _kill(self.env, kill_only=True)
        return EnvError(f"{self._timeout_message(method)}{location}")

    def _end_failed(self, error: BaseException) -> str:
        """Ends the environments after an error. Returns which workers died, and how; empty where
        the environment's own code failed."""
        death = _dead_workers(self.env) if isinstance(error, (EOFError, OSError)) else ""
        _kill(self.env)
        if death and interrupt.signal_pending(SIGNAL_WINDOW):
            interrupt.raise_abrupt()  # a signal that ends this process ended its workers first
        return death

    def _error_of_env(self, method: str, error: BaseException) -> EnvError:
        """What the environment's own code raised, as one line."""
        kind = EnvResetError if method == "reset" else EnvError
        reason = f"{describe_error(error)}{_hint(method, error)}"
        return kind(f"environment {self.name!r} failed in {method}: {reason}")

    def _dies_often(self) -> bool:
        """Records a death at this step. Returns whether the latest were close to each other."""
        self.deaths = [*self.deaths, self.steps][-MAX_DEATHS:]
        return len(self.deaths) == MAX_DEATHS and self.steps - self.deaths[0] < DEATH_WINDOW

    def _restart(self, make: Callable[[], VectorEnv], message: str) -> None:
        """Makes all environments again, and logs why. Raises EnvError, so that training up to here
        is saved."""
        _kill(self.env)
        self.make = make
        try:
            self.env = self._make_envs()
        except ConfigError as error:
            raise EnvError(str(error)) from error
        log.warning(message)


RETURN_VALUES = {
    "reset": "an observation and an info dict",
    "step": "an observation, a reward, terminated, truncated and an info dict",
}
KNOWN_ERRORS = {
    "array element with a sequence": "a reward is one number, terminated and truncated are True or "
    "False",
    "array is the wrong shape": "its observation is not of its observation_space",
    "wrong dimensionality": "its observation is not of its observation_space",
}
"""Fragments of Gymnasium's messages about wrong return values, and what they mean."""


def _hint(method: str, error: BaseException) -> str:
    """What the environment's method should return, where the error is about its return value."""
    text = _message(error)
    if method in RETURN_VALUES and ("to unpack" in text or "attribute 'items'" in text):
        return f" (Gymnasium's {method} returns {RETURN_VALUES[method]})"
    hints = (f" ({hint})" for fragment, hint in KNOWN_ERRORS.items() if fragment in text)
    return next(hints, "") or mujoco_hint(error)


MUJOCO_3_PACKAGES = ("gymnasium_robotics", "dm_control", "metaworld")
"""Packages whose environments MuJoCo 4 breaks (gymnasium-robotics: Fetch, Hand and Kitchen)."""


def mujoco_hint(error: BaseException) -> str:
    """How to repair a MuJoCo of the wrong version, or its rendering; empty for other errors."""
    packages = {
        str(frame.f_globals.get("__name__")).partition(".")[0]
        for frame, _ in walk_tb(error.__traceback__)
    }
    broken = next((package for package in MUJOCO_3_PACKAGES if package in packages), "")
    installed = metadata.version("mujoco") if broken and find_spec("mujoco") else "0"
    if int(installed.partition(".")[0]) < 4:
        return gl_hint(error)
    return (
        f" (mujoco {installed} is installed, with which environments of {broken} do not work: pip "
        "install 'mujoco<4')"
    )


def gl_hint(error: BaseException) -> str:
    """How to repair an OpenGL backend that doesn't work; empty for errors of another kind."""
    if not re.search(
        r"\b(EGL|egl[A-Z]\w*|OSMesa|GLFW\w*|OpenGL|MUJOCO_GL|framebuffer)", _message(error)
    ):
        return ""
    chosen = os.environ.get("MUJOCO_GL") or "not set"
    return (
        f" (MuJoCo could not render, MUJOCO_GL is {chosen}: set it to egl, where libEGL is "
        "installed, to osmesa, where libOSMesa is, or to glfw, where there is a display)"
    )


@contextlib.contextmanager
def mute_gym_logger(muted: bool) -> Iterator[None]:
    """Gymnasium logs the traceback of every failing worker process."""
    previous_level = gymnasium_logger.min_level
    if muted:
        gymnasium_logger.min_level = gymnasium_logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium_logger.min_level = previous_level


def _dead_workers(envs: VectorEnv) -> str:
    """The worker processes that ended, and how."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    processes = envs.unwrapped.processes
    ending = connection.wait([p.sentinel for p in processes], timeout=EXIT_TIMEOUT)
    for process in processes:
        if process.sentinel in ending:  # a process closes its pipes a little before it ends
            process.join(EXIT_TIMEOUT)
    deaths = []
    for number, process in enumerate(processes):
        if (code := process.exitcode) is not None:
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            deaths.append(f"worker {number} died ({reason})")
    return ", ".join(deaths)


def _kill(envs: VectorEnv, kill_only: bool = False) -> None:
    """Closes environments, and kills their worker processes. With `kill_only`, environments of this
    process are left alone: they hang in a call."""
    if isinstance(envs.unwrapped, AsyncVectorEnv):
        kill_workers(envs.unwrapped)
    elif not kill_only:
        with contextlib.suppress(Exception, SystemExit):
            envs.close()


def kill_workers(envs: AsyncVectorEnv) -> None:
    """Ends worker processes that may not answer."""
    processes = getattr(envs, "processes", ())  # the constructor may have failed before any
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for pipe in getattr(envs, "parent_pipes", ()):
        if pipe is not None:  # Gymnasium puts None where it closed one
            pipe.close()
    envs.closed = True
