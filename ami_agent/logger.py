"""The log of a run: on the console, in `metrics.jsonl` and for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ami_agent.storage.files import open_regular, writing
from modules.types import ConfigError

Number: TypeAlias = float | Tensor
"""A float, or a tensor of one element that is read only when it is shown."""

LINE_EVERY = 10.0  # seconds between lines of progress where there is no terminal
BAR_EVERY = 0.2  # seconds between updates of the progress bar
METRICS, EVENTS = "metrics.jsonl", "events.out.tfevents.*"


class Progress:
    """The progress of a stage; `show(done, total, status)` is called at most every `every` seconds.
    It draws between two steps alone, so that steps which are timed are not slowed."""

    def __init__(
        self, total: int | None, start: int, every: float,
        show: Callable[[int, int | None, str], None],
    ) -> None:  # fmt: skip
        self._start, self._every, self._show = start, every, show
        self._started = self._last_shown = time.monotonic()
        self.done, self.total = start, total
        """Steps; `total` may change as more becomes known, and is None where nothing is."""
        self.is_limit = False
        """Whether `total` is the most that there can be, not what is expected."""

    def advance(self, steps: int = 1, **values: Number) -> None:
        """Counts `steps` more as done; `values` are shown after the time left."""
        self.done += steps
        now = time.monotonic()
        is_last = self.total is not None and self.done >= self.total
        if now - self._last_shown >= self._every or is_last:
            self._last_shown = now
            num_done = self.done - self._start
            rate = num_done / max(now - self._started, 1e-9)
            texts = [f"{rate:.3g}/s"]
            # the first step may take long
            if self.total is not None and num_done >= min(10, 0.01 * self.total):
                left = format_duration(max(self.total - self.done, 0) / max(rate, 1e-9))
                texts.append(f"at most {left} left" if self.is_limit else f"{left} left")
            texts += [f"{name} {float(value):.3g}" for name, value in values.items()]
            self._show(self.done, self.total, "  ".join(texts))


class Logger:
    """Where a run reports what it does; this one reports nothing."""

    def log_scalars(self, stage: str, step: int, values: Mapping[str, Number]) -> None: ...
    def log_image(self, tag: str, image: Tensor | np.ndarray, step: int) -> None: ...
    def log_video(self, tag: str, gif: bytes, step: int) -> None: ...
    def info(self, text: str) -> None: ...
    @contextmanager
    def progress(self, stage: str, total: int | None, start: int = 0) -> Iterator[Progress]:
        """The progress of a stage, which is shown within the block; `total` includes `start`, and
        is None where it is not known."""
        yield Progress(total, start, math.inf, lambda done, total, status: None)

    def position(self) -> Mapping[str, int]:
        """The size in bytes of each file of the log, after it is flushed, for a checkpoint."""
        return {}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Truncates the log to an earlier position, before anything is logged."""

    def close(self) -> None: ...


