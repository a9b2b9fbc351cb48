"""What goes wrong in worlds is told in one line; a process that dies does not end a life."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, TypeVar

from gymnasium import logger as gymnasium_logger
from gymnasium.vector import AsyncVectorEnv, VectorEnv, VectorWrapper

from ami_agent import interrupt
from ami_agent.adapters.autoreset import SameStepDetected
from ami_agent.adapters.failures import (
    EnvError,
    EnvResetError,
    WorkerDied,
    describe_error,
    error_location,
    is_interrupt,
)
from ami_agent.adapters.graphics import gl_hint
from ami_agent.adapters.sub_envs import terminate_workers
from ami_agent.adapters.watchdog import TimedOut, time_limit
from modules.types import ConfigError

__all__ = ["EnvError", "FaultTolerantVectorEnv", "WorkerDied", "retry_on_worker_death"]

MAX_DEATHS, DEATH_WINDOW = 3, 100
"""So many deaths within so many steps are no accident."""
EXIT_TIMEOUT = 5.0
"""Seconds in which a process whose pipe is broken should be gone."""
SIGNAL_WINDOW = 0.3
"""Seconds after the death of a worker in which a signal to this process is that of its end."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def retry_on_worker_death(fn: Callable[[], T]) -> T:
    """What is found by living a little; from the beginning again where a process died."""
    for _ in range(MAX_DEATHS - 1):
        with contextlib.suppress(WorkerDied):
            return fn()
    return fn()


class FaultTolerantVectorEnv(VectorWrapper):
    """Environments that `make` makes. Where they are processes of their own and one dies (killed,
    out of memory), they are made again; what an environment's code raises, and a call that takes
    longer than `timeout` seconds (0: no limit), ends them."""

    def __init__(self, name: str, make: Callable[[], VectorEnv], timeout: float = 0.0) -> None:
        self.name, self.make, self.timeout = name, make, timeout
        super().__init__(self._make_envs())
        self.action_space = self.env.action_space  # its chance goes on in worlds made anew
        self.steps = 0
        self.deaths: list[int] = []  # the step of each, the latest few
        self.is_hung = False

    def reset(self, **kwargs: Any) -> Any:
        while True:  # who dies before anything has begun has lost nothing
            with contextlib.suppress(WorkerDied):
                return self._call("reset", lambda: self.env.reset(**kwargs))

    def step(self, actions: Any) -> Any:
        """Raises Died, or Failed."""
        self.steps += 1
        return self._call("step", lambda: self.env.step(actions))

    def render(self) -> Any:
        return self._call("render", self.env.render)

    def close(self, **kwargs: Any) -> None:
        """An environment that does not return from a call is left where it is."""
        if self.is_hung:
            return
        try:
            with (
                mute_gym_logger(_are_workers(self.env)),
                time_limit(self.timeout, self._timeout_message("close")),
            ):
                self.env.close(**kwargs)
        except TimedOut:
            _kill(self.env, kill_only=True)

    def _make_envs(self) -> VectorEnv:
        """Raises NotMade, or Failed where it does not return."""
        try:
            with time_limit(self.timeout, self._timeout_message("its constructor")):
                return self.make()
        except TimedOut as timeout:
            raise EnvError(
                f"{self._timeout_message('its constructor')}{error_location(timeout)}"
            ) from timeout

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        with (
            mute_gym_logger(_are_workers(self.env)),
            time_limit(self.timeout, self._timeout_message(what)),
        ):
            yield

    def _timeout_message(self, what: str) -> str:
        return (
            f"environment {self.name!r}: {what} did not return within {self.timeout:g} s "
            "(--env.step-timeout)"
        )

    def _call(self, what: str, fn: Callable[[], Any]) -> Any:
        try:
            with self._guard(what):
                return fn()
        except ConfigError:
            raise
        except TimedOut as timeout:
            self.is_hung = True
            location_text = _hung_workers(self.env) or error_location(timeout)
            _kill(self.env, kill_only=True)
            raise EnvError(f"{self._timeout_message(what)}{location_text}") from timeout
        except SameStepDetected as found:
            self._remake(found.make)
            log.warning(f"environment {self.name!r} {found}")
            raise WorkerDied(f"environment {self.name!r} {found}") from None
        except BaseException as error:  # anything may happen in a stranger's code
            if is_interrupt(error):
                raise
            death = _dead_workers(self.env) if isinstance(error, (EOFError, OSError)) else ""
            _kill(self.env)
            if death and interrupt.signal_pending(SIGNAL_WINDOW):
                interrupt.raise_abrupt()  # a signal that ends this process ended its workers first
            if not death:
                kind = EnvResetError if what == "reset" else EnvError
                raise kind(
                    f"world {self.name!r} failed in {what}: {describe_error(error)}{_hint(what, error)}"
                ) from error
            self._count_death(death)
        self._remake(self.make)
        log.warning(f"world {self.name!r}: {death}; restarted, all {self.num_envs} begin anew")
        raise WorkerDied(f"world {self.name!r} failed in {what}: {death}")

    def _remake(self, make: Callable[[], VectorEnv]) -> None:
        """Raises Failed: what was learnt by then is to be saved."""
        _kill(self.env)
        self.make = make
        try:
            self.env = self._make_envs()
        except ConfigError as error:
            raise EnvError(str(error)) from error

    def _count_death(self, death: str) -> None:
        """Raises Failed where it is too much."""
        self.deaths = [*self.deaths, self.steps][-MAX_DEATHS:]
        if len(self.deaths) == MAX_DEATHS and self.steps - self.deaths[0] < DEATH_WINDOW:
            raise EnvError(
                f"world {self.name!r}: {death}, the third death within {DEATH_WINDOW} steps"
            )


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
"""What Gymnasium says of what doesn't fit, and what it means."""


