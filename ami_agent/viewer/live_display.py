"""The displays of `ami show --live`: a terminal, two pixels to a character, and a page that is
served to browsers of this machine."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Condition, Thread
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ami_agent.viewer.drawing import PANEL
from modules.types import ConfigError

BAR_WIDTH, LABEL_WIDTH = 24, 36
"""Characters of a bar, and of the label before it."""
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


class BlockImage:
    """A picture in a terminal, two pixels to a character."""

    def __init__(self, picture: Image.Image, reserved_lines: int) -> None:
        """`reserved_lines`: lines of the terminal that the picture leaves free."""
        self.picture, self.reserved_lines = picture.convert("RGB"), reserved_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        width, height = self.picture.size
        scale = min(
            options.max_width / width, 2 * max(1, console.height - self.reserved_lines) / height
        )
        size = max(1, int(width * scale)), 2 * max(1, int(height * scale / 2))
        rows = np.asarray(self.picture.resize(size, Image.Resampling.BOX))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True):
            for upper_pixel, lower_pixel in zip(upper.tolist(), lower.tolist(), strict=True):
                style = Style(
                    color=Color.from_rgb(*upper_pixel), bgcolor=Color.from_rgb(*lower_pixel)
                )
                yield Segment("▀", style)
            yield Segment.line()


class Terminal:
    """Draws each step over the one before."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """Shows the picture, and the lines below it."""
        texts: Iterable[RenderableType] = (
            Text.assemble(line.label(), (line.bar(), line.color)) for line in lines
        )
        cropped = picture.crop((0, 0, picture.width, PANEL))  # its caption would be illegible
        self.live.update(Group(BlockImage(cropped, len(lines) + 2), *texts), refresh=True)


class LinePrinter:
    """Prints a line for each step where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """Prints the texts of the lines."""
        text = "; ".join(line.text for line in lines)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def terminal(console: Console) -> Iterator[Terminal | LinePrinter]:
    """The display that suits the console: pictures, or lines without a colour terminal."""
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:
        yield LinePrinter(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Terminal(live)


HTML = """<!doctype html><meta charset="utf-8"><title>ami show --live</title>
<style>body{font:15px system-ui;margin:2em auto;max-width:60em;background:Canvas;color:CanvasText;
color-scheme:light dark}img{max-width:100%;border-radius:6px}pre{line-height:1.3}</style>
<img src="picture" alt="the candidates, the plan and the path of the agent"><pre id="text"></pre>
<script>
(async () => {
  const answer = await fetch("text");
  if (!answer.ok) {
    document.getElementById("text").textContent = await answer.text();
    return;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const parts = (text += value).split("\\f");
    text = parts.pop();
    if (parts.length) document.getElementById("text").innerHTML = parts.pop();
  }
})();
</script>
"""
MULTIPART = "multipart/x-mixed-replace; boundary=frame"
RESEND_SECONDS = 1.0
"""Seconds after which the current frame is sent again: some browsers show a picture only when the
next one arrives."""

MAX_STREAMS, MAX_CONNECTIONS = 64, 256
"""Streams that are served at once, and connections that are open at once."""
MAX_REQUEST_BYTES, TIMEOUT = 16_384, 5.0
"""Bytes of a request's head, and seconds for a client to send it or to accept a response."""
HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names in the Host header that are answered."""
BUSY_RESPONSE = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread, up to `MAX_CONNECTIONS`; clients may disconnect at any
    time."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, port: int, handler: type[Handler]) -> None:
        self.slots = BoundedSemaphore(MAX_CONNECTIONS)
        self.streams = BoundedSemaphore(MAX_STREAMS)
        super().__init__(("127.0.0.1", port), handler)

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
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Errors of a connection are not printed."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request, whose head must be short and arrive within `TIMEOUT`. A page of another
    site that reaches this machine by a name of its own (DNS rebinding) is refused by its Host."""

    timeout = TIMEOUT
    page: LivePage
    server: Server

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
        # any port: the other end of an SSH tunnel may have another one
        host = re.sub(r":\d+$", "", self.headers.get("Host", "").lower())
        if host not in HOSTS:
            self.send_error(403, "this page is served to browsers of this machine only")
            return
        self.page.answer(self)

    def log_message(self, *args: Any) -> None:
        """Requests are not logged."""


class LivePage:
    """A page for browsers of this machine, which shows the current step and all that follow."""

    def __init__(self, port: int) -> None:
        """Raises ConfigError for a port that is invalid or can't be opened."""
        self.changed, self.frame_id, self.closed = Condition(), 0, False
        self.picture = self.text = b""
        try:
            self.server = Server(port, type("PageHandler", (Handler,), {"page": self}))
        except OverflowError:
            raise ConfigError(f"--port is {port}; it must be from 0 to 65535") from None
        except OSError as error:
            raise ConfigError(f"--port {port} can't be opened: {error.strerror}") from None
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> LivePage:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """Sends the step to all open streams."""
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        rows = map(_html, lines)
        with self.changed:
            self.picture, self.text = buffer.getvalue(), "\n".join(rows).encode()
            self.frame_id += 1
            self.changed.notify_all()

    def answer(self, request: Handler) -> None:
        """Sends the page, or one of its two streams, of which `MAX_STREAMS` may be open."""
        content_types = {
            "/": "text/html; charset=utf-8",
            "/picture": MULTIPART,
            "/text": "text/plain",
        }
        if request.path not in content_types:
            request.send_error(404)
        elif request.path == "/":
            self._send(request, content_types["/"])
            request.wfile.write(HTML.encode())
        elif request.server.streams.acquire(blocking=False):
            try:
                self._send(request, content_types[request.path])
                self._stream(request)
            finally:
                request.server.streams.release()
        else:
            request.send_response(503)
            request.send_header("Retry-After", "5")
            request.end_headers()
            request.wfile.write(f"{MAX_STREAMS} streams are open; no more are served".encode())

    def _send(self, request: Handler, content_type: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", content_type)
        request.send_header("Cache-Control", "no-store")
        request.end_headers()

    def _stream(self, request: Handler) -> None:
        """Sends frames until the page closes; a slow client misses some, and one that takes longer
        than `TIMEOUT` is disconnected."""
        if request.path == "/picture":
            request.wfile.write(b"--frame\r\n")
        for picture, text in self._frames():
            if request.path == "/text":
                request.wfile.write(text + b"\f")
            else:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                request.wfile.write(head.encode() + picture + b"\r\n--frame\r\n")

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        """The current picture and text, and all that follow until the page closes."""
        last_shown = 0
        while True:
            with self.changed:
                if self.frame_id == last_shown and not self.closed:
                    self.changed.wait(RESEND_SECONDS)
                if self.frame_id == last_shown and self.closed:
                    return
                last_shown, frame = self.frame_id, (self.picture, self.text)
            if last_shown:
                yield frame


def _html(line: Line) -> str:
    return f'{escape(line.label())}<span style="color:{line.color}">{line.bar()}</span>'
