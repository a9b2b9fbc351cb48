"""An agent watched while it lives: in a terminal, where there is none, and on a page."""

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
from ami_agent.build import build
from ami_agent.cli import main
from ami_agent.life import WorldConfig
from ami_agent.show import screens
from ami_agent.show.live import live, shares
from ami_agent.show.screens import Blocks, Line, Page, terminal
from tests.conftest import refuse

LASTS = 4


@pytest.fixture
def world():
    return WorldConfig(id="ami/TwoRooms-v0", options={"max_episode_steps": LASTS})


@pytest.fixture
def agent(tiny, world):
    with closing(world.build(1)) as one:
        return build(tiny, one.spec, seed=0, device="cpu", worlds=1, capacity=8)


def paper(terminal):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=60, height=24,
        color_system="truecolor" if terminal else None, _environ={"TERM": "xterm-256color"},
    )  # fmt: skip


def test_where_there_is_no_terminal_every_moment_is_a_line(agent, world):
    console = paper(False)
    lives = live(agent, world, console, episodes=2, seed=5)
    assert [life.seed for life in lives] == [5, 6]
    said = console.file.getvalue().splitlines()
    told = [line for line in said if "; reach" in line]
    assert len(told) == 2 * LASTS
    assert [line.split(" · ")[0] for line in told] == [
        f"seed {seed}, step {step}" for seed in (5, 6) for step in range(LASTS)
    ]
    assert all("energy" in line and "while thinking" in line for line in told)
    assert [life.verdict for life in lives] == [line for line in said if "did not arrive" in line]


def test_what_is_watched_is_what_is_lived_alone(agent, world):
    (watched,) = live(agent, world, paper(False), episodes=1, seed=5)
    (again,) = live(agent, world, paper(True), episodes=1, seed=5)
    assert len(watched.states) == LASTS
    assert len(watched.instants) == 1  # who watched has seen the others
    assert torch.equal(watched.states, again.states)


def test_a_terminal_shows_the_picture_and_what_the_chosen_future_costs(agent, world):
    console = paper(True)
    live(agent, world, console, episodes=1, seed=5)
    said = console.file.getvalue()
    assert said.count("▀") > LASTS * 200
    assert "█" in said
    assert "\x1b[38;2;" in said  # in true colours


def test_two_pixels_are_one_character():
    picture = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    console = Console(width=60, height=1)
    block, _ = Blocks(picture, 0).__rich_console__(console, console.options)
    assert block.text == "▀"
    assert block.style.color.triplet == (255, 0, 0)
    assert block.style.bgcolor.triplet == (0, 0, 255)


def test_a_page_streams_every_moment_to_whoever_looks():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    got = {}

    def read(what):
        with urllib.request.urlopen(address + what, timeout=10) as reply:
            begun = reply.read(20)  # more than comes before the first moment
            came[what].set()
            got[what] = reply.headers["Content-Type"], begun + reply.read()

    with Page(0) as page:
        address, came = page.address, {w: threading.Event() for w in ("", "picture", "told")}
        assert address.startswith("http://127.0.0.1:")
        page.show(red, [Line("the <first>", [0.5], "#123456")])
        readers = [threading.Thread(target=read, args=(what,)) for what in came]
        for reader in readers:
            reader.start()
        assert all(event.wait(10) for event in came.values())
        seen = page.moment
        while page.moment < seen + 3:
            page.show(blue, [Line("the last")])
    for reader in readers:
        reader.join(10)
    assert b'<img src="picture"' in got[""][1]
    kind, stream = got["picture"]
    assert kind == "multipart/x-mixed-replace; boundary=moment"
    nothing, *parts, rest = stream.split(b"--moment\r\n")
    assert nothing == rest == b""  # a part ends where the next begins, so that it is shown at once
    pictures = [part.split(b"\r\n\r\n", 1)[1] for part in parts]
    colours = [np.asarray(Image.open(io.BytesIO(p)).convert("RGB"))[0, 0] for p in pictures]
    assert colours[0][0] > 200 > colours[0][2]
    assert colours[-1][2] > 200 > colours[-1][0]
    first, *_, last, rest = got["told"][1].split(b"\f")
    assert b"the &lt;first&gt;" in first
    assert b"color:#123456" in first
    assert b"the last" in last
    assert rest == b""


def test_the_present_is_sent_again_while_nothing_is_new(monkeypatch):
    monkeypatch.setattr(screens, "AGAIN", 0.05)
    with Page(0) as page:
        page.show(Image.new("RGB", (8, 8)), [Line("now")])
        with urllib.request.urlopen(page.address + "told", timeout=10) as reply:
            sent = b""
            while sent.count(b"\f") < 3:
                sent += reply.read1()
    first, *more, _ = sent.split(b"\f")
    assert first.startswith(b"now")
    assert set(more) == {first}


def test_who_goes_in_the_middle_of_a_word_disturbs_nobody(capsys):
    with Page(0) as page:
        place = page.server.server_address
        with socket.create_connection(place) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            rude.sendall(b"GET / HT")
        page.show(Image.new("RGB", (8, 8)), [])
        with urllib.request.urlopen(page.address, timeout=10) as reply:
            assert b"<img" in reply.read()
    assert capsys.readouterr().err == ""


def test_an_episode_ends_with_how_it_went(agent, world):
    console = paper(False)
    (life,) = live(agent, world, console, episodes=1, seed=5)
    assert console.file.getvalue().splitlines()[-1] == life.verdict


def test_the_page_is_there_until_nobody_lingers_and_who_interrupts_has_seen_enough(agent, world):
    asked = []

    def linger():
        asked.append(1)
        raise KeyboardInterrupt

    assert len(live(agent, world, paper(False), episodes=1, seed=5, linger=linger)) == 1
    assert asked == [1]


def test_what_is_no_number_is_drawn_as_nothing():
    assert shares([math.nan, -1.0, 0.5, math.inf]) == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=["dumb", "grey"]
)
def test_a_terminal_that_cannot_draw_gets_lines(environment):
    console = Console(file=io.StringIO(), force_terminal=True, _environ=environment)
    with terminal(console) as screen:
        screen.show(Image.new("RGB", (8, 8)), [Line("what it thinks")])
    assert console.file.getvalue() == "what it thinks\n"


def test_other_addresses_are_not_there():
    with Page(0) as page, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(page.address + "etc/passwd", timeout=10)


def test_by_the_command_and_what_it_refuses(tiny, world, tmp_path, capsys):
    run = tmp_path / "run"
    ami.train(replace(tiny, evaluation=world), out=run)
    flags = ("show", run, "--live", "--episodes", 1)
    assert main([str(arg) for arg in (*flags, "--json", tmp_path / "told.json")]) == 0
    assert len(json.loads((tmp_path / "told.json").read_text())["lives"]) == 1
    assert not (run / "show").exists()
    capsys.readouterr()
    assert "--mp4 and --out" in refuse(capsys, *flags, "--mp4")
    assert "--mp4 and --out" in refuse(capsys, *flags, "--out", tmp_path / "here")
    assert "--port" in refuse(capsys, "show", run, "--port", 8000)
    assert "one mode, plan, react or auto" in refuse(capsys, *flags, "--mode", "both")
    assert "--port is 99999; it must be a whole number from 0 to 65535" in refuse(
        capsys, *flags, "--port", 99999
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} can't be had" in refuse(capsys, *flags, "--port", port)