def _hint(what: str, error: BaseException) -> str:
    """What Gymnasium's worlds return, where something else seems to have been."""
    if what in RETURN_VALUES and any(
        pattern in str(error) for pattern in ("to unpack", "attribute 'items'")
    ):
        return f" (Gymnasium's {what} returns {RETURN_VALUES[what]})"
    meaning = next(
        (f" ({hint})" for pattern, hint in KNOWN_ERRORS.items() if pattern in str(error)), ""
    )
    return meaning or gl_hint(error)


@contextlib.contextmanager
def mute_gym_logger(workers: bool) -> Iterator[None]:
    """Gymnasium tells of a broken process by itself, traceback and all."""
    previous_level = gymnasium_logger.min_level
    if workers:
        gymnasium_logger.min_level = gymnasium_logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium_logger.min_level = previous_level


def _are_workers(envs: VectorEnv) -> bool:
    return isinstance(envs.unwrapped, AsyncVectorEnv)


def _hung_workers(envs: VectorEnv) -> str:
    """Which worker processes have not answered."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    pipes = enumerate(envs.unwrapped.parent_pipes)
    timeout = [str(number) for number, pipe in pipes if pipe is None or not pipe.poll()]
    return f" (worker {', '.join(timeout)})" if timeout else ""


def _dead_workers(envs: VectorEnv) -> str:
    """Which worker processes ended, and how."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    processes = envs.unwrapped.processes
    ending = connection.wait([p.sentinel for p in processes], timeout=EXIT_TIMEOUT)
    for process in processes:
        if process.sentinel in ending:  # its pipes are closed a little before it is gone
            process.join(EXIT_TIMEOUT)
    ends = {n: p.exitcode for n, p in enumerate(processes) if p.exitcode is not None}
    return ", ".join(
        f"worker {number} died ({_exit_reason(code)})" for number, code in ends.items()
    )


def _exit_reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _kill(envs: VectorEnv, kill_only: bool = False) -> None:
    """Ends environments that can't be asked to end. If `kill_only`, those that hang in a call are
    not called again."""
    unwrapped = envs.unwrapped
    if not isinstance(unwrapped, AsyncVectorEnv):
        with contextlib.suppress(Exception, SystemExit):
            if not kill_only:
                envs.close()
        return
    terminate_workers(unwrapped)
