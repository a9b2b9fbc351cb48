"""Serves a workbench to browsers of this machine, with the standard library alone.

A page gets every new version as a server-sent event and sends each change as a request of its own.
The address holds a random token; no part of a request is used as a path, and what is drawn is sent
as JSON, which the page inserts as text."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import token_urlsafe
from threading import BoundedSemaphore, Condition, Lock, Thread
from time import monotonic
from typing import Any, TypeAlias

from torch import Tensor

from ami_agent.viewer.page import Json, read_asset
from ami_agent.viewer.workbench import export
from ami_agent.viewer.workbench.core import Workbench
from ami_agent.viewer.workbench.description import describe, describe_branch
from modules.types import ConfigError, shorten

RESEND_SECONDS = 5.0
"""Seconds until an event is sent again, by which a vanished browser is noticed."""
LEASE_SECONDS = 60.0
"""Seconds without a change after which another page may act without taking over."""
MAX_STREAMS, MAX_CONNECTIONS, MAX_WAITING = 64, 256, 8
"""Streams that are served at once, connections that are open at once, and changes that wait."""
MAX_HEAD_BYTES, MAX_BODY_BYTES, TIMEOUT = 16_384, 65_536, 5.0
"""Bytes of a request's head and of a change, and seconds for a client to send one part of it or to
accept a response."""
BODY_SECONDS = 120.0  # for all parts of a request
MAX_CLIENT = 100  # characters of the names that a page gives itself and its drags
HOSTS = ("localhost", "127.0.0.1", "[::1]")  # names in the Host header that are answered
BUSY_RESPONSE = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ASSETS = {
    "": ("workbench.html", "text/html; charset=utf-8"),
    "workbench.css": ("workbench.css", "text/css; charset=utf-8"),
    "plane.js": ("plane.js", "text/javascript; charset=utf-8"),
    "workbench.js": ("workbench.js", "text/javascript; charset=utf-8"),
}
"""What is served under the token, by the rest of the address."""

Message: TypeAlias = Mapping[str, Any]
COMMANDS: Mapping[str, Callable[[Workbench, Message], None]] = {
    "begin": lambda bench, m: bench.begin(_seed(m["seed"])),
    "step": lambda bench, m: bench.step(),
    "back": lambda bench, m: bench.back(),
    "branch": lambda bench, m: bench.branch(),
    "go": lambda bench, m: bench.go_to(m["node"]),
    "pin": lambda bench, m: bench.pin(m["node"]),
    "compare": lambda bench, m: bench.compare(m["on"] is True),
    "change": lambda bench, m: bench.change(m["side"], m["setting"], m["name"], m["value"]),
    "edit": lambda bench, m: bench.edit_action(m["step"], m["action"]),
    "place": lambda bench, m: bench.place(
        m["what"],
        (float(m["x"]), float(m["y"])),
        str(m["gesture"])[:MAX_CLIENT],
        m["final"] is True,
    ),
    "take": lambda bench, m: None,
}
"""What a page may do, by name."""


def _seed(value: object) -> int:
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**31:
        raise ConfigError(f"the seed is {shorten(value)}; it must be from 0 to {2**31 - 1}")
    return seed


class Handler(BaseHTTPRequestHandler):
    """Answers one request, whose head must be short and arrive within `TIMEOUT`. A page of another
    site is refused by its Origin, and one that reaches this machine by a name of its own (DNS
    rebinding) by its Host."""

    server: WorkbenchServer

    def setup(self) -> None:
        super().setup()
        head, self.rest = self._head()
        self.rfile = io.BytesIO(head)  # type: ignore[assignment]

    def _head(self) -> tuple[bytes, bytes]:
        """The head of the request, and what came of its body with it; nothing of a head that is too
        large or too slow."""
        data, end, deadline = b"", None, monotonic() + TIMEOUT
        with suppress(OSError):
            while not (end := re.search(rb"\r?\n\r?\n", data)) and len(data) < MAX_HEAD_BYTES:
                self.connection.settimeout(max(0.01, deadline - monotonic()))
                part = self.connection.recv(4096)
                if not part:
                    break
                data += part
        self.connection.settimeout(TIMEOUT)
        return (b"", b"") if end is None else (data[: end.end()], data[end.end() :])

    def _resource(self) -> str | None:
        """What stands behind the token in the address; None, and an answer, for a request that is
        refused."""
        # any port: the other end of an SSH tunnel may have another one
        host = self.headers.get("Host", "").lower()
        origin = self.headers.get("Origin")
        if re.sub(r":\d+$", "", host) not in HOSTS:
            self.send_error(403, "this page is served to browsers of this machine only")
            return None
        is_same = origin is not None and origin.lower() == f"http://{host}"
        if not is_same and (origin is not None or self.command == "POST"):
            self.send_error(403, "requests of other pages are refused")
            return None
        token, _, resource = self.path[1:].partition("/")
        if not compare_digest(token.encode(), self.server.token.encode()):
            self.send_error(404)
            return None
        return resource

    def do_GET(self) -> None:
        """Sends the page, what it consists of, or its stream."""
        resource = self._resource()
        if resource in ASSETS:
            name, kind = ASSETS[resource]
            self._send(kind, read_asset(f"workbench/{name}").encode())
        elif resource == "start":
            self._send_json(self.server.start)
        elif resource == "events":
            self._stream()
        elif resource is not None:
            self.send_error(404)

    def do_POST(self) -> None:
        """Takes a change, or sends an export."""
        resource = self._resource()
        if resource not in ("do", "branch", "page", "film"):
            if resource is not None:
                self.send_error(404)
            return
        limit = export.MAX_FILM_BYTES if resource == "film" else MAX_BODY_BYTES
        try:
            message = self._body(limit)
            if resource == "do":
                self._send(JSON, self.server.do(message))
            elif resource == "film":
                self._send("video/mp4", self.server.film(message))
            else:
                branch = self.server.branch(message)
                if resource == "branch":
                    self._send_json({"frames": branch})
                else:
                    page = export.page(self.server.start, branch)
                    self._send("text/html; charset=utf-8", page)
        except ConfigError as error:
            self._send_json({"error": str(error)}, 400)

    def _body(self, limit: int) -> Message:
        """The JSON object of the request; ConfigError for anything else."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length) or int(length) > limit:
            raise ConfigError(f"a request of {shorten(length)} bytes; at most {limit} are taken")
        if self.headers.get_content_type() != "application/json":
            raise ConfigError("a request must be application/json")
        data, deadline = bytearray(self.rest), monotonic() + BODY_SECONDS
        while len(data) < int(length):
            part = self.connection.recv(65_536)
            if not part or monotonic() > deadline:
                raise ConfigError("the request is incomplete")
            data += part
        try:
            message = json.loads(bytes(data[: int(length)]))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ConfigError("a request must be a JSON object")
        return message

    def _send_json(self, data: Json, status: int = 200) -> None:
        self._send(JSON, encode(data), status)

    def _send(self, kind: str, data: bytes, status: int = 200) -> None:
        self._begin(status, {"Content-Type": kind, "Content-Length": str(len(data))})
        self.wfile.write(data)

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for header, value in {**HEADERS, **headers}.items():
            self.send_header(header, value)
        self.end_headers()

    def _stream(self) -> None:
        """Sends versions until the page closes, or a client takes longer than `TIMEOUT`."""
        if not self.server.streams.acquire(blocking=False):
            self._begin(503, {"Retry-After": "5"})
            self.wfile.write(f"{MAX_STREAMS} streams are open; no more are served".encode())
            return
        try:
            self._begin(200, {"Content-Type": "text/event-stream"})
            for view in self.server.views():
                self.wfile.write(b"data: " + view + b"\n\n")
        finally:
            self.server.streams.release()

    def version_string(self) -> str:
        """The Server header names no versions."""
        return "ami"

    def log_message(self, *args: Any) -> None:
        """Requests are not logged."""


