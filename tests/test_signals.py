"""SIGINT, SIGTERM and SIGHUP end a command in one line, with a checkpoint, and leave nothing
running."""

from __future__ import annotations

import io
import os
import signal
import time
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent import interrupt
from ami_agent.interrupt import Interrupted, deferred, handled
from ami_agent.storage import checkpoint
from tests.kills import child, config_of, line, rows

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(config, run: Path, *flags: str) -> int:
    """`ami train` of these settings, in a process and a group of its own, with what a shell
    gives."""

    def do() -> None:
        os.setpgid(0, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        cli.recipe = lambda name: config  # type: ignore[assignment]
        errors = io.StringIO()
        with redirect_stderr(errors):
            code = cli.main(["train", "two-rooms", "--out", str(run), "--episodes", "1", *flags])
        run.with_name("said").write_text(f"{code}\n{errors.getvalue()}")

    return child(do, run.with_name("log.txt"))


def until(there, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def logged(run: Path, stage: str):
    return lambda: (
        (run / "metrics.jsonl").exists() and any(row["stage"] == stage for row in rows(run))
    )


def ended(pid: int, run: Path) -> tuple[int, str]:
    """The exit code of the command and what it said on stderr."""
    os.waitpid(pid, 0)
    assert not (run.with_name("log.txt")).exists(), run.with_name("log.txt").read_text()
    code, message = run.with_name("said").read_text().split("\n", 1)
    return int(code), message


def left_in_group(group: int) -> list[int]:
    """Processes of that group; of workers, which have groups of their own, see below."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_as_if_uninterrupted(number, tmp_path):
    config, run = line(60, 2500), tmp_path / "run"
    pid = command(config, run)
    until(logged(run, "train_jepa"))
    os.kill(pid, number)
    code, message = ended(pid, run)
    assert code == 1
    said = f"ami: interrupted by {number.name}; {run} is saved in train_jepa at step "
    assert message.startswith(said)
    assert message.count("\n") == 1
    _, facts = checkpoint.load(checkpoint.latest(run))
    assert 60 < facts["updates"] < 2560
    assert facts["stage_index"] == 1
    tensors, _ = checkpoint.load(checkpoint.latest(run))
    step = int(tensors["stage_run.step"])
    assert step == facts["updates"] - 60
    assert message == f"{said}{step}/2500; continue with --resume\n"


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    config, run = config_of("actor_critic"), tmp_path / "run"
    pid = command(config, run)
    until(logged(run, "actor_critic"))
    os.kill(pid, signal.SIGTERM)
    assert ended(pid, run)[0] == 1
    resumed = ami.train(config, out=run, resume=True)
    whole = ami.train(config, out=tmp_path / "whole")
    for name, part in whole.state_dict().items():
        assert torch.equal(part, resumed.state_dict()[name]), name
    assert rows(run) == rows(tmp_path / "whole")


def test_workers_of_environments_end_without_output(tmp_path):
    config, run = line(100_000), tmp_path / "run"
    config = replace(config, env=replace(config.env, vectorization_mode="async"))
    pid = command(config, run, "--save-every", "0.2")
    until(lambda: checkpoint.checkpoints(run))
    workers = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(workers) == 2
    os.killpg(pid, signal.SIGINT)  # as Ctrl-C does
    code, message = ended(pid, run)
    assert (code, message.count("\n")) == (1, 1)
    assert "interrupted by SIGINT" in message
    assert not left_in_group(pid)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            os.kill(os.getpid(), signal.SIGHUP)  # nohup
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_the_end_of_an_update_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(interrupt, "GRACE", 0.2)
    done = []

    def update(seconds: float) -> None:
        with handled(), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)
            done.append(1)

    with pytest.raises(Interrupted) as stop:
        update(0)
    assert (done, stop.value.abrupt) == ([1], False)
    with pytest.raises(Interrupted) as stop:
        update(30)
    assert (done, stop.value.abrupt) == ([1], True)


def test_a_second_signal_ends_it_at_once(tmp_path):
    def stubborn() -> None:
        os.dup2(os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY), 2)
        with handled(), deferred():
            (tmp_path / "ready").touch()
            until(lambda: False, 60)

    pid = child(stubborn, tmp_path / "log.txt")
    until((tmp_path / "ready").exists)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)  # the same one, as `timeout` sends it
    time.sleep(2 * interrupt.DEBOUNCE)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    start_time = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert time.monotonic() - start_time < interrupt.GRACE / 2
    assert (tmp_path / "said").read_text() == "ami: interrupted twice: ended at once\n"


STUDY = """
from ami_agent.config import override
from tests.kills import line
def configs():
    return {"base": line(100_000), "slower": override(line(100_000), {"actor.receding_horizon": 2})}
"""


def test_the_processes_of_a_study_save_and_end(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    out = tmp_path / "out"

    def do() -> None:
        os.setpgid(0, 0)
        errors = io.StringIO()
        cli.num_cores = lambda: 2  # one for each worker
        argv = ["ablate", f"{tmp_path / 'study.py'}:configs", "--workers", "2", "--seeds", "1"]
        with redirect_stderr(errors):
            code = cli.main([*argv, "--out", str(out)])
        (tmp_path / "said").write_text(f"{code}\n{errors.getvalue()}")

    pid = child(do, tmp_path / "log.txt")
    logs = [out / name / "0" / "log.txt" for name in ("base", "slower")]
    until(lambda: all(log.exists() and "collect  " in log.read_text() for log in logs), 120)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.killpg(pid, signal.SIGINT)
    code, message = ended(pid, out)
    assert (code, message.count("\n")) == (1, 1)
    assert f"interrupted by SIGINT; 0 of 2 runs in {out} are finished" in message
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in children), 10)
    assert all(checkpoint.checkpoints(log.parent) for log in logs)
