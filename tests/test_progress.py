"""An evaluation tells how far it is, and the time left follows the episodes, not their limit."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import logger as logging
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build
from ami_agent.evaluation import evaluate
from ami_agent.evaluation.progress import EpisodeProgress, PolicyProgress
from ami_agent.logger import ConsoleLogger, Logger, Progress
from ami_agent.storage import run_dir
from ami_agent.viewer.record import EpisodeSelection, record_episodes

ENDS_AT, LIMIT = 6, 1000
ENV = EnvConfig(id="progress-test/Brief-v0", max_episode_steps=LIMIT)


class Brief(gymnasium.Env):
    """Its episodes end long before their limit."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == ENDS_AT, False, {}


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    gymnasium.register(ENV.id, entry_point=Brief)
    yield
    gymnasium.registry.pop(ENV.id)


@pytest.fixture(scope="module")
def agent(_known: None) -> ami.Agent:
    torch.set_num_threads(1)
    return build(ami.recipes.gym(ENV), ENV.build(1).spec)


class Lines(Logger):
    """Every line of progress, without the rate; whether a bar is open."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_open = False

    def info(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def progress(self, stage: str, total: int | None, start: int = 0) -> Iterator[Progress]:
        def show(done: int, total: int | None, status: str) -> None:
            rest = [part for part in status.split("  ")[1:] if "left" not in part]
            limit = " at most" if bar.is_limit else ""
            self.lines.append(f"{stage} {done}/{total}{limit} {' '.join(rest)}")

        bar, self.is_open = Progress(total, start, 0.0, show), True
        yield bar
        self.is_open = False


class Batch:
    """Environments side by side, whose episodes end after so many steps."""

    def __init__(self, progress: EpisodeProgress, *ends: int, limit: int = 0) -> None:
        self.progress, self.ends, self.length = progress, torch.tensor(ends), torch.zeros(len(ends))
        progress.begin(SimpleNamespace(max_episode_steps=lambda: (limit, "")))  # type: ignore[arg-type]

    def step(self) -> tuple[int, int | None, bool]:
        """Steps done, steps in all, and whether these are a limit."""
        self.length += self.length < self.ends
        self.progress.advance(self.length, self.length < self.ends)
        bar = self.progress.bar
        return bar.done, bar.total, bar.is_limit


def bar_of(episodes: int, expected: float = 0.0) -> EpisodeProgress:
    return EpisodeProgress(Progress(None, 0, 0.0, lambda *shown: None), episodes, expected)


def test_until_an_episode_has_ended_its_limit_is_the_most_that_it_can_take():
    batch = Batch(bar_of(5), 2, 3, limit=100)
    assert batch.step() == (2, 5 * 100, True)
    assert batch.step() == (4, 5 * 100, True)  # one ended after two steps, the other goes on
    assert batch.step() == (6, 6 + 3 * 3, False)  # the three to come: as long as the longest


def test_later_episodes_are_expected_to_last_as_long_as_earlier_ones():
    progress = bar_of(5)
    first = Batch(progress, 3, 3, limit=100)
    for _ in range(3):
        first.step()
    second = Batch(progress, 3, 3, limit=100)
    assert second.step() == (8, 15, False)
    second.step()
    assert second.step() == (12, 15, False)
    (last,) = (Batch(progress, 3, limit=100),)
    assert [last.step() for _ in range(3)][-1] == (15, 15, False)


def test_a_length_that_was_recorded_is_expected_until_an_episode_lasts_longer():
    batch = Batch(bar_of(1, 1.5), 4, limit=100)
    assert [batch.step() for _ in range(4)] == [
        (1, 2, False), (2, 100, True), (3, 100, True), (4, 4, False)
    ]  # fmt: skip
    assert Batch(bar_of(1, 500), 4, limit=100).step() == (1, 100, False)


def test_without_a_limit_no_total_is_shown_until_the_last_episode_has_ended():
    batch = Batch(bar_of(2), 2, 4)
    assert [batch.step()[1] for _ in range(4)] == [None, None, None, 8]


def test_a_total_that_is_unknown_or_a_limit_is_shown_as_that(monkeypatch):
    monkeypatch.setattr(logging, "LINE_EVERY", 0.0)
    console = Console(file=io.StringIO(), width=80)
    with ConsoleLogger(console).progress("act", None) as bar:
        bar.advance(20)
        bar.total, bar.is_limit = 400, True
        bar.advance(20)
    unknown, limited = console.file.getvalue().splitlines()
    assert unknown.startswith("act  20  ")
    assert "left" not in unknown
    assert limited.startswith("act  40/400  ")
    assert "  at most " in limited


def test_a_bar_on_a_terminal_draws_between_steps_and_in_no_other_thread():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    threads = threading.active_count()
    with ConsoleLogger(console).progress("act", 3) as bar:
        assert threading.active_count() == threads
        bar.advance(3)
        assert "3/3" in console.file.getvalue()


def test_an_evaluation_tells_the_progress_of_every_policy(agent, monkeypatch):
    lines, latency = Lines(), evaluate.latency

    def alone(*args):
        assert not lines.is_open  # a bar takes time that single actions are measured in
        return latency(*args)

    monkeypatch.setattr(evaluate, "latency", alone)
    results = evaluate.evaluate_modes(agent, ENV, episodes=3, progress=PolicyProgress(lines))
    assert results["plan"]["length"]["mean"] == ENDS_AT
    assert lines.lines[0] == f"evaluate, plan 3/{3 * LIMIT} at most episodes done 0"
    assert lines.lines[5:7] == [
        "evaluate, plan 18/18 episodes done 3", "evaluate, plan: the time of single actions",
    ]  # fmt: skip
    # the next policy's episodes are expected to last as long
    assert "evaluate, react 3/18 episodes done 0" in lines.lines
    assert lines.lines[-1] == "evaluate, random 18/18 episodes done 3"
    assert not any("at most" in line for line in lines.lines[6:])


def test_a_policy_whose_episodes_were_recorded_expects_them_to_last_as_long(agent):
    lines = Lines()
    found = record_episodes(
        agent, ENV, None, 
        EpisodeSelection(episodes=5, mode="both", recorded_steps={"plan": 9.5}), lines,
    )  # fmt: skip
    list(found)
    plan = [line for line in lines.lines if line.startswith("act, plan")]
    assert plan[0] == "act, plan 4/40 episodes done 0"
    assert plan[5] == "act, plan 24/24 episodes done 4"
    assert plan[6] == "act, plan 1/10 episodes done 0"
    assert not any("at most" in line for line in plan)


def test_a_policy_after_another_expects_what_the_other_took():
    progress = PolicyProgress(Lines(), {"plan": 7.0})
    for name, expected in (("plan", 7), ("random", 7), ("plan", 7)):
        with progress.policy(name, 1) as bar:
            assert bar.longest == expected


def test_the_length_of_episodes_is_read_from_the_run(tiny, tmp_path):
    config, folder, env = tiny, tmp_path, tiny.eval_env

    def write(name: str, content: object) -> None:
        (folder / name).write_text(json.dumps(content) + "\n")

    assert run_dir.recorded_steps(folder, config, env) == {}
    same = replace(config, env=env)
    write("metrics.jsonl", {"stage": "distill_policy", "step": 1, "episode_length": 12.0})
    assert run_dir.recorded_steps(folder, same, env) == dict.fromkeys(run_dir.MODES, 12.0)
    assert run_dir.recorded_steps(folder, config, replace(env, id="ami/Maze-v0")) == {}
    write("metrics.jsonl", {"stage": "collect", "step": 1, "episode_length": 12.0})
    assert run_dir.recorded_steps(folder, same, env) == {}  # it has a limit of its own
    evaluated = {"env": env.id, "variant": env.variant, "task": "reach", "length": {"mean": 40.0}}
    write("eval.json", {"plan": evaluated, "react": {**evaluated, "task": "other"}})
    assert run_dir.recorded_steps(folder, config, env) == {"plan": 40.0}
    assert run_dir.recorded_steps(folder, config, env, "other") == {"react": 40.0}


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"plan": 3}', '{"plan": {"length": 4}}', '{"plan": {"length": {"mean": -1}}}'],
)
def test_a_damaged_evaluation_tells_no_length(tiny, tmp_path, content):
    env = tiny.eval_env
    keys = json.dumps({"env": env.id, "variant": env.variant, "task": "reach"})[1:-1]
    (tmp_path / "eval.json").write_text(content.replace('"length"', f'{keys}, "length"'))
    assert run_dir.recorded_steps(tmp_path, tiny, env) == {}
