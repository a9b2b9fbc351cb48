"""A run that is killed and resumed has one history: the weights and the log of one that never was
killed, and a TensorBoard log with the same content."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import logger
from ami_agent.config import build
from ami_agent.logger import RunLogger
from ami_agent.storage import checkpoint
from ami_agent.storage.replay_files import Chunks, buffer_head
from ami_agent.train import Trainer
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError, Transition
from tests.kills import KINDS, board, check_same, kill, line, rows

QUIET = Console(quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_a_random_moment_changes_nothing(kind, tmp_path):
    kill(kind, 1, tmp_path, random.Random(kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_kills_change_nothing(kind, tmp_path):
    assert kill(kind, 17, tmp_path, random.Random(kind)) >= 10


class Stopped(Exception):
    """Ends a run at a certain moment."""


@pytest.mark.parametrize(("method", "when"), [("_log", 5), ("_save", 4), ("_save_buffer", 9)])
def test_ended_between_any_two_writes_it_has_one_history(method, when, tmp_path, monkeypatch):
    config = line(40, 110, 2)
    ami.train(config, out=tmp_path / "whole")
    calls, do = [], getattr(Trainer, method)

    def stopped(self, *given):
        calls.append(1)
        if len(calls) == when:
            raise Stopped
        do(self, *given)

    monkeypatch.setattr(Trainer, method, stopped)
    with pytest.raises(Stopped):
        ami.train(config, out=tmp_path / "cut", save_every=0.02)
    monkeypatch.undo()
    manifest = tmp_path / "cut" / "manifest.json"
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text()), "seconds": {"collect": 1e9}})
    )
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "torn')
    ami.train(config, out=tmp_path / "cut", resume=True)
    check_same("collect", tmp_path / "whole", tmp_path / "cut")
    assert json.loads(manifest.read_text())["seconds"]["collect"] < 1e6


def test_a_log_is_cut_back_to_its_checkpoint(tmp_path):
    first = RunLogger(tmp_path, QUIET)
    for step in (1, 2):
        first.log_scalars("stage", step, {"loss": step})
    position = dict(first.position())
    first.log_scalars("stage", 3, {"loss": 3})
    first.close()
    later = RunLogger(tmp_path, QUIET)  # a process that was killed before the next checkpoint
    later.log_scalars("stage", 4, {"loss": 4})
    later.close()
    second = RunLogger(tmp_path, QUIET)
    second.rewind(position)
    second.log_scalars("stage", 3, {"loss": 30})
    second.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert board(tmp_path) == {"stage/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}
    assert sum(path.match(logger.EVENTS) for path in tmp_path.iterdir()) == 2


def test_a_log_without_lines_is_refused_unread(tmp_path):
    """Its terabyte consists of holes; the memory for it is not there."""
    path = tmp_path / logger.METRICS
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=f"{logger.METRICS} ends in a line of over"):
        RunLogger(tmp_path, QUIET)
    assert path.stat().st_size == 2**40


def test_the_last_lines_of_a_long_log_are_read(tmp_path):
    path, line = tmp_path / logger.METRICS, b"x" * 1000 + b"\n"
    path.write_bytes(3000 * line + b"half")
    RunLogger(tmp_path, QUIET).close()
    assert path.read_bytes() == 3000 * line


def test_a_log_that_was_truncated_otherwise_is_cut_to_whole_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "a", "step": 1}\n{"stage": "a", "step": 2}\n'
    )
    out = RunLogger(tmp_path, QUIET)
    out.rewind({"metrics.jsonl": 30})
    assert len(rows(tmp_path)) == 1
    out.rewind({"metrics.jsonl": 10**9})
    assert len(rows(tmp_path)) == 1
    out.close()


def buffer(capacity: int = 10, stack: int = 1) -> ReplayBuffer:
    obs, action = torch.zeros(2, stack), torch.zeros(2, 2)
    done = torch.zeros(2, dtype=torch.bool)
    step = Transition(obs, action[:, :1], action, obs, done, done)
    return ReplayBuffer(capacity, step, "cpu", stack)


def fill(memory: ReplayBuffer, steps: int, stack: int = 1) -> None:
    """An observation is the numbers of the last frames; episodes of one environment end."""
    for _ in range(steps):
        at = float(memory._steps)
        obs, then = (
            torch.arange(at + later - stack + 1, at + later + 1).clamp_min(0).expand(2, -1)
            for later in (0, 1)
        )
        done = torch.tensor([stack == 1 and at % 4 == 3, False])
        interoception = torch.full((2, 2), at)
        memory.add(Transition(obs, obs[:, :1], interoception, then, done, torch.zeros_like(done)))


@pytest.mark.parametrize("stack", [1, 3])
def test_a_buffer_is_saved_in_chunks_of_new_steps_and_only_needed_chunks_are_kept(stack, tmp_path):
    memory, chunks = buffer(10, stack), Chunks(tmp_path)
    for steps in (3, 0, 4, 1, 9, 25):
        fill(memory, steps, stack)
        before = {path.name for path in tmp_path.iterdir()}
        chunks.save(memory)
        now = buffer_head(memory)
        chunks.prune([now])
        new = {path.name for path in tmp_path.iterdir()} - before
        assert len(new) == (steps > 0)
        kept = sum(len(checkpoint.load(tmp_path / name)[0]["obs"]) for name in os.listdir(tmp_path))
        assert kept <= 2 * (10 + stack)
        again = buffer(10, stack)
        again.load_state_dict(Chunks(tmp_path).load(now, 10 + stack))
        assert len(again) == len(memory)
        for number in memory.episode_ids():
            one, other = memory.get_episode(number), again.get_episode(number)
            assert all(p is q is None or torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_chunks_saved_after_the_checkpoint_do_not_count(tmp_path):
    memory, chunks = buffer(), Chunks(tmp_path)
    fill(memory, 4)
    chunks.save(memory)
    then = buffer_head(memory)
    fill(memory, 3)
    chunks.save(memory)
    resumed = Chunks(tmp_path)
    resumed.truncate(4)
    assert len(os.listdir(tmp_path)) == 1
    again = buffer()
    again.load_state_dict(resumed.load(then, 11))
    assert torch.equal(again.recent_actions(4), memory.recent_actions(7)[:4])
    with pytest.raises(ConfigError, match="up to step 4 of 7"):
        resumed.load(buffer_head(memory), 11)


def test_collected_steps_are_kept_although_the_env_can_not_be_restored(tmp_path):
    config = line(30)
    env = replace(config.env, id="ami-test/Restless-v0")
    config = replace(config, env=env, eval_env=env)
    stage = config.stages["collect"]

    def collector():
        env = config.env.build(1)
        agent = build(config, env.spec, num_envs=2, buffer_size=80)
        env.close()
        return stage.start(agent, config.env, 1)

    first, second = collector(), collector()
    for _ in range(9):
        first.update()
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    assert second.step == 9
    assert torch.equal(
        second.agent.replay_buffer.recent_actions(10)[:9],
        first.agent.replay_buffer.recent_actions(9),
    )
    second.update()


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("log", 3),
        ("log", {"metrics.jsonl": "x"}),
        ("seconds", []),
        ("last_evaluated", 1),
        ("rows", 10**15),
    ],
)
def test_a_checkpoint_that_says_odd_things_is_refused_in_one_line(fact, value, done, tmp_path):
    run = shutil.copytree(done, tmp_path / "run")
    newest = checkpoint.latest(run)
    tensors, facts = checkpoint.load(newest)
    if fact == "rows":
        (run / "replay").mkdir()
        tensors["buffer.rows"] = torch.tensor(value)
    checkpoint.save(newest, tensors, {**facts, fact: value})
    with pytest.raises(
        ConfigError, match=r"does not say at which|is not complete|a replay buffer of 1"
    ):
        ami.train(line(), out=run, resume=True, keep_replay_buffer=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A complete run."""
    run = tmp_path_factory.mktemp("ended") / "run"
    ami.train(line(), out=run)
    return run


def test_a_process_killed_while_it_removes_the_replay_buffer_of_a_complete_run(
    tmp_path, monkeypatch
):
    out = tmp_path / "run"
    config = line(collect=20, updates=2, interact=2)
    kept: list[Path] = []

    rmtree = shutil.rmtree

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        if Path(folder).name.startswith("replay") and Path(folder).exists():
            kept.append(Path(folder))
            raise KeyboardInterrupt
        rmtree(folder, ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            ami.train(config, out=out)
    assert kept
    assert not (out / "replay").exists()  # all or none
    ami.train(config, out=out, resume=True)
    assert not [path for path in out.iterdir() if path.name.startswith("replay")]


def test_a_complete_run_needs_no_replay_buffer(tmp_path):
    out = tmp_path / "run"
    config = line(collect=20, updates=2, interact=2)
    weights = ami.train(config, out=out).state_dict()
    (out / "replay" / "000000000000-000000000004").mkdir(parents=True)  # half removed
    again = ami.train(config, out=out, resume=True).state_dict()
    assert all(torch.equal(part, again[name]) for name, part in weights.items())


def test_a_log_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is a pipe.*must be a regular file"):
        RunLogger(tmp_path, QUIET)
