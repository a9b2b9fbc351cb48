"""Where what is drawn can be seen at once: a terminal, two pixels to a character, and a page that
this machine serves to itself."""

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

from ami_agent.show.drawing import PANEL
from modules.types import UnusableInput

WIDE = 24
"""Characters of a bar."""
LABEL = 36
"""Of what is written before it."""
LEVELS = " ▁▂▃▄▅▆▇█"


class Line(NamedTuple):
    """A line of text, and behind it a bar for one number from 0 to 1, or a curve of several."""

    text: str
    shares: Sequence[float] = ()
    colour: str = "default"

    def drawn(self) -> str:
        """Bar or curve, in characters."""
        if len(self.shares) == 1:
            return "█" * round(WIDE * self.shares[0])
        return "".join(LEVELS[round(share * (len(LEVELS) - 1))] for share in self.shares)

    def label(self) -> str:
        """The text, as wide as most that have something behind them."""
        return f"{self.text:{LABEL}} " if self.shares else self.text


class Blocks:
    """A picture in a terminal, two pixels to a character."""

    def __init__(self, picture: Image.Image, taken: int) -> None:
        """`taken`: lines that are needed for something else."""
        self.picture, self.taken = picture.convert("RGB"), taken

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        wide, high = self.picture.size
        share = min(options.max_width / wide, 2 * max(1, console.height - self.taken) / high)
        size = max(1, int(wide * share)), 2 * max(1, int(high * share / 2))
        rows = np.asarray(self.picture.resize(size, Image.Resampling.BOX))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True):
            for over, under in zip(upper.tolist(), lower.tolist(), strict=True):
                style = Style(color=Color.from_rgb(*over), bgcolor=Color.from_rgb(*under))
                yield Segment("▀", style)
            yield Segment.line()


class Terminal:
    """Each moment in the place of the one before."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """Below the picture the lines."""
        texts: Iterable[RenderableType] = (
            Text.assemble(line.label(), (line.drawn(), line.colour)) for line in lines
        )
        seen = picture.crop((0, 0, picture.width, PANEL))  # letters would be too small to read
        self.live.update(Group(Blocks(seen, len(lines) + 2), *texts), refresh=True)


class Lines:
    """Where there is no terminal: a line for each moment."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """What there is to read."""
        told = "; ".join(line.text for line in lines)
        self.console.print(told, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def terminal(console: Console) -> Iterator[Terminal | Lines]:
    """Whatever the console can do."""
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:
        yield Lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Terminal(live)


HTML = """<!doctype html><meta charset="utf-8"><title>as it lives</title>
<style>body{font:15px system-ui;margin:2em auto;max-width:60em;background:Canvas;color:CanvasText;
color-scheme:light dark}img{max-width:100%;border-radius:6px}pre{line-height:1.3}</style>
<img src="picture" alt="what the agent considers, chooses and does"><pre id="told"></pre>
<script>
(async () => {
  const answer = await fetch("told");
  if (!answer.ok) {
    document.getElementById("told").textContent = await answer.text();
    return;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const parts = (text += value).split("\\f");
    text = parts.pop();
    if (parts.length) document.getElementById("told").innerHTML = parts.pop();
  }
})();
</script>
"""
PARTED = "multipart/x-mixed-replace; boundary=moment"
AGAIN = 1.0
"""Seconds after which the present moment is sent once more: some browsers show a picture only when
the next has come."""


MOST_STREAMS, MOST_CONNECTIONS = 64, 256
"""Streams that are served at once, and connections that are answered at once."""
MOST_BYTES, SECONDS = 16_384, 5.0
HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Of a request's head; and that a connection may take to send it, or to take what it is sent."""
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class Server(ThreadingHTTPServer):
    """A thread for each connection, and a bound on both; whoever looks may go at any time, in the
    middle of a word."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, port: int, handler: type[Handler]) -> None:
        self.room = BoundedSemaphore(MOST_CONNECTIONS)
        self.streams = BoundedSemaphore(MOST_STREAMS)
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread where there is room, else the answer is that there is none."""
        if not self.room.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(BUSY)
                request.recv(MOST_BYTES)  # what is left unread would undo the answer
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nobody else needs to know."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request, whose head is short and comes at once. A page of another site that finds
    this machine under a name of its own (DNS rebinding) gets nothing: its Host is not ours."""

    timeout = SECONDS
    page: Page
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BytesIO(self._head())  # type: ignore[assignment]

    def _head(self) -> bytes:
        head, until = b"", monotonic() + SECONDS
        with suppress(OSError):
            while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MOST_BYTES:
                self.connection.settimeout(max(0.01, until - monotonic()))
                part = self.connection.recv(4096)
                if not part:
                    break
                head += part
            self.connection.settimeout(SECONDS)
        return head[:MOST_BYTES]

    def do_GET(self) -> None:
        # any port: an SSH tunnel may have another at its other end
        host = re.sub(r":\d+$", "", self.headers.get("Host", "").lower())
        if host not in HOSTS:
            self.send_error(403, "this page is for browsers of this machine alone")
            return
        self.page.answer(self)

    def log_message(self, *said: Any) -> None:
        """Who looked is nobody's business."""


