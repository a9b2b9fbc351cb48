"""A checkpoint is whole or it is not there, and what is loaded is what was saved."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ami_agent.storage import checkpoint
from modules.types import ConfigError

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "pixels": torch.arange(9, dtype=torch.uint8)}
METADATA = {"step": 7, "loss": 0.1, "names": ["reward"], "seed": None}
SAVING = """
import sys, pathlib, torch
from ami_agent.storage import checkpoint
"""


def saved(folder: Path) -> Path:
    checkpoint.save(folder, TENSORS, METADATA)
    return folder


def saver(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SAVING + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_loads_what_was_saved(tmp_path):
    tensors, facts = checkpoint.load(saved(tmp_path / "runs" / "one"))
    assert facts == METADATA
    torch.testing.assert_close(tensors, TENSORS, rtol=0, atol=0)


def test_takes_shared_strided_and_empty_tensors(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    given = {"base": base, "same": base, "turned": base.T, "row": base[1], "none": base[:, :0]}
    checkpoint.save(tmp_path / "c", given, {1: "a", 10: "b", 2: "c"})
    tensors, facts = checkpoint.load(tmp_path / "c")
    torch.testing.assert_close(tensors, given, rtol=0, atol=0)
    assert facts == {"1": "a", "10": "b", "2": "c"}


def test_replaces_a_checkpoint_of_the_same_name_and_leaves_nothing_behind(tmp_path):
    saved(tmp_path / "c")
    checkpoint.save(tmp_path / "c", {"weight": torch.ones(1)}, {"step": 8})
    tensors, facts = checkpoint.load(tmp_path / "c")
    assert (list(tensors), facts) == (["weight"], {"step": 8})
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_does_not_replace_what_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no checkpoint"):
        saved(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_metadata_that_json_cannot_hold_leave_the_checkpoint_whole(tmp_path):
    saved(tmp_path / "c")
    for fact in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.save(tmp_path / "c", TENSORS, {"fact": fact})
    assert checkpoint.load(tmp_path / "c")[1] == METADATA


def with_one_bit_turned(path: Path, count: int) -> Iterator[None]:
    whole = path.read_bytes()
    for position in random.Random(0).sample(range(len(whole)), count):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        yield


def test_one_flipped_bit_of_the_tensors_is_noticed(tmp_path):
    for _ in with_one_bit_turned(saved(tmp_path / "c") / checkpoint.TENSORS, 60):
        with pytest.raises(ConfigError, match=r"^\S+/tensors\.safetensors is [^\n]+$"):
            checkpoint.load(tmp_path / "c")


def test_one_flipped_bit_never_changes_the_metadata(tmp_path):
    refused = 0
    for _ in with_one_bit_turned(saved(tmp_path / "c") / checkpoint.METADATA, 100):
        try:
            assert checkpoint.load(tmp_path / "c")[1] == METADATA  # only white space was hit
        except ConfigError:
            refused += 1
    assert refused > 50


def pickled(folder: Path) -> None:
    (folder / checkpoint.TENSORS).write_bytes(pickle.dumps({"weight": [1.0]}))


def cut(folder: Path) -> None:
    path = folder / checkpoint.TENSORS
    path.write_bytes(path.read_bytes()[:-3])


def from_the_future(folder: Path) -> None:
    path = folder / checkpoint.METADATA
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("gone")), r"metadata\.json is missing"),
        (lambda folder: (folder / checkpoint.METADATA).unlink(), r"metadata\.json is missing"),
        (lambda folder: (folder / checkpoint.TENSORS).unlink(), r"safetensors is missing"),
        (
            lambda folder: (folder / checkpoint.METADATA).write_text("[1,"),
            r"metadata\.json is damaged",
        ),
        (
            lambda folder: (folder / checkpoint.METADATA).write_text("[1]"),
            r"metadata\.json is damaged",
        ),
        (lambda folder: (folder / checkpoint.METADATA).write_bytes(b"\xff"), r"json is damaged"),
        (from_the_future, r"metadata\.json has format 2; this version reads format 1"),
        (cut, r"tensors\.safetensors is not a whole safetensors file"),
        (pickled, r"tensors\.safetensors is not a whole safetensors file"),
    ],
)
def test_refuses_what_is_not_a_checkpoint_in_one_line(tmp_path, harm, message):
    harm(saved(tmp_path / "c"))
    with pytest.raises(ConfigError, match=message) as refused_message:
        checkpoint.load(tmp_path / "c")
    assert "\n" not in str(refused_message.value)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    checkpoint.save(pathlib.Path(sys.argv[1]), {"big": torch.zeros(2**20)}, {})
except checkpoint.CheckpointNotWritten as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["c", "d"])
def test_a_full_disk_costs_only_the_new_checkpoint(tmp_path, name):
    saved(tmp_path / "c")
    message, trouble = saver(FULL, tmp_path / name).communicate()
    assert trouble == ""
    assert message.startswith(f"{tmp_path / name} was not written (")
    assert message.endswith("it needs 4.0 MiB of free disk\n")
    assert message.count("\n") == 1
    assert checkpoint.load(tmp_path / "c")[1] == METADATA
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


ENDLESS = """
for step in range(1, 10**9):
    tensors = {"step": torch.full((50_000,), step)}
    checkpoint.save(pathlib.Path(sys.argv[1]), tensors, {"step": step})
    print(step, flush=True)
"""


def test_a_killed_process_leaves_the_last_whole_checkpoint(tmp_path):
    rng = random.Random(0)
    for _ in range(4):
        process = saver(ENDLESS, tmp_path / "c")
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        written = ["1", *process.communicate()[0].split()]
        tensors, facts = checkpoint.load(tmp_path / "c")
        assert facts["step"] >= int(written[-1])
        assert (tensors["step"] == facts["step"]).all()
    saved(tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_put_aside_is_still_found(tmp_path):
    position = saved(checkpoint.checkpoint_dir(tmp_path, 7))
    aside = position.with_name(f".{position.name}.replaced")
    position.rename(aside)
    assert checkpoint.latest(tmp_path) == position
    assert checkpoint.load(position)[1] == METADATA
    saved(checkpoint.checkpoint_dir(tmp_path, 8))
    assert position.is_dir()
    assert not aside.exists()


def test_the_latest_is_the_highest_step_and_pruning_keeps_the_newest(tmp_path):
    with pytest.raises(ConfigError, match="has no checkpoint"):
        checkpoint.latest(tmp_path)
    for step in (900, 1200, 100_000_000, 3):
        saved(checkpoint.checkpoint_dir(tmp_path, step))
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-00001200", "step-100000000"]
    assert checkpoint.latest(tmp_path).name == "step-100000000"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
