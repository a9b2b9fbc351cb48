"""An agent that is watched while it acts: in a terminal, where there is none, and on a page."""

from __future__ import annotations

import io
import json
import math
import socket
import struct
import threading
import urllib.request
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.cli.main import main
from ami_agent.config import build
from ami_agent.viewer import live
from ami_agent.viewer.live import Line, LivePage, block_image, fractions, show_live, terminal
from ami_agent.viewer.record import EpisodeSelection
from tests.conftest import error_line

LASTS = 4


@pytest.fixture
def env():
    return EnvConfig(id="ami/TwoRooms-v0", options={"max_episode_steps": LASTS})


@pytest.fixture
def agent(tiny, env):
    with closing(env.build(1)) as one:
        return build(tiny, one.spec, seed=0, device="cpu", num_envs=1, buffer_size=8)


def make_console(terminal):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=60, height=24,
        color_system="truecolor" if terminal else None, _environ={"TERM": "xterm-256color"},
    )  # fmt: skip


def test_without_a_terminal_every_step_is_a_line(agent, env):
    console = make_console(False)
    episodes = show_live(agent, env, console, EpisodeSelection(episodes=2, seed=5))
    assert [episode.seed for episode in episodes] == [5, 6]
    message = console.file.getvalue().splitlines()
    output = [line for line in message if "; goal_distance" in line]
    assert len(output) == 2 * LASTS
    assert [line.split(" · ")[0] for line in output] == [
        f"seed {seed}, step {step}" for seed in (5, 6) for step in range(LASTS)
    ]
    assert all("energy" in line and "while planning" in line for line in output)
    assert [episode.summary for episode in episodes] == [
        line for line in message if "did not arrive" in line
    ]


def test_watching_an_episode_does_not_change_it(agent, env):
    (watched,) = show_live(agent, env, make_console(False), EpisodeSelection(episodes=1, seed=5))
    (again,) = show_live(agent, env, make_console(True), EpisodeSelection(episodes=1, seed=5))
    assert len(watched.states) == LASTS
    assert len(watched.recorded_steps) == 1  # the live view has shown the others
    assert torch.equal(watched.states, again.states)


def test_a_terminal_shows_the_picture_and_the_energy_of_the_plan(agent, env):
    console = make_console(True)
    show_live(agent, env, console, EpisodeSelection(episodes=1, seed=5))
    message = console.file.getvalue()
    assert message.count("▀") > LASTS * 200
    assert "█" in message
    assert "\x1b[38;2;" in message  # in true colours


def test_two_pixels_are_one_character():
    picture = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    block, _ = block_image(picture, width=60, height=1).segments
    assert block.text == "▀"
    assert block.style.color.triplet == (255, 0, 0)
    assert block.style.bgcolor.triplet == (0, 0, 255)


def test_a_page_streams_every_step_to_every_reader():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    got = {}

    def read(what):
        with urllib.request.urlopen(address + what, timeout=10) as reply:
            started = reply.read(20)  # more than comes before the first frame
            came[what].set()
            got[what] = reply.headers["Content-Type"], started + reply.read()

    with LivePage(0) as page:
        address, came = page.address, {w: threading.Event() for w in ("", "picture", "text")}
        assert address.startswith("http://127.0.0.1:")
        page.show(red, [Line("the <first>", [0.5], "#123456")])
        readers = [threading.Thread(target=read, args=(what,)) for what in came]
        for reader in readers:
            reader.start()
        assert all(event.wait(10) for event in came.values())
        observed = page.frame_id
        while page.frame_id < observed + 3:
            page.show(blue, [Line("the last")])
    for reader in readers:
        reader.join(10)
    assert b'<img src="picture"' in got[""][1]
    kind, stream = got["picture"]
    assert kind == "multipart/x-mixed-replace; boundary=frame"
    nothing, *parts, rest = stream.split(b"--frame\r\n")
    assert nothing == rest == b""  # a part ends where the next begins, so that it is shown at once
    pictures = [part.split(b"\r\n\r\n", 1)[1] for part in parts]
    colours = [np.asarray(Image.open(io.BytesIO(p)).convert("RGB"))[0, 0] for p in pictures]
    assert colours[0][0] > 200 > colours[0][2]
    assert colours[-1][2] > 200 > colours[-1][0]
    first, *_, last, rest = got["text"][1].split(b"\f")
    assert b"the &lt;first&gt;" in first
    assert b"color:#123456" in first
    assert b"the last" in last
    assert rest == b""


def test_the_current_frame_is_sent_again_while_nothing_is_new(monkeypatch):
    monkeypatch.setattr(live, "RESEND_SECONDS", 0.05)
    with LivePage(0) as page:
        page.show(Image.new("RGB", (8, 8)), [Line("now")])
        with urllib.request.urlopen(page.address + "text", timeout=10) as reply:
            sent = b""
            while sent.count(b"\f") < 3:
                sent += reply.read1()
    first, *more, _ = sent.split(b"\f")
    assert first.startswith(b"now")
    assert set(more) == {first}


def test_a_reader_who_disconnects_within_a_request_disturbs_no_other(capsys):
    with LivePage(0) as page:
        position = page.server_address
        with socket.create_connection(position) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.sendall(b"GET / HT")
        page.show(Image.new("RGB", (8, 8)), [])
        with urllib.request.urlopen(page.address, timeout=10) as reply:
            assert b"<img" in reply.read()
    assert capsys.readouterr().err == ""


def test_an_episode_ends_with_its_outcome(agent, env):
    console = make_console(False)
    (episode,) = show_live(agent, env, console, EpisodeSelection(episodes=1, seed=5))
    assert console.file.getvalue().splitlines()[-1] == episode.summary


def test_the_page_is_served_until_the_user_interrupts(agent, env):
    requested = []

    def wait():
        requested.append(1)
        raise KeyboardInterrupt

    selection = EpisodeSelection(episodes=1, seed=5)
    assert len(show_live(agent, env, make_console(False), selection, wait=wait)) == 1
    assert requested == [1]


def test_numbers_that_are_not_finite_are_drawn_as_gaps():
    assert fractions([math.nan, -1.0, 0.5, math.inf]) == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=["dumb", "grey"]
)
def test_a_terminal_that_cannot_draw_gets_lines(environment):
    console = Console(file=io.StringIO(), force_terminal=True, _environ=environment)
    with terminal(console) as show_in_terminal:
        show_in_terminal(Image.new("RGB", (8, 8)), [Line("the plan")])
    assert console.file.getvalue() == "the plan\n"


def test_other_addresses_are_not_found():
    with LivePage(0) as page, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(page.address + "etc/passwd", timeout=10)


def test_the_live_view_by_command_and_what_it_refuses(tiny, env, tmp_path, capsys):
    run = tmp_path / "run"
    ami.train(replace(tiny, eval_env=env), out=run)
    flags = ("show", run, "--live", "--episodes", 1)
    assert main([str(arg) for arg in (*flags, "--json", tmp_path / "results.json")]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["summaries"]) == 1
    assert not (run / "show").exists()
    capsys.readouterr()
    assert "--mp4 and --out" in error_line(capsys, *flags, "--mp4")
    assert "--mp4 and --out" in error_line(capsys, *flags, "--out", tmp_path / "here")
    assert "--port" in error_line(capsys, "show", run, "--port", 8000)
    assert "one mode, plan, react or auto" in error_line(capsys, *flags, "--mode", "both")
    assert "--port is 99999; it must be a whole number from 0 to 65535" in error_line(
        capsys, *flags, "--port", 99999
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} can't be opened" in error_line(capsys, *flags, "--port", port)