class Page:
    """A page for the browsers of this machine alone; whoever opens it sees the present moment and
    all that follow."""

    def __init__(self, port: int) -> None:
        """Raises UnusableInput where the port can't be had."""
        self.news, self.moment, self.over = Condition(), 0, False
        self.picture = self.text = b""
        try:
            self.server = Server(port, type("PageHandler", (Handler,), {"page": self}))
        except OverflowError:
            raise UnusableInput(f"--port is {port}; it must be from 0 to 65535") from None
        except OSError as error:
            raise UnusableInput(f"--port {port} can't be had: {error.strerror}") from None
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> Page:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.news:
            self.over = True
            self.news.notify_all()
        self.server.shutdown()
        self.server.server_close()

    def show(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        """To all that look."""
        kept = io.BytesIO()
        picture.convert("RGB").save(kept, "JPEG", quality=85)
        rows = map(_html, lines)
        with self.news:
            self.picture, self.text = kept.getvalue(), "\n".join(rows).encode()
            self.moment += 1
            self.news.notify_all()

    def answer(self, request: Handler) -> None:
        """The page, or one of its two streams, of which there are so many at most."""
        kinds = {"/": "text/html; charset=utf-8", "/picture": PARTED, "/told": "text/plain"}
        if request.path not in kinds:
            request.send_error(404)
        elif request.path == "/":
            self._send(request, kinds["/"])
            request.wfile.write(HTML.encode())
        elif request.server.streams.acquire(blocking=False):
            try:
                self._send(request, kinds[request.path])
                self._stream(request)
            finally:
                request.server.streams.release()
        else:
            request.send_response(503)
            request.send_header("Retry-After", "5")
            request.end_headers()
            request.wfile.write(f"{MOST_STREAMS} streams are open, and no more are served".encode())

    def _send(self, request: Handler, kind: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Cache-Control", "no-store")
        request.end_headers()

    def _stream(self, request: Handler) -> None:
        """Whoever takes too long for a moment is left; who is slow misses some."""
        if request.path == "/picture":
            request.wfile.write(b"--moment\r\n")
        for picture, text in self._moments():
            if request.path == "/told":
                request.wfile.write(text + b"\f")
            else:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                request.wfile.write(head.encode() + picture + b"\r\n--moment\r\n")

    def _moments(self) -> Iterator[tuple[bytes, bytes]]:
        """The present one and each that follows, until all is over."""
        shown = 0
        while True:
            with self.news:
                if self.moment == shown and not self.over:
                    self.news.wait(AGAIN)
                if self.moment == shown and self.over:
                    return
                shown, now = self.moment, (self.picture, self.text)
            if shown:
                yield now


def _html(line: Line) -> str:
    return f'{escape(line.label())}<span style="color:{line.colour}">{line.drawn()}</span>'
