"""`ami show --live`: every step of an episode, in the terminal and on a page for local browsers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Condition, Event, Thread
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.logger import ConsoleLogger, Logger, print_line
from ami_agent.viewer import drawing
from ami_agent.viewer.page import read_asset
from ami_agent.viewer.projectors import ProjectedEpisode, make_projector_factory, project
from ami_agent.viewer.record import EpisodeSelection, RecordedEpisode, RecordedStep, record_episodes
from modules.types import ConfigError

NUM_FIT_STEPS = 100
"""Steps, at most, of the episode that the projection of states is fitted to beforehand."""
BAR_WIDTH, LABEL_WIDTH = 24, 36  # characters of a bar, and of the label before it
BAR_LEVELS = " ▁▂▃▄▅▆▇█"


class Line(NamedTuple):
    """A line of text, followed by a bar for one number from 0 to 1 or by a curve of several."""

    text: str
    fractions: Sequence[float] = ()
    color: str = "default"

    def bar(self) -> str:
        """The bar or the curve, in characters."""
        if len(self.fractions) == 1:
            return "█" * round(BAR_WIDTH * self.fractions[0])
        return "".join(
            BAR_LEVELS[round(fraction * (len(BAR_LEVELS) - 1))] for fraction in self.fractions
        )

    def label(self) -> str:
        """The text, padded where a bar or a curve follows."""
        return f"{self.text:{LABEL_WIDTH}} " if self.fractions else self.text


Display: TypeAlias = Callable[[Image.Image, Sequence[Line]], None]
"""Shows the picture of a step, and the lines below it."""


def show_live(
    agent: Agent, config: EnvConfig, console: Console, selection: EpisodeSelection, *,
    port: int = 0, wait: Callable[[], None] = lambda: None,
) -> list[RecordedEpisode]:  # fmt: skip
    """Shows the selected episodes as they happen, one after the other, and returns them, each with
    its last step alone. The page is served at `port`, or at a free port if that is 0, until `wait`
    returns or Ctrl-C. Raises ConfigError for an unknown mode or task, or a port that can't be
    had."""
    if len(selection.modes) > 1:
        raise ConfigError("--mode both: --live shows one mode, plan, react or auto")
    task_spec, logger = agent.task_spec(selection.task), ConsoleLogger(console)
    selections = [
        replace(selection, episodes=1, seed=selection.seed + i) for i in range(selection.episodes)
    ]
    config = config.for_task(task_spec)
    recorded: list[RecordedEpisode] = []
    with LivePage(port) as page:
        factory = make_projector_factory(agent, config, selection.seed, task_spec, logger.info)
        beginning = replace(selections[0], max_steps=NUM_FIT_STEPS)
        first_recorded = record_episodes(agent, config, factory.camera, beginning, Logger())
        projector = factory.fit(next(first_recorded))
        logger.info(f"{projector.description} Every step is drawn here and at {page.address}")

        def on_step(episodes_so_far: Sequence[RecordedEpisode]) -> None:
            (recorded_episode,) = episodes_so_far
            projected = project(recorded_episode, projector)
            (step,) = projected.projected_steps
            title = f"seed {recorded_episode.seed}, {drawing.caption(projected, step)}"
            show(projected, [Line(title), *describe(step.recorded)])

        def show(projected: ProjectedEpisode, lines: Sequence[Line]) -> None:
            (picture,) = drawing.film(projected)
            page.show(picture, lines)
            show_in_terminal(picture, lines)

        with terminal(console) as show_in_terminal, suppress(KeyboardInterrupt):
            for selected in selections:
                ((recorded_episode,),) = record_episodes(
                    agent, config, factory.camera, selected, Logger(), on_step
                )
                show(project(recorded_episode, projector), [Line(recorded_episode.summary)])
                recorded.append(recorded_episode)
            wait()
    return recorded


def describe(step: RecordedStep) -> list[Line]:
    """The energy of the plan, term by term, and the lowest energy so far during the search."""
    terms = {name: abs(term) for name, term in step.terms.items()}
    largest = max(terms.values(), default=0.0) or 1.0
    lines = [
        Line(f"{name} {step.terms[name]:.3g}", fractions([terms[name] / largest]), color)
        for name, color in drawing.term_colors(terms).items()
    ]
    energies = step.best_energies
    if len(energies) > 1:
        low, high = energies.min(), energies.max()
        curve = fractions((energies - low) / (high - low or 1.0))
        lines.append(Line(f"while planning {high:.3g} to {low:.3g}", curve, drawing.MUTED))
    return lines


def fractions(numbers: ArrayLike) -> list[float]:
    """The numbers from 0 to 1, NaN as 0: an agent that has diverged is shown all the same."""
    return np.nan_to_num(numbers).clip(0, 1).tolist()


def wait_for_interrupt(console: Console) -> None:
    """Waits for Ctrl-C where the console is a terminal."""
    if console.is_terminal:
        print_line(console, "the page is served until Ctrl-C")
        Event().wait()


@contextmanager
def terminal(console: Console) -> Iterator[Display]:
    """The display that suits the console: pictures, or a line for each step without colours."""
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:

        def print_texts(picture: Image.Image, lines: Sequence[Line]) -> None:
            text = "; ".join(line.text for line in lines)
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield print_texts
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(picture: Image.Image, lines: Sequence[Line]) -> None:
            cropped = picture.crop((0, 0, picture.width, drawing.PANEL))  # the caption is illegible
            blocks = block_image(cropped, console.width, console.height - len(lines) - 2)
            texts = (Text.assemble(line.label(), (line.bar(), line.color)) for line in lines)
            live.update(Group(blocks, *texts), refresh=True)

        yield draw


def block_image(picture: Image.Image, width: int, height: int) -> Segments:
    """A picture in a terminal, two pixels to a character, in so many columns and rows at most."""
    scale = min(width / picture.width, 2 * max(1, height) / picture.height)
    size = max(1, int(picture.width * scale)), 2 * max(1, int(picture.height * scale / 2))
    rows = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)).tolist()
    segments = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)


CONTENT_TYPES = {
    "/": "text/html; charset=utf-8",
    "/picture": "multipart/x-mixed-replace; boundary=frame",
    "/text": "text/plain",
}
RESEND_SECONDS = 1.0
"""Seconds until a frame is sent again: some browsers show a picture when the next one arrives."""

MAX_STREAMS, MAX_CONNECTIONS = 64, 256
"""Streams that are served at once, and connections that are open at once."""
MAX_REQUEST_BYTES, TIMEOUT = 16_384, 5.0
"""Bytes of a request's head, and seconds for a client to send it or to accept a response."""
HOSTS = ("localhost", "127.0.0.1", "[::1]")  # names in the Host header that are answered
BUSY_RESPONSE = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class Handler(BaseHTTPRequestHandler):
    """Answers one request, whose head must be short and arrive within `TIMEOUT`. A page of another
    site that reaches this machine by a name of its own (DNS rebinding) is refused by its Host."""

    server: LivePage

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BytesIO(self._head())  # type: ignore[assignment]

    def _head(self) -> bytes:
        head, deadline = b"", monotonic() + TIMEOUT
        with suppress(OSError):
            while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MAX_REQUEST_BYTES:
                self.connection.settimeout(max(0.01, deadline - monotonic()))
                part = self.connection.recv(4096)
                if not part:
                    break
                head += part
            self.connection.settimeout(TIMEOUT)
        return head[:MAX_REQUEST_BYTES]

    def do_GET(self) -> None:
        """Sends the page, or one of its two streams, of which `MAX_STREAMS` may be open."""
        # any port: the other end of an SSH tunnel may have another one
        host = re.sub(r":\d+$", "", self.headers.get("Host", "").lower())
        if host not in HOSTS:
            self.send_error(403, "this page is served to browsers of this machine only")
        elif self.path not in CONTENT_TYPES:
            self.send_error(404)
        elif self.path == "/":
            self._begin(200, "Content-Type", CONTENT_TYPES["/"])
            self.wfile.write(read_asset("live.html").encode())
        elif self.server.streams.acquire(blocking=False):
            try:
                self._begin(200, "Content-Type", CONTENT_TYPES[self.path])
                self._stream()
            finally:
                self.server.streams.release()
        else:
            self._begin(503, "Retry-After", "5")
            self.wfile.write(f"{MAX_STREAMS} streams are open; no more are served".encode())

    def _begin(self, status: int, header: str, value: str) -> None:
        self.send_response(status)
        self.send_header(header, value)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _stream(self) -> None:
        """Sends frames until the page closes, or a client takes longer than `TIMEOUT`."""
        if self.path == "/picture":
            self.wfile.write(b"--frame\r\n")
        for picture, text in self.server.frames():
            if self.path == "/text":
                self.wfile.write(text + b"\f")
            else:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n--frame\r\n")

    def log_message(self, *args: Any) -> None:
        """Requests are not logged."""


