"""The workbench in browsers: who is answered, what is bounded, and what a page may send."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from ami_agent import recipes
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build
from ami_agent.logger import Logger
from ami_agent.viewer import drawing
from ami_agent.viewer.projectors import PCAProjector
from ami_agent.viewer.record import EpisodeSelection, record_episodes
from ami_agent.viewer.workbench import core, export, server
from ami_agent.viewer.workbench.core import Side, Workbench
from ami_agent.viewer.workbench.description import describe_branch, describe_workbench
from ami_agent.viewer.workbench.server import COMMANDS, WorkbenchServer
from modules.types import ConfigError
from tests.conftest import small

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def side():
    """An agent with new weights, and how its states are drawn."""
    config = small(recipes.two_rooms())
    env = EnvConfig(id="ami/TwoRooms-v0", options={"max_episode_steps": 40})
    with closing(env.build(1)) as one:
        agent = build(config, one.spec, seed=0)
    selection = EpisodeSelection(episodes=1, seed=0, max_steps=4)
    projector = PCAProjector(next(record_episodes(agent, env, None, selection, Logger())))
    return env, Side("agent", agent, config, projector)


@pytest.fixture
def bench(side):
    env, first = side
    with closing(Workbench([first], env, None, "", "plan")) as bench:
        bench.begin_own(0)
        yield bench


@pytest.fixture
def page(bench):
    start = describe_workbench(bench, EVIL, [EVIL])
    with WorkbenchServer(bench, start, 0) as page:
        yield page


def until(there, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw(page, request: bytes) -> bytes:
    """The answer to a request, as it is."""
    with socket.create_connection(page.server_address, timeout=10) as client:
        client.sendall(request)
        answer = b""
        with suppress(OSError):
            while part := client.recv(65_536):
                answer += part
        return answer


def status_of(page, path: str, host: str = "", method: str = "GET", **headers: str) -> int:
    """The status of an answer; a stream is cut off at its head."""
    host = host or f"127.0.0.1:{page.server_port}"
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    with socket.create_connection(page.server_address, timeout=10) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(client.recv(4096)[9:12])


def get(page, resource: str = "") -> bytes:
    with urllib.request.urlopen(page.address + resource, timeout=10) as answer:
        return answer.read()


def post(page, resource: str = "do", body: bytes | None = None, **message):
    """The status and the answer."""
    origin = f"http://127.0.0.1:{page.server_port}"
    request = urllib.request.Request(
        page.address + resource, body or json.dumps({"client": "a", **message}).encode(),
        {"Origin": origin, "Content-Type": "application/json"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def refusal(page, resource: str = "do", **message) -> str:
    status, answer = post(page, resource, **message)
    assert status == 400
    return json.loads(answer)["error"]


# who is answered


def test_the_page_is_served_to_this_machine_alone(page):
    port, path = page.server_port, f"/{page.token}/"
    assert page.address == f"http://127.0.0.1:{port}{path}"
    assert page.server_address[0] == "127.0.0.1"
    for host, status in (
        (f"localhost:{port}", 200), (f"127.0.0.1:{port}", 200), (f"[::1]:{port}", 200),
        (f"LOCALHOST:{port}", 200), ("evil.example", 403), (f"evil.example:{port}", 403),
        (f"localhost:{port + 1}", 200), ("localhost", 200), ("localhost.evil.example", 403),
    ):  # fmt: skip
        for resource in ("", "start", "events", "workbench.js"):
            assert status_of(page, path + resource, host) == status, (host, resource)
    assert b" 403 " in raw(page, f"GET {path} HTTP/1.0\r\n\r\n".encode())


def test_the_address_holds_a_token(page):
    other = "x" * len(page.token)
    assert len(page.token) >= 20
    for path in (
        "/",
        "/start",
        "/events",
        f"/{other}/",
        f"/{page.token[:-1]}/",
        "//",
        f"/{page.token}x/",
    ):
        assert status_of(page, path) == 404, path
    assert (
        status_of(page, "/do", method="POST", Origin=f"http://127.0.0.1:{page.server_port}") == 404
    )


def test_two_workbenches_have_different_tokens(bench):
    with WorkbenchServer(bench, {}, 0) as one, WorkbenchServer(bench, {}, 0) as two:
        assert one.token != two.token


def test_requests_of_other_pages_are_refused(page):
    path, own = f"/{page.token}/", f"http://127.0.0.1:{page.server_port}"
    for origin in ("http://evil.example", "null", own + "0", own.replace("http", "https"),
                   f"http://localhost:{page.server_port}"):  # fmt: skip
        assert status_of(page, path, Origin=origin) == 403
        assert status_of(page, path + "do", method="POST", Origin=origin) == 403
    assert status_of(page, path + "do", method="POST") == 403  # browsers send it with every POST
    assert status_of(page, path, Origin=own) == 200
    tunnel = {"host": "localhost:9", "Origin": "http://localhost:9"}  # of an SSH tunnel
    assert status_of(page, path, **tunnel) == 200
    assert page.bench.version == 1


def test_no_path_reaches_the_file_system(page, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for resource in (
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "core.py", "workbench.html", "exported.js",
        "/etc/passwd", f"../{tmp_path}/secret", "start/..", "start?x", "workbench.css/", "%00",
    ):  # fmt: skip
        assert status_of(page, f"/{page.token}/{resource}") == 404, resource
    assert status_of(page, f"/{page.token}/do") == 404
    assert (
        status_of(
            page,
            f"/{page.token}/start",
            method="POST",
            Origin=f"http://127.0.0.1:{page.server_port}",
        )
        == 404
    )
    assert status_of(page, f"/{page.token}/", method="PUT") == 501


def test_every_answer_has_a_strict_policy(page):
    for resource in ("", "workbench.js", "plane.js", "workbench.css", "start"):
        with urllib.request.urlopen(page.address + resource, timeout=10) as answer:
            headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "http:" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
    html = get(page).decode()
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {
        "workbench.css",
        "plane.js",
        "workbench.js",
    }
    assert " style=" not in html
    assert "onclick" not in html


# what is inserted


def test_names_are_sent_as_json_and_inserted_as_text(page):
    assert EVIL.encode() not in get(page)
    assert json.loads(get(page, "start"))["title"] == EVIL
    scripts = get(page, "plane.js") + get(page, "workbench.js")
    for way in (b"innerHTML", b"outerHTML", b"insertAdjacentHTML", b"document.write", b"eval("):
        assert way not in scripts


def test_an_exported_page_holds_the_branch_and_escapes_names(page):
    post(page, do="step")
    status, answer = post(page, "page", node=1)
    text = answer.decode()
    assert status == 200
    assert "<img src=x" not in text
    assert "&lt;/script&gt;&lt;img" in text  # the title
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    (kind, data), (_, script) = scripts
    assert "application/json" in kind
    frames = json.loads(data)
    assert frames["title"] == EVIL
    assert [frame["step"] for frame in frames["frames"]] == [0, 1]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "http://" not in text.replace("http-equiv", "")


def test_comments_of_html_cannot_hide_the_end_of_the_data(bench):
    start = {"title": "<!--<script>", "description": []}
    text = export.page(start, describe_branch(bench, bench.node)).decode()
    (data,) = re.findall(r'id="data">(.*?)</script>', text)
    assert "<!--" not in data
    assert json.loads(data)["title"] == "<!--<script>"


# what is bounded


def test_slow_and_oversized_requests_are_dropped(page, monkeypatch):
    monkeypatch.setattr(server, "TIMEOUT", 0.3)
    with socket.create_connection(page.server_address, timeout=10) as slow:
        start_time = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - start_time < 5:
                slow.sendall(b"G")  # a byte now and then keeps no thread busy
                time.sleep(0.05)
        assert time.monotonic() - start_time < 5
    head = f"GET /{page.token}/ HTTP/1.1\r\nHost: localhost\r\n".encode()
    assert b" 200 " in raw(page, head + b"\r\n")
    assert b" 200 " not in raw(page, head + b"X: " + b"y" * 20_000 + b"\r\n\r\n")
    assert b"<canvas" in get(page)


def test_a_change_is_small_and_json(page):
    origin = f"http://127.0.0.1:{page.server_port}"
    common = {"method": "POST", "Origin": origin, "Content-Type": "application/json"}
    path = f"/{page.token}/do"
    assert status_of(page, path, **common) == 400  # without a length
    for length in ("65537", "-1", "1e3", "9" * 30, "x"):
        assert status_of(page, path, **common, **{"Content-Length": length}) == 400, length
    for body in (b"[]", b"1", b"{", b"[" * 60_000, b'"x"', b"\xff", b"{" + b" " * 60_000):
        assert refusal(page, body=body) == "a request must be a JSON object"
    form = {"Content-Type": "text/plain", "Content-Length": "2"}
    assert status_of(page, path, **{**common, **form}) == 400
    assert page.bench.version == 1


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({}, "nothing is called None"),
        ({"do": "close"}, "nothing is called 'close'"),
        ({"do": ["step"]}, "nothing is called ['step']"),
        ({"do": "go"}, "the request lacks 'node'"),
        ({"do": "go", "node": {}}, "there is no such moment"),
        ({"do": "begin", "seed": "x"}, "the seed is 'x'; it must be from 0 to 2147483647"),
        ({"do": "begin", "seed": -1}, "the seed is -1"),
        ({"do": "change", "side": 0, "setting": "weight", "name": "critic", "value": "many"},
         "the weight of 'critic' is 'many'; it must be a number from 0 to 1e+06"),
        ({"do": "change", "side": [], "setting": 1, "name": 2, "value": {}}, "no such side"),
        ({"do": "place", "what": "goal", "x": "left", "y": 0, "gesture": "", "final": True},
         "ValueError: could not convert string to float: 'left'"),
        ({"do": "edit", "step": 0, "action": "xy"}, "an action is 2 finite numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_and_the_page_goes_on(page, message, error):
    assert error in refusal(page, **message)
    assert page.bench.version == 1
    assert post(page, do="step")[0] == 200


def test_code_that_raises_ends_nothing(page, monkeypatch):
    def break_it():
        raise RuntimeError("the planner broke")

    monkeypatch.setattr(page.bench, "step", break_it)
    assert refusal(page, do="step") == "RuntimeError: the planner broke"
    monkeypatch.undo()
    status, answer = post(page, do="step")
    assert (status, json.loads(answer)["node"]["step"]) == (200, 1)


def test_changes_that_wait_are_bounded(page, monkeypatch):
    gate, answers = threading.Event(), []
    monkeypatch.setitem(COMMANDS, "wait", lambda bench, m: gate.wait(10))
    threads = [
        threading.Thread(target=lambda: answers.append(post(page, do="wait")[0]))
        for _ in range(server.MAX_WAITING)
    ]
    for thread in threads:
        thread.start()
    until(lambda: page.waiting._value == 0)
    assert refusal(page, do="step") == "too many changes are waiting"
    assert b"<canvas" in get(page)  # the page is served meanwhile
    gate.set()
    for thread in threads:
        thread.join(10)
    assert answers == [200] * server.MAX_WAITING
    assert post(page, do="step")[0] == 200


def test_200_readers_get_an_answer_each(page):
    head = f"GET /{page.token}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    answers, start_time = [], time.monotonic()
    clients = [socket.create_connection(page.server_address, 10) for _ in range(200)]
    for client in clients:
        client.sendall(head)
    for client in clients:
        with closing(client.makefile("rb")) as reply:
            answers.append(reply.readline())
    assert post(page, do="step")[0] == 200  # no reader holds up the agent
    assert time.monotonic() - start_time < 10
    for client in clients:
        client.close()
    page.say("vanished readers are noticed")
    page.say("at the next versions")
    until(lambda: page.streams.acquire(blocking=False))  # there is room again
    assert sum(b" 200 " in answer for answer in answers) == server.MAX_STREAMS
    assert all(b" 200 " in answer or b" 503 " in answer for answer in answers)


def test_more_connections_than_there_are_threads_are_answered_too(bench, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    with WorkbenchServer(bench, {}, 0) as page:
        silent = [socket.create_connection(page.server_address, 10) for _ in range(3)]
        until(lambda: page.slots._value == 0)
        with socket.create_connection(page.server_address, timeout=10) as one_more:
            assert b" 503 " in one_more.recv(4096)
        for client in silent:
            client.close()


def test_a_reader_who_stops_reading_stalls_nothing(page, monkeypatch):
    monkeypatch.setattr(server, "TIMEOUT", 0.3)
    head = f"GET /{page.token}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with socket.create_connection(page.server_address, timeout=10) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(head)
        until(lambda: page.streams._value < server.MAX_STREAMS)
        took = []
        start_time = time.monotonic()
        while page.streams._value < server.MAX_STREAMS:
            before = time.monotonic()
            page.say("x" * 1_000_000)
            took.append(time.monotonic() - before)
            assert time.monotonic() - start_time < 20
    assert max(took) < 2
    page.say("")
    assert b"<canvas" in get(page)


def test_a_reader_who_disconnects_within_a_request_disturbs_no_other(page, capsys):
    with socket.create_connection(page.server_address) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        rude.sendall(b"GET / HT")
    assert b"<canvas" in get(page)
    assert capsys.readouterr().err == ""


# many look, one acts


def views(answer):
    """The versions of a stream."""
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_every_reader_sees_what_one_does(page):
    with (
        urllib.request.urlopen(page.address + "events", timeout=10) as one,
        urllib.request.urlopen(page.address + "events", timeout=10) as two,
    ):
        streams = views(one), views(two)
        assert [next(stream)["node"]["step"] for stream in streams] == [0, 0]
        status, answer = post(page, do="step")
        assert (status, json.loads(answer)["node"]["step"]) == (200, 1)
        for stream in streams:
            view = next(stream)
            assert (view["node"]["step"], view["actor"]) == (1, "a")


def test_every_change_reaches_a_reader_once(page):
    found = []

    def read():
        with urllib.request.urlopen(page.address + "events", timeout=10) as answer:
            for view in islice(views(answer), 11):
                found.append(view["node"]["step"])

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(11):
        until(lambda step=step: len(found) > step)
        if step < 10:
            assert post(page, do="step")[0] == 200
    reader.join(10)
    assert found == list(range(11))


def test_one_page_acts_until_another_takes_over(page):
    assert post(page, do="step", client="a")[0] == 200
    assert "another page acts" in refusal(page, do="step", client="b")
    assert page.bench.node.moment.step == 1
    assert post(page, do="take", client="b")[0] == 200
    assert post(page, do="step", client="b")[0] == 200
    assert "another page acts" in refusal(page, do="step", client="a")
    page.acted_at -= server.LEASE_SECONDS + 1  # a page that is left alone gives way
    assert post(page, do="step", client="a")[0] == 200


def test_the_agents_own_episode_is_shown_until_a_page_acts(page):
    def follow(status):
        side_plan = page.bench.nodes[page.bench.tip].side_plans[0]
        page.follow(side_plan.state, side_plan.plan.action, status)

    follow("step 1")
    assert page.bench.node.moment.step == 1
    post(page, do="back")
    follow("step 2")
    assert page.bench.node.moment.step == 0
    page.begin(7)
    assert page.bench.node.moment.seed == 0
    assert page.bench.nodes[page.bench.tip].moment.seed == 7


def test_an_episode_that_cannot_be_followed_goes_on_without_the_page(page, monkeypatch):
    side_plan = page.bench.node.side_plans[0]
    for step in (1, 2):
        page.follow(side_plan.state + 1, side_plan.plan.action, f"step {step}")
        status = json.loads(page.view)["status"]
        assert status.startswith(f"step {step} This page does not follow the agent's own episode: ")
        assert "does not repeat its episodes" in status
        side_plan = side_plan._replace(state=side_plan.state - 1)  # it stays lost
    page.begin(7)
    assert json.loads(page.view)["status"] == ""
    monkeypatch.setattr(core, "MAX_NODES", 1)
    page.begin(8)
    assert "keeps 1 moments" in json.loads(page.view)["status"]


# files


def jpeg(size=(16, 12)) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(file, "JPEG")
    return export.PREFIX + base64.b64encode(file.getvalue()).decode()


def test_a_film_is_made_of_pictures_of_one_size(page, monkeypatch, tmp_path):
    made = tmp_path / "ffmpeg"
    made.write_text('#!/bin/sh\nfor last; do :; done\ncat | wc -c > "${last#file:}"\n')
    made.chmod(0o755)
    monkeypatch.setattr(export, "ffmpeg", lambda: str(made))
    status, film = post(page, "film", frames=[jpeg(), jpeg()])
    held = drawing.LAST_FRAME_MS // drawing.FRAME_MS
    assert (status, int(film)) == (200, (2 + held) * 16 * 12 * 3)
    for frames in (None, [], ["x"], [export.PREFIX + "AAAA"], [1], [export.PREFIX + "?"]):
        assert "film" in refusal(page, "film", frames=frames)
    assert "of one size" in refusal(page, "film", frames=[jpeg(), jpeg((8, 8))])
    monkeypatch.setattr(export, "MAX_PIXELS", 100)
    assert "at most 100 pixels" in refusal(page, "film", frames=[jpeg()])


def test_a_film_without_ffmpeg_is_refused_in_words(page, monkeypatch):
    def missing() -> str:
        raise ConfigError("a film needs ffmpeg")

    monkeypatch.setattr(export, "ffmpeg", missing)
    assert refusal(page, "film", frames=[jpeg()]) == "a film needs ffmpeg"


def test_an_export_of_no_moment_is_refused(page):
    for node in (99, "../0", [], None):
        assert refusal(page, "page", node=node) == "there is no such moment"


def test_a_port_in_use_is_refused_in_one_line(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} can't be opened"):
            WorkbenchServer(bench, {}, port)


def test_a_branch_of_a_world_without_pictures_is_exported(side):
    env, first = side
    with closing(Workbench([first], replace(env), None, "", "react")) as bench:
        bench.begin(3)
        (frame,) = describe_branch(bench, bench.node)
    assert frame["picture"] is None
    assert frame["side_plans"][0]["settings"]["mode"] == "react"