class ConsoleLogger(Logger):
    """Prints to a console, and writes no file."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def info(self, text: str) -> None:
        print_line(self._console, text)

    @contextmanager
    def progress(self, stage: str, total: int | None, start: int = 0) -> Iterator[Progress]:
        """A progress bar on a terminal, elsewhere a line every few seconds."""
        if not self._console.is_terminal:

            def print_status(done: int, total: int | None, status: str) -> None:
                self.info(f"{stage}  {_fraction(done, total)}  {status}")

            yield Progress(total, start, LINE_EVERY, print_status)
            return
        columns = [
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        ]  # fmt: skip
        # without a thread that draws: it would take turns with steps that are timed
        with Bars(*columns, console=self._console, auto_refresh=False) as bars:
            task = bars.add_task(stage, total=total, completed=start, status="")

            def show(done: int, total: int | None, status: str) -> None:
                text = f"{_fraction(done, total)}  {status}"
                bars.update(task, completed=done, total=total, status=text, refresh=True)

            yield Progress(total, start, BAR_EVERY, show)


class RunLogger(ConsoleLogger):
    """Writes to a run folder and prints to a console. A run that is resumed truncates its log to
    its checkpoint and appends. Raises NotWritten where a file can't be written."""

    def __init__(self, folder: Path, console: Console) -> None:
        super().__init__(console)
        self._folder, self._path = folder, folder / METRICS
        self._writer: SummaryWriter | None = None
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = open_regular(self._path, append=True)
            try:
                _truncate(self._path, self._path.stat().st_size)
            except ConfigError:
                self._metrics.close()
                raise

    def log_scalars(self, stage: str, step: int, values: Mapping[str, Number]) -> None:
        """Adds a line to `metrics.jsonl`, null for NaN and infinity, and points to TensorBoard."""
        numbers = {name: float(value) for name, value in values.items()}
        json_values = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        line = {"stage": stage, "step": step, "time": time.time(), **json_values}
        with writing(self._path):
            self._metrics.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._metrics.flush()
        with self._tensorboard() as board:
            for name, value in numbers.items():
                board.add_scalar(f"{stage}/{name}", value, step)

    def log_image(self, tag: str, image: Tensor | np.ndarray, step: int) -> None:
        """`image`: uint8 [H, W, 3]."""
        with self._tensorboard() as board:
            board.add_image(tag, image, step, dataformats="HWC")

    def log_video(self, tag: str, gif: bytes, step: int) -> None:
        """Writes the GIF as an image: TensorBoard plays it."""
        shown = Summary.Image(encoded_image_string=gif, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=shown)])
        with self._tensorboard() as board:
            board._get_file_writer().add_summary(summary, step)

    def position(self) -> Mapping[str, int]:
        """The sizes of `metrics.jsonl` and of all event files of TensorBoard."""
        if self._writer is not None:
            with self._tensorboard() as board:
                board.flush()
        return {path.name: path.stat().st_size for path in self._files()}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Removes event files that the position does not have."""
        with writing(self._folder):
            for path in self._files():
                if path.name in position or path == self._path:
                    _truncate(path, position.get(path.name, 0))
                else:
                    path.unlink()

    def close(self) -> None:
        """Closes the files; nothing can be logged afterwards."""
        with suppress(OSError):  # a failed write has raised already
            self._metrics.close()
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def _files(self) -> list[Path]:
        events = sorted(self._folder.glob(EVENTS))
        return [self._path, *(p for p in events if p.is_file() and not p.is_symlink())]

    @contextmanager
    def _tensorboard(self) -> Iterator[SummaryWriter]:
        """TensorBoard's writer, which creates its file at the first use."""
        with writing(self._folder / EVENTS):
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder))
            yield self._writer


def one_line(text: object) -> str:
    """The text in one line: line breaks become spaces, control characters and odd bytes escapes."""
    joined = re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", str(text))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def print_line(console: Console, text: object) -> None:
    """Prints lines as they are: nothing in a name, a path or a message is read as markup."""
    lines = "\n".join(map(one_line, str(text).split("\n")))
    console.print(lines, markup=False, highlight=False, emoji=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column is aligned left, all others right; None becomes a dash."""
    rendered = Table(title=Text(one_line(title)) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        justify: JustifyMethod = "right" if index else "left"
        rendered.add_column(Text(one_line(column)), justify=justify, no_wrap=not index)
    for row in rows:
        rendered.add_row(*map(_cell, row))
    return rendered


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """A table below a title that is not wrapped, as it may contain a path."""
    print_line(console, title)
    console.print(table("", columns, rows))


def _fraction(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done}/{total}"


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.3g}" if isinstance(value, float) else one_line(value))


def format_number(value: float, span: Sequence[float] | None = None) -> str:
    """A number with two decimals, or as many as show its first two digits, and the digits in which
    the ends of its interval `span` differ; with an exponent where it is tiny or huge."""
    width = span[1] - span[0] if span else 0.0
    size = max(abs(value), width)
    if not math.isfinite(size) or not size:
        return f"{value:.2f}"
    smallest = min(filter(None, (abs(value), width)))
    decimals = 1 - math.floor(math.log10(smallest))
    if 1e-3 <= size < 1e7:
        return f"{value:.{min(max(2, decimals), 12)}f}"
    return f"{value:.{min(max(3, math.floor(math.log10(size)) + decimals + 1), 15)}g}"


def format_duration(seconds: float) -> str:
    """Seconds as 65 s, 12 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


LONGEST_LINE = 2**20
"""Bytes of a line of `metrics.jsonl`, at most."""


def _truncate(path: Path, size: int) -> None:
    """Truncates a file to at most `size` bytes, `metrics.jsonl` to whole lines. ConfigError for a
    line that is longer than any of ours."""
    with path.open("r+b") as file:
        size = min(size, os.fstat(file.fileno()).st_size)
        if path.name == METRICS:
            start = max(0, size - LONGEST_LINE)
            file.seek(start)
            end = file.read(size - start).rfind(b"\n") + 1
            if start and not end:
                raise ConfigError(
                    f"{path} ends in a line of over {LONGEST_LINE} bytes, which no run has written"
                )
            size = start + end
        file.truncate(size)
