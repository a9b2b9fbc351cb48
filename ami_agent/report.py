"""What a run says while it runs: to a person, to `metrics.jsonl` and to TensorBoard.

`Silence` says nothing; who is given it need not know.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

Number: TypeAlias = float | Tensor
"""A float, or a tensor of one element that is read only when it is shown."""

LINE_EVERY = 10.0  # seconds between lines where there is no terminal
BAR_EVERY = 0.2  # seconds between looks of the bar


class Reporter(Protocol):
    """Whoever listens to a run."""

    def scalars(self, stage: str, step: int, values: Mapping[str, Number]) -> None: ...
    def picture(self, tag: str, image: Tensor | np.ndarray, step: int) -> None: ...
    def film(self, tag: str, gif: bytes, step: int) -> None: ...
    def say(self, text: str) -> None: ...
    def progress(
        self, stage: str, total: int, start: int = 0
    ) -> AbstractContextManager[Progress]: ...
    def close(self) -> None: ...


class Progress:
    """How far a stage is; `show(done, news)` is called at most every `every` seconds."""

    def __init__(
        self, total: int, start: int, every: float, show: Callable[[int, str], None]
    ) -> None:
        self._total, self._start, self._every, self._show = total, start, every, show
        self._done = start
        self._began = self._shown = time.monotonic()

    def advance(self, steps: int = 1, **values: Number) -> None:
        """`steps` more are done; `values` are shown behind the time left."""
        self._done += steps
        now = time.monotonic()
        if now - self._shown >= self._every or self._done >= self._total:
            self._shown = now
            self._show(self._done, "  ".join([self._pace(now), *map(_pair, values.items())]))

    def _pace(self, now: float) -> str:
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        return f"{rate:.3g}/s  {duration(left)} left"


class Silence:
    """The listener who keeps it to himself."""

    def scalars(self, stage: str, step: int, values: Mapping[str, Number]) -> None:
        """Nothing."""

    def picture(self, tag: str, image: Tensor | np.ndarray, step: int) -> None:
        """Nothing."""

    def film(self, tag: str, gif: bytes, step: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, stage: str, total: int, start: int = 0) -> Iterator[Progress]:
        """A progress nobody sees."""
        yield Progress(total, start, math.inf, lambda done, news: None)

    def close(self) -> None:
        """Nothing."""


class Spoken(Silence):
    """Says it to a person, and keeps nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """One plain line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, stage: str, total: int, start: int = 0) -> Iterator[Progress]:
        """A bar on a terminal, a line every few seconds elsewhere. `total` includes `start`."""
        kind = self._bar if self._console.is_terminal else self._lines
        with kind(stage, total, start) as progress:
            yield progress

    @contextmanager
    def _bar(self, stage: str, total: int, start: int) -> Iterator[Progress]:
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[news]}")]
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(stage, total=total, completed=start, news="")

            def show(done: int, news: str) -> None:
                bars.update(task, completed=done, news=f"{done}/{total}  {news}")

            yield Progress(total, start, BAR_EVERY, show)

    @contextmanager
    def _lines(self, stage: str, total: int, start: int) -> Iterator[Progress]:
        def show(done: int, news: str) -> None:
            self.say(f"{stage}  {done}/{total}  {news}")

        yield Progress(total, start, LINE_EVERY, show)


class Report(Spoken):
    """Writes into a run folder and onto a console. A run that goes on appends."""

    def __init__(self, folder: Path, console: Console) -> None:
        super().__init__(console)
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (folder / "metrics.jsonl").open("ab")
        _drop_torn_line(folder / "metrics.jsonl")
        self._board = SummaryWriter(str(folder))

    def scalars(self, stage: str, step: int, values: Mapping[str, Number]) -> None:
        """One line of `metrics.jsonl` and one point per value; what is not finite becomes null."""
        numbers = {name: float(value) for name, value in values.items()}
        tidy = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        line = {"stage": stage, "step": step, "time": time.time(), **tidy}
        self._metrics.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._metrics.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def picture(self, tag: str, image: Tensor | np.ndarray, step: int) -> None:
        """`image`: uint8 [H, W, 3]."""
        self._board.add_image(tag, image, step, dataformats="HWC")

    def film(self, tag: str, gif: bytes, step: int) -> None:
        """Beside the pictures: TensorBoard plays a GIF as it is."""
        shown = Summary.Image(encoded_image_string=gif, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=shown)])
        self._board._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        """Nothing can be said afterwards."""
        self._metrics.close()
        self._board.close()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """The first column names the row and stands left, figures stand right; None is a dash."""
    drawn = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pair(item: tuple[str, Number]) -> str:
    return f"{item[0]} {float(item[1]):.3g}"


def figure(value: float, span: Sequence[float] | None = None) -> str:
    """A number as people read it: two decimals, or as many as its first two digits need, and those
    in which the ends of its interval `span` differ; with an exponent where it is tiny or huge."""
    wide = span[1] - span[0] if span else 0.0
    size = max(abs(value), wide)
    if not math.isfinite(size) or not size:
        return f"{value:.2f}"
    least = min(filter(None, (abs(value), wide)))
    decimals = 1 - math.floor(math.log10(least))
    if 1e-3 <= size < 1e7:
        return f"{value:.{min(max(2, decimals), 12)}f}"
    return f"{value:.{min(max(3, math.floor(math.log10(size)) + decimals + 1), 15)}g}"


def duration(seconds: float) -> str:
    """65 s, 12 min, 3.4 h: as precise as an estimate deserves."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _drop_torn_line(path: Path) -> None:
    """A killed run may have left half a line, which would spoil the next one."""
    written = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(written.rfind(b"\n") + 1)
