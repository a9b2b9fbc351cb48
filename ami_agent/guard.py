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

from ami_agent.graphics import gl_hint
from modules.types import UnusableInput

TIMES, SOON = 3, 100
"""So many deaths within so many steps are no accident."""
PATIENCE = 5.0
"""Seconds in which a process whose pipe is broken should be gone."""

log = logging.getLogger(__name__)


class Failed(UnusableInput):
    """A world broke its contract while somebody lived in it; what was learnt by then stands."""


class Died(Failed):
    """The process of a world died, and all worlds were made anew: no episode goes on, and they
    must be reset."""


Found = TypeVar("Found")


def undisturbed(find: Callable[[], Found]) -> Found:
    """What is found by living a little; from the beginning again where a process died."""
    for _ in range(TIMES - 1):
        with contextlib.suppress(Died):
            return find()
    return find()


class Guarded(VectorWrapper):
    """Worlds that `make` makes. Where they are processes of their own and one dies (killed, out of
    memory), they are made again; what a world itself does wrong ends them."""

    def __init__(self, name: str, make: Callable[[], VectorEnv]) -> None:
        super().__init__(make())
        self.name, self.make = name, make
        self.action_space = self.env.action_space  # its chance goes on in worlds made anew
        self.steps = 0
        self.deaths: list[int] = []  # the step of each, the latest few

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

    def _tried(self, what: str, do: Callable[[], Any]) -> Any:
        try:
            with _hush(self.env):
                return do()
        except (UnusableInput, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:  # anything may happen in a stranger's world
            dead = _dead(self.env) if isinstance(error, (EOFError, OSError)) else ""
            _bury(self.env)
            if not dead:
                raise Failed(
                    f"world {self.name!r} failed in {what}: {type(error).__name__}: {error}"
                    f"{_hint(what, error)}"
                ) from error
            self._count(dead)
        self.env = self.make()
        log.warning(f"world {self.name!r}: {dead}; restarted, all {self.num_envs} begin anew")
        raise Died(f"world {self.name!r} failed in {what}: {dead}")

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
def _hush(envs: VectorEnv) -> Iterator[None]:
    """Gymnasium tells of a broken process by itself, traceback and all."""
    level = gymnasium_says.min_level
    if isinstance(envs.unwrapped, AsyncVectorEnv):
        gymnasium_says.min_level = gymnasium_says.ERROR + 1
    try:
        yield
    finally:
        gymnasium_says.min_level = level


def _dead(envs: VectorEnv) -> str:
    """Which processes died, and how; one whose world raised has ended by itself, with code 0."""
    if not isinstance(envs.unwrapped, AsyncVectorEnv):
        return ""
    processes = envs.unwrapped.processes
    ending = connection.wait([p.sentinel for p in processes], timeout=PATIENCE)
    for process in processes:
        if process.sentinel in ending:  # its pipes are closed a little before it is gone
            process.join(PATIENCE)
    ends = {number: p.exitcode for number, p in enumerate(processes) if p.exitcode}
    return ", ".join(f"worker {number} died ({_told(code)})" for number, code in ends.items())


def _told(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _bury(envs: VectorEnv) -> None:
    """Ends worlds that can't be asked to end."""
    inner = envs.unwrapped
    if not isinstance(inner, AsyncVectorEnv):
        with contextlib.suppress(Exception):
            envs.close()
        return
    for process in inner.processes:
        process.kill()
    for process in inner.processes:
        process.join()
    for pipe in inner.parent_pipes:
        if pipe is not None:  # Gymnasium puts None where it closed one
            pipe.close()
    inner.closed = True
