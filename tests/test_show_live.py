"""An agent that is watched while it acts: in a terminal, where there is none, and on a page."""

from __future__ import annotations

import io
import json
import math
import re
import socket
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
from ami_agent.viewer.live import Line, PageOptions, block_image, fractions, show_live, terminal
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


def test_the_workbench_follows_the_episodes(agent, env):
    """At every step that the terminal shows, the page shows the same state."""
    console = make_console(False)
    found = []

    def look():
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", console.file.getvalue())[0]
        with urllib.request.urlopen(address + "events", timeout=10) as answer:
            found.append(json.loads(answer.readline().removeprefix(b"data: ")))

    episodes = show_live(agent, env, console, EpisodeSelection(episodes=2, seed=5), wait=look)
    (view,) = found
    assert [branch["label"] for branch in view["branches"]] == ["seed 5", "seed 6"]
    assert [len(branch["ids"]) for branch in view["branches"]] == [LASTS + 1] * 2
    assert (view["node"]["seed"], view["node"]["step"], view["node"]["done"]) == (6, LASTS, True)
    assert view["status"] == episodes[-1].summary
    last = episodes[-1].recorded_steps[-1]
    assert f"step {last.step} " in console.file.getvalue()


def test_a_second_agent_plans_in_the_same_states(agent, env, tiny):
    with closing(env.build(1)) as one:
        second = build(tiny, one.spec, seed=1, device="cpu", num_envs=1, buffer_size=8)
    console, found = make_console(False), []

    def look():
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", console.file.getvalue())[0]
        with urllib.request.urlopen(address + "events", timeout=10) as answer:
            found.append(json.loads(answer.readline().removeprefix(b"data: ")))

    options = PageOptions(config=tiny, beside=("other", second, tiny))
    selection = EpisodeSelection(episodes=1, seed=5, max_steps=1)
    show_live(agent, env, console, selection, page=options, wait=look)
    (view,) = found
    assert [side["name"] for side in view["sides"]] == ["agent", "other"]
    one, two = view["node"]["side_plans"]
    assert len(one["planned"]) == len(two["planned"]) > 2
    assert one["planned"] != two["planned"]


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
    assert "--beside" in error_line(capsys, "show", run, "--beside", run)
    assert "nowhere" in error_line(capsys, *flags, "--beside", tmp_path / "nowhere")
    assert main([str(arg) for arg in (*flags, "--beside", run)]) == 0
    capsys.readouterr()
    assert "one mode, plan, react or auto" in error_line(capsys, *flags, "--mode", "both")
    assert "--port is 99999; it must be a whole number from 0 to 65535" in error_line(
        capsys, *flags, "--port", 99999
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} can't be opened" in error_line(capsys, *flags, "--port", port)
