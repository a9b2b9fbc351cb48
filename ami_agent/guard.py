"""What goes wrong in worlds is told in one line; a process that dies does not end a life."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, TypeVar

from gymnasium import logger as gymnasium_says
from gymnasium.vector import AsyncVectorEnv, VectorEnv, VectorWrapper

from ami_agent import interrupt
from ami_agent.autoreset import SameStepFound
from ami_agent.failures import Died, Failed, FailedInReset, described, is_interrupt, location
from ami_agent.graphics import gl_hint
from ami_agent.subenvs import end
from ami_agent.watchdog import TimedOut, time_limit
from modules.types import UnusableInput

__all__ = ["Died", "Failed", "Guarded", "undisturbed"]

TIMES, SOON = 3, 100
"""So many deaths within so many steps are no accident."""
PATIENCE = 5.0
"""Seconds in which a process whose pipe is broken should be gone."""
ENDED = 0.3
"""Seconds after the death of a worker in which a signal to this process is that of its end."""

log = logging.getLogger(__name__)

Found = TypeVar("Found")


def undisturbed(find: Callable[[], Found]) -> Found:
    """What is found by living a little; from the beginning again where a process died."""
    for _ in range(TIMES - 1):
        with contextlib.suppress(Died):
            return find()
    return find()


class Guarded(VectorWrapper):
    """Environments that `make` makes. Where they are processes of their own and one dies (killed,
    out of memory), they are made again; what an environment's code raises, and a call that takes
    longer than `timeout` seconds (0: no limit), ends them."""

    def __init__(self, name: str, make: Callable[[], VectorEnv], timeout: float = 0.0) -> None:
        self.name, self.make, self.timeout = name, make, timeout
        super().__init__(self._made())
        self.action_space = self.env.action_space  # its chance goes on in worlds made anew
        self.steps = 0
        self.deaths: list[int] = []  # the step of each, the latest few
        self.hangs = False

    def reset(self, **asked: Any) -> Any:
        while True:  # who dies before anything has begun has lost nothing
            with contextlib.suppress(Died):
                return self._tried("reset", lambda: self.env.reset(**asked))

    def step(self, actions: Any) -> Any:
        """Raises Died, or Failed."""
        self.steps += 1
        return self._tried("step", lambda: self.env.step(actions))

    def render(self) -> Any:
        return self._tried("render", self.env.render)

    def close(self, **asked: Any) -> None:
        """An environment that does not return from a call is left where it is."""
        if self.hangs:
            return
        try:
            with (
                quiet_workers(_are_workers(self.env)),
                time_limit(self.timeout, self._late("close")),
            ):
                self.env.close(**asked)
        except TimedOut:
            _bury(self.env, kill_only=True)

    def _made(self) -> VectorEnv:
        """Raises NotMade, or Failed where it does not return."""
        try:
            with time_limit(self.timeout, self._late("its constructor")):
                return self.make()
        except TimedOut as late:
            raise Failed(f"{self._late('its constructor')}{location(late)}") from late

    @contextlib.contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        with quiet_workers(_are_workers(self.env)), time_limit(self.timeout, self._late(what)):
            yield

    def _late(self, what: str) -> str:
        return (
            f"environment {self.name!r}: {what} did not return within {self.timeout:g} s "
            "(--env.step-timeout)"
        )

    def _tried(self, what: str, do: Callable[[], Any]) -> Any:
        try:
            with self._watched(what):
                return do()
        except UnusableInput:
            raise
        except TimedOut as late:
            self.hangs = True
            place = _waiting(self.env) or location(late)
            _bury(self.env, kill_only=True)
            raise Failed(f"{self._late(what)}{place}") from late
        except SameStepFound as found:
            self._remake(found.make)
            log.warning(f"environment {self.name!r} {found}")
            raise Died(f"environment {self.name!r} {found}") from None
        except BaseException as error:  # anything may happen in a stranger's code
            if is_interrupt(error):
                raise
            dead = _dead(self.env) if isinstance(error, (EOFError, OSError)) else ""
            _bury(self.env)
            if dead and interrupt.waits(ENDED):
                interrupt.stop()  # a signal that ends this process ended its workers first
            if not dead:
                kind = FailedInReset if what == "reset" else Failed
                raise kind(
                    f"world {self.name!r} failed in {what}: {described(error)}{_hint(what, error)}"
                ) from error
            self._count(dead)
        self._remake(self.make)
        log.warning(f"world {self.name!r}: {dead}; restarted, all {self.num_envs} begin anew")
        raise Died(f"world {self.name!r} failed in {what}: {dead}")

    def _remake(self, make: Callable[[], VectorEnv]) -> None:
        """Raises Failed: what was learnt by then is to be saved."""
        _bury(self.env)
        self.make = make
        try:
            self.env = self._made()
        except UnusableInput as error:
            raise Failed(str(error)) from error

    def _count(self, dead: str) -> None:
        """Raises Failed where it is too much."""
        self.deaths = [*self.deaths, self.steps][-TIMES:]
        if len(self.deaths) == TIMES and self.steps - self.deaths[0] < SOON:
            raise Failed(f"world {self.name!r}: {dead}, the third death within {SOON} steps")


GIVES = {
    "reset": "an observation and an info dict",
    "step": "an observation, a reward, terminated, truncated and an info dict",
}


ODD = {
    "array element with a sequence": "a reward is one number, terminated and truncated are True or "
    "False",
    "array is the wrong shape": "its observation is not of its observation_space",
    "wrong dimensionality": "its observation is not of its observation_space",
}
"""What Gymnasium says of what doesn't fit, and what it means."""


