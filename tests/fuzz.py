"""What every fuzz test shares: how many inputs it tries, and what an answer must be.

By default the inputs are few and always the same. With AMI_FUZZ_SECONDS a test tries fresh ones for
so long; `pytest -m long` (test_fuzz_long.py) does that for all of them, each in its own process.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings

from ami_agent.cli.main import main

SECONDS = float(os.environ.get("AMI_FUZZ_SECONDS", "0"))
CPU_LIMIT, TIME_LIMIT = 10.0, 60.0
"""Seconds that one input may take: of work, and of waiting, where others work beside."""


class Hang(BaseException):
    """The time is up; no `except Exception` holds it back."""


@contextlib.contextmanager
def within_seconds() -> Iterator[None]:
    """The block fails unless it ends in time. SIGALRM is the program's own."""
    late: list[bool] = []

    def end(*_: Any) -> None:
        late.append(True)
        raise Hang("no answer in time")

    before = {number: signal.signal(number, end) for number in (signal.SIGUSR1, signal.SIGPROF)}
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(TIME_LIMIT, signal.pthread_kill, (main_thread, signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        timer.cancel()
        timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not late, "no answer in time"


def fuzzed(*strategies: Any, examples: int) -> Callable[[Callable[..., None]], Any]:
    """A test of inputs that are drawn: `examples` of them, or fresh ones for AMI_FUZZ_SECONDS."""

    def decorate(check: Callable[..., None]) -> Any:
        tried = 0

        @functools.wraps(check)
        def one(*args: Any, **kwargs: Any) -> None:
            nonlocal tried
            tried += 1
            with within_seconds():
                check(*args, **kwargs)

        profile = settings(
            max_examples=20 if SECONDS else examples,
            derandomize=not SECONDS, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
            # to explain a failure it traces every line, which makes work of seconds late
            phases=set(Phase) - {Phase.explain},
        )  # fmt: skip
        batch = profile(given(*strategies)(one))
        if not SECONDS:
            return batch

        def repeated(**fixtures: Any) -> None:
            until = time.monotonic() + SECONDS
            try:
                while time.monotonic() < until:
                    batch(**fixtures)
            finally:
                print(f"\n{check.__name__}: {tried} inputs", flush=True)

        repeated.__name__, repeated.__doc__ = check.__name__, check.__doc__
        repeated.__signature__ = inspect.signature(batch)  # type: ignore[attr-defined]
        return repeated

    return decorate


class Begun(BaseException):
    """Raised by a test in place of the work, once every check has passed."""


class Answer(NamedTuple):
    """What a command printed."""

    code: int
    output: str
    error: str


def answer(*argv: object) -> Answer:
    """The answer to a command line, run in this process: done, or one line of error."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as stop:  # of --help
            code = stop.code
        except Begun:
            code = 0
    found = Answer(code, output.getvalue(), error.getvalue())
    line = found.error.removesuffix("\n")
    assert "Traceback" not in found.output + found.error, found
    assert code in (0, 1, 2), found
    if code:
        assert line.startswith("ami: "), found
        assert line.isprintable(), found
        assert 5 < len(line) < 2100, found
    else:
        assert line == "", found
    return found
