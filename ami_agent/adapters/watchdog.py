"""Ends calls of an environment's code that do not return in time.

One daemon thread looks at the clock, so that a call costs two dictionary entries and no system
call. It interrupts the thread that waits with `TimedOut`; code that never comes back to the
interpreter can't be interrupted, and then the process ends, with one line and exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

POLL = 0.25
"""Seconds between two looks at the clock."""
GRACE = 5.0
"""Seconds between the first interruption of a call and the end of the process."""


class TimedOut(BaseException):
    """A call took too long. Not an Exception: environments catch those."""


@dataclass
class _Call:
    deadline: float
    message: str


class _Watchdog:
    def __init__(self) -> None:
        self.calls: dict[int, _Call] = {}  # by the number of the thread that waits
        self.thread: threading.Thread | None = None
        self.previous: Any = None  # handler of the signal

    def start(self) -> None:
        """Only the main thread may install a handler for the signal that wakes it up."""
        self.thread = threading.Thread(target=self._run, name="env-watchdog", daemon=True)
        if _SIGNALS and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGALRM, self._on_signal)
        self.thread.start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        call = self.calls.get(threading.main_thread().ident or 0)
        if call is not None and time.monotonic() >= call.deadline:
            raise TimedOut
        if callable(self.previous):
            self.previous(number, frame)

    def _run(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(POLL)
            now = time.monotonic()
            # a process that was stopped (Ctrl-Z) has not waited meanwhile
            lost, before = max(0.0, now - before - 10 * POLL), now
            for thread, call in list(self.calls.items()):
                call.deadline += lost
                if now >= call.deadline + GRACE:
                    _exit_now(call.message)
                elif now >= call.deadline:
                    _interrupt(thread, by_signal=now < call.deadline + GRACE / 2)


_SIGNALS = hasattr(signal, "SIGALRM") and hasattr(signal, "pthread_kill")  # not on Windows


def _interrupt(thread: int, by_signal: bool) -> None:
    """Without the signal where there is none, or the environment's code took it for itself."""
    if by_signal and _SIGNALS and thread == threading.main_thread().ident:
        signal.pthread_kill(thread, signal.SIGALRM)  # ends waiting in a system call too
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), ctypes.py_object(TimedOut)
        )


def _exit_now(message: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\nami: {message}; what was checkpointed is kept\n".encode())
    os._exit(1)


_watchdog = _Watchdog()
if sys.platform != "win32":  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc]


@contextlib.contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raises TimedOut in what is done here for longer than that; 0 is no limit. `message` is for
    the case that nothing can be raised."""
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