def _hint(what: str, error: BaseException) -> str:
    """What Gymnasium's worlds return, where something else seems to have been."""
    if what in GIVES and any(odd in str(error) for odd in ("to unpack", "attribute 'items'")):
        return f" (Gymnasium's {what} returns {GIVES[what]})"
    meant = next((f" ({hint})" for odd, hint in ODD.items() if odd in str(error)), "")
    return meant or gl_hint(error)


@contextlib.contextmanager
def quiet_workers(workers: bool) -> Iterator[None]:
    """Gymnasium tells of a broken process by itself, traceback and all."""
    level = gymnasium_says.min_level
    if workers:
        gymnasium_says.min_level = gymnasium_says.ERROR + 1
    try:
        yield
    finally:
        gymnasium_says.min_level = level


def _are_workers(envs: VectorEnv) -> bool:
    return isinstance(envs.unwrapped, AsyncVectorEnv)


def _waiting(envs: VectorEnv) -> str:
    """Which worker processes have not answered."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    pipes = enumerate(envs.unwrapped.parent_pipes)
    late = [str(number) for number, pipe in pipes if pipe is None or not pipe.poll()]
    return f" (worker {', '.join(late)})" if late else ""


def _dead(envs: VectorEnv) -> str:
    """Which worker processes ended, and how."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    processes = envs.unwrapped.processes
    ending = connection.wait([p.sentinel for p in processes], timeout=PATIENCE)
    for process in processes:
        if process.sentinel in ending:  # its pipes are closed a little before it is gone
            process.join(PATIENCE)
    ends = {n: p.exitcode for n, p in enumerate(processes) if p.exitcode is not None}
    return ", ".join(f"worker {number} died ({_told(code)})" for number, code in ends.items())


def _told(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _bury(envs: VectorEnv, kill_only: bool = False) -> None:
    """Ends environments that can't be asked to end. If `kill_only`, those that hang in a call are
    not called again."""
    inner = envs.unwrapped
    if not isinstance(inner, AsyncVectorEnv):
        with contextlib.suppress(Exception, SystemExit):
            if not kill_only:
                envs.close()
        return
    end(inner)