JSON = "application/json"


def encode(data: Json) -> bytes:
    """JSON in one line."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


class WorkbenchServer(ThreadingHTTPServer):
    """The workbench for browsers of this machine. All of them see every version; one of them acts.
    Clients may disconnect at any time."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, bench: Workbench, start: Json, port: int) -> None:
        """`start`: what a page needs to know once. ConfigError for a port that can't be opened."""
        self.bench, self.start, self.token = bench, start, token_urlsafe(16)
        self.slots = BoundedSemaphore(MAX_CONNECTIONS)
        self.streams = BoundedSemaphore(MAX_STREAMS)
        self.waiting, self.films = BoundedSemaphore(MAX_WAITING), BoundedSemaphore(1)
        self.work = Lock()  # held while the workbench changes or is read
        self.changed, self.view, self.view_id, self.closed = Condition(), b"", 0, False
        self.actor, self.acted_at = "", -LEASE_SECONDS
        """The page that acts, and when it did last."""
        self.status, self.lost, self.follows = "", "", True
        """What goes on beside, why the workbench does not follow it, and whether it does."""
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ConfigError(f"--port {port} can't be opened: {error.strerror}") from None
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def __enter__(self) -> WorkbenchServer:
        self._publish()
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def do(self, message: Message) -> bytes:
        """What a page does -> the version that follows. ConfigError for what can't be done, and
        where another page acts."""
        if not self.waiting.acquire(blocking=False):
            raise ConfigError("too many changes are waiting")
        try:
            with self.work:
                self._take(message)
                self._run(message)
                return self._publish()
        finally:
            self.waiting.release()

    def _take(self, message: Message) -> None:
        client = str(message.get("client", ""))[:MAX_CLIENT]
        is_free = not self.actor or monotonic() - self.acted_at > LEASE_SECONDS
        if client != self.actor and not is_free and message.get("do") != "take":
            raise ConfigError("another page acts: this one looks on until it takes over")
        self.actor, self.acted_at = client, monotonic()

    def _run(self, message: Message) -> None:
        command = COMMANDS.get(str(message.get("do")))
        if command is None:
            raise ConfigError(f"nothing is called {shorten(message.get('do'))}")
        try:
            command(self.bench, message)
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"the request lacks {error}") from None
        except Exception as error:  # code of a component may raise anything; the page goes on
            raise ConfigError(f"{type(error).__name__}: {error}") from None

    def begin(self, seed: int) -> None:
        """The agent begins another episode by itself; it is shown where no page acts."""
        self._follow(lambda: self.bench.begin_own(seed, is_shown=not self.actor), "", True)

    def follow(self, state: Tensor, action: Tensor, status: str) -> None:
        """The episode in which the agent acts by itself goes on, from a state `[1, D]` by an action
        `[1, A]`; `status` says so. It is shown until a page acts."""
        self._follow(
            lambda: self.bench.follow(state, action, is_shown=not self.actor),
            status,
            self.follows,
        )

    def _follow(self, go_on: Callable[[], None], status: str, is_possible: bool) -> None:
        """What the workbench can't follow goes on without it."""
        with self.work:
            self.follows, self.status = is_possible, status
            if is_possible:
                try:
                    go_on()
                except ConfigError as error:
                    self.follows = False
                    self.lost = f"This page does not follow the agent's own episode: {error}."
            if not self.follows:
                self.status = f"{status} {self.lost}".strip()
            self._publish()

    def say(self, status: str) -> None:
        """Another status."""
        with self.work:
            self.status = status
            self._publish()

    def branch(self, message: Message) -> list[Json]:
        """The moments from the beginning to a node."""
        with self.work:
            return describe_branch(self.bench, self.bench.find(message.get("node")))

    def film(self, message: Message) -> bytes:
        """The frames that a page drew as an mp4; one film at a time is made."""
        if not self.films.acquire(blocking=False):
            raise ConfigError("a film is being made; try again")
        try:
            return export.film(message.get("frames"))
        finally:
            self.films.release()

    def _publish(self) -> bytes:
        """Sends the present version to all streams, and returns it."""
        beside = {"view": self.view_id + 1, "actor": self.actor, "status": self.status}
        view = encode({**describe(self.bench), **beside})
        with self.changed:
            self.view, self.view_id = view, self.view_id + 1
            self.changed.notify_all()
        return view

    def views(self) -> Iterator[bytes]:
        """The present version and all that follow until the page closes; a client that is slow gets
        the latest."""
        last = 0
        while True:
            with self.changed:
                if self.view_id == last and not self.closed:
                    self.changed.wait(RESEND_SECONDS)
                if self.closed:
                    return
                last, view = self.view_id, self.view
            yield view

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the request, or answers 503 where too many are open."""
        if not self.slots.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(BUSY_RESPONSE)
                request.recv(MAX_HEAD_BYTES)  # unread bytes would reset the connection
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
