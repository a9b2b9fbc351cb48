"""Signals that end a command. SIGINT (Ctrl-C), SIGTERM and SIGHUP raise Interrupted in the main
thread, where it is safe to stop; a second one ends the process and its children at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = tuple(number for number in signal.Signals if number.name in NAMES)
GRACE = 5.0
"""Seconds after a signal within which an update must end."""
DEBOUNCE = 0.5
"""Seconds within which a second signal counts as the first: `timeout`, and terminals that are
closed, send theirs to the process and to its group."""
SHUTDOWN_TIMEOUT = 10.0
"""Seconds that processes get to save their work."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command."""

    def __init__(self, message: str, abrupt: bool = False) -> None:
        """`abrupt`: in the middle of an update, which took longer than GRACE."""
        super().__init__(message)
        self.message, self.abrupt = message, abrupt


@dataclass
class _State:
    """The signal that was received, if any."""

    received: signal.Signals | None = None
    since: float = 0.0
    depth: int = 0  # of `deferred` blocks
    is_overdue: bool = False
    timer: threading.Timer | None = None

    def error(self, abrupt: bool = False) -> Interrupted:
        assert self.received is not None
        return Interrupted(f"interrupted by {self.received.name}", abrupt)

    def clear(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.__init__()  # type: ignore[misc]


_state = _State()


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.is_overdue:
        _state.is_overdue = False
        terminate([child for child in multiprocessing.active_children() if child.daemon], 0.0)
        raise _state.error(abrupt=True)
    if _state.received is not None:
        if time.monotonic() - _state.since > DEBOUNCE:
            _exit_now()
        return
    _state.received, _state.since = signal.Signals(number), time.monotonic()
    if not _state.depth:
        raise _state.error()
    _state.timer = threading.Timer(GRACE, _on_overdue)
    _state.timer.daemon = True
    _state.timer.start()


def _on_overdue() -> None:
    """Runs in the timer's thread: the main thread may be waiting for an environment."""
    if _state.depth and _state.received is not None:
        _state.is_overdue = True
        main = threading.main_thread().ident
        if os.name == "posix" and main is not None:
            signal.pthread_kill(main, _state.received)
        else:
            signal.raise_signal(_state.received)


def _exit_now() -> None:
    with contextlib.suppress(Exception):
        terminate(multiprocessing.active_children(), 0.0)
    with contextlib.suppress(OSError):
        os.write(2, b"ami: interrupted twice: ended at once\n")
    os._exit(1)


@contextlib.contextmanager
def handled(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Within the block, these signals raise Interrupted; those that are ignored (nohup) stay so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            current = signal.getsignal(number)
            if current is not None and current not in (signal.SIG_IGN, _handle):
                before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _state.clear()


@contextlib.contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """`handled` for Ctrl-C alone, and only where Python's own handler is installed, which would
    raise anywhere."""
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with handled((signal.SIGINT,) if plain else ()):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block, a signal waits for its end, GRACE seconds at most."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    if _state.received is not None and not _state.depth:
        if _state.timer is not None:
            _state.timer.cancel()
        raise _state.error()


def raise_abrupt() -> NoReturn:
    """Raises Interrupted in the middle of an update that can't be completed."""
    raise _state.error(abrupt=True)


def signal_pending(seconds: float) -> bool:
    """Whether a signal was received, or arrives within so many seconds."""
    until = time.monotonic() + seconds
    while _state.received is None and time.monotonic() < until:
        time.sleep(0.02)
    return _state.received is not None


def terminate(children: Sequence[BaseProcess], grace: float = SHUTDOWN_TIMEOUT) -> None:
    """Ends processes: they have `grace` seconds after SIGTERM to save their work, then they are
    killed."""
    until = time.monotonic() + grace
    for child in children if grace else ():
        child.terminate()
    for child in children if grace else ():
        child.join(max(0.0, until - time.monotonic()))
    for child in children:
        child.kill()
    for child in children:
        child.join()


def isolate_worker() -> None:
    """To be called in a worker process. Signals to its parent's group (Ctrl-C) then don't reach it,
    since the parent ends it; those to itself end it without a message."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if os.name == "posix":
        os.setpgid(0, 0)


def _in_child() -> None:
    """A forked process doesn't keep the handlers of its parent."""
    _state.timer = None
    _state.clear()
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


if os.name == "posix":
    os.register_at_fork(after_in_child=_in_child)
