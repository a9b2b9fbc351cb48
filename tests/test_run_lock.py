"""A folder has one owner, files are written whole and with the umask's permissions, names are
printed as they are."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent import logger
from ami_agent.ablation.run_study import folders
from ami_agent.cli import command_flags
from ami_agent.cli.main import main
from ami_agent.storage import checkpoint, files
from ami_agent.storage.files import LOCK, locked
from modules.types import ConfigError
from tests.conftest import error_line
from tests.kills import child, line, printed

ROOT = Path(__file__).parent.parent


@pytest.fixture
def other(tmp_path):
    """The id of another process that owns tmp_path / "run"."""
    pid = owner(tmp_path)
    yield pid
    with suppress(ProcessLookupError):
        end(pid)


def owner(folder: Path, forks: bool = False) -> int:
    """A process that owns folder / "run"; it may have a child that outlives it."""

    def own() -> None:
        with locked(folder / "run"):
            heir = os.fork() if forks else -1
            if heir:
                (folder / "child").write_text(str(heir))
                (folder / "ready").touch()
            time.sleep(60)
            os._exit(0)

    pid, until = child(own, folder / "log.txt"), time.monotonic() + 30
    while not (folder / "ready").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_second_process_is_refused_and_a_kill_releases_the_folder(other, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "metrics.jsonl").write_text('{"half a line')
    message = error_line(capsys, "train", "two-rooms", "--out", run)
    assert f"{run} is in use by process {other} on " in message
    assert (run / "metrics.jsonl").read_text() == '{"half a line'  # nothing of it was changed
    with pytest.raises(ConfigError, match=f"in use by process {other}"):
        ami.train(line(), out=run)
    end(other)
    with locked(run), locked(run):  # the same process may lock again
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
    assert not (run / LOCK).exists()


def test_a_study_has_one_owner(other, tmp_path, capsys):
    argv = (
        "ablate",
        "two-rooms",
        "--without",
        "goal_critic",
        "--seeds",
        1,
        "--out",
        tmp_path / "run",
    )
    assert f"in use by process {other}" in error_line(capsys, *argv)


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    parent = owner(tmp_path, forks=True)
    heir = int((tmp_path / "child").read_text())
    assert heir > 1
    try:
        end(parent)
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(heir, signal.SIGKILL)


@pytest.mark.parametrize(
    ("flag", "name", "reason"),
    [
        ("--out", "loop", "levels of symbolic links"),
        ("--json", "loop", "levels of symbolic links"),
        ("--out", "x" * 256, "too long"),
        ("--json", "x" * 256, "too long"),
        ("--out", "\udcff", "surrogates"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_before_anything_begins(
    flag, name, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert reason in error_line(capsys, "train", "two-rooms", flag, name)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_failed_command_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError), locked(tmp_path / "run"):
        raise ConfigError("nothing")
    assert not (tmp_path / "run").exists()


def test_a_lock_file_of_any_content_names_no_process(tmp_path, other):
    (tmp_path / "run" / LOCK).write_bytes(b"[" * 5000)
    with pytest.raises(ConfigError, match="in use by another process"), locked(tmp_path / "run"):
        pass


def test_two_writers_of_the_same_file_do_not_collide(tmp_path):
    path = tmp_path / "eval.json"
    with files.replacing(path) as one, files.replacing(path) as other_:
        one.write_text("one")
        other_.write_text("other")
    assert path.read_text() == "one"  # the later to be done
    with pytest.raises(files.NotWritten, match=f"{path} was not written: No space"):  # noqa: SIM117
        with files.replacing(path):
            raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


def test_temporary_files_of_killed_processes_alone_are_removed(tmp_path):
    old, new = (tmp_path / f".{name}{files.DRAFT}" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, time.time() - 2 * files.STALE))
    files.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [new.name]


def test_the_draft_of_a_killed_process_is_removed_at_once_and_that_of_a_living_one_is_not(tmp_path):
    process = os.fork()
    if not process:
        with files.replacing(tmp_path / "killed.json"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with files.replacing(tmp_path / "a.json") as draft:
        files.clean(tmp_path)
        assert list(tmp_path.iterdir()) == [draft]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_name_of_any_length_is_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    files.write_text(path, "\udcff")
    assert path.read_text() == "\\udcff"


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o027, 0o640)])
def test_files_follow_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        checkpoint.save(tmp_path / "c", {"w": torch.zeros(3)}, {})
        files.write_text(tmp_path / "a.json", "{}")
        out = logger.RunLogger(tmp_path, Console(quiet=True))
        out.log_scalars("stage", 1, {"loss": 1.0})
        out.close()
        with locked(tmp_path):
            written = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert len(written) == 6
            assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}
    finally:
        os.umask(before)


def test_every_variant_has_a_folder_of_its_own():
    names = ["a/b", "a-b", "A-b", "a b", "..", "", "study.json", "x" * 300, "x" * 301, "ok"]
    found = folders(names)
    assert found["a/b"] == "a-b"  # as before: studies that have begun are continued
    assert found["ok"] == "ok"
    assert len({folder.casefold() for folder in found.values()}) == len(names)
    assert all(f and f not in (".", "..", "study.json") and len(f) < 120 for f in found.values())
    assert folders(["without objective.variance", "planner=CEM"]) == {
        "without objective.variance": "without-objective.variance", "planner=CEM": "planner-CEM",
    }  # fmt: skip


ODD = ("lr[seed=1]", "x[", "[/b]", ":smile: [red]", "two  spaces", "a\nb\x1b[31m", "\udcff")


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_as_they_are(name):
    paper = Console(file=io.StringIO(), width=20)
    plain = name.replace("\n", " ").replace("\x1b", "\\x1b").replace("\udcff", "\\udcff")
    out = logger.ConsoleLogger(paper)
    out.info(name.replace("\n", " "))
    logger.print_table(paper, name, ["a", name], [[name, 1.0]])
    with out.progress(name, 2) as bar:
        bar.advance(2)
    message = paper.file.getvalue()
    assert message.count(plain) >= 2
    assert "\x1b" not in message
    bars = logger.ConsoleLogger(Console(file=io.StringIO(), force_terminal=True, width=80))
    with bars.progress(name, 2) as bar:
        bar.advance(2)


def test_a_run_in_a_folder_with_brackets(tiny, tmp_path, monkeypatch, capsys):
    brief = replace(tiny.eval_env, options={"max_episode_steps": 4})
    config = replace(tiny, recipe="two-rooms", eval_env=brief)
    monkeypatch.setattr(cli, "recipe", lambda name: config)
    monkeypatch.chdir(tmp_path)
    run = "lr[seed=1]/[/b]"
    assert main(["train", "two-rooms", "--out", run, "--episodes", "1"]) == 0
    assert f"into {run}\n" in capsys.readouterr().out
    assert main(["eval", run, "--episodes", "1", "--mode", "react"]) == 0
    assert f"{run}: ami/TwoRooms-v0 " in capsys.readouterr().out
    assert "lr[x] is not a run folder" in error_line(capsys, "eval", "lr[x]", "--episodes", "1")


def test_the_table_is_printed_though_its_file_can_not_be_written(tmp_path, monkeypatch):
    run, written = tmp_path / "run", command_flags.write_json

    def full(path, data, follow_links):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        written(path, data, follow_links)

    ami.train(line(), out=run)
    monkeypatch.setattr(command_flags, "write_json", full)
    argv = ["eval", str(run), "--episodes", "1", "--mode", "react", "--json", f"{run}/e.json"]
    done = printed(lambda: main(argv))
    assert done.code == 1, done.errors
    assert "agent, react" in done.output
    assert f"ami: {run / 'e.json'} was not written: File too large" in done.errors
    assert done.errors.count("\n") == 1
    names = os.listdir(tmp_path / "run")
    assert "e.json" not in names
    assert not [name for name in names if name.endswith(files.DRAFT)]