class LivePage(ThreadingHTTPServer):
    """A page for browsers of this machine, which shows the current step and all that follow.
    Clients may disconnect at any time."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, port: int) -> None:
        """Raises ConfigError for a port that can't be opened."""
        self.slots = BoundedSemaphore(MAX_CONNECTIONS)
        self.streams = BoundedSemaphore(MAX_STREAMS)
        self.changed, self.frame_id, self.closed = Condition(), 0, False
        self.frame = b"", b""
        """The picture and the text of the current step."""
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ConfigError(f"--port {port} can't be opened: {error.strerror}") from None
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> LivePage:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """Sends the step to all open streams."""
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        rows = (
            f'{escape(line.label())}<span style="color:{line.color}">{line.bar()}</span>'
            for line in lines
        )
        with self.changed:
            self.frame = buffer.getvalue(), "\n".join(rows).encode()
            self.frame_id += 1
            self.changed.notify_all()

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """The current picture and text, and all that follow until the page closes."""
        last_shown = 0
        while True:
            with self.changed:
                if self.frame_id == last_shown and not self.closed:
                    self.changed.wait(RESEND_SECONDS)
                if self.frame_id == last_shown and self.closed:
                    return
                last_shown, frame = self.frame_id, self.frame
            if last_shown:
                yield frame

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the request, or answers 503 where too many are open."""
        if not self.slots.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(BUSY_RESPONSE)
                request.recv(MAX_REQUEST_BYTES)  # unread bytes would reset the connection
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves the request; its slot is free afterwards."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Errors of a connection are not printed."""
