"""Checkpoints: folders that are complete or not there.

A checkpoint holds `tensors.safetensors` and `facts.json`; the second knows the checksum of both. It
is written beside its place under a hidden name and renamed when it is on the disk. One that stood
there before is moved aside first and removed last, and `load` still finds it there in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ami_agent import files
from modules.types import UnusableInput

FORMAT = 1
TENSORS, FACTS = "tensors.safetensors", "facts.json"
UNFINISHED, REPLACED = ".unfinished", ".replaced"
MIB = 2**20
_STEP = re.compile(r"step-\d{8,12}\Z")
WRONG_SUM = (
    "its checksum is not the one it was written with (remove its folder, and the checkpoint before "
    "it counts, if there is one)"
)


class CheckpointNotWritten(OSError):
    """The disk did not take a checkpoint; all earlier ones are as they were."""


def place(run: Path, step: int) -> Path:
    """Where the checkpoint of a step of a run belongs."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, in the place of one of that name.

    `facts` is what JSON can hold, without NaN. Raises CheckpointNotWritten if the disk is full or
    closed to us, UnusableInput if the folder is there and is no checkpoint.
    """
    facts = json.loads(json.dumps(dict(facts), allow_nan=False))  # fails before it writes
    _check_replaceable(folder)
    draft = _hidden(folder, UNFINISHED)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clean(folder.parent)
        draft.mkdir()
        _write(draft, tensors, facts)
        _exchange(draft, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointNotWritten(_complaint(folder, tensors, error)) from error


def load(
    folder: Path, device: torch.device | str = "cpu", prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on `device`, and the facts of a checkpoint; UnusableInput if it is not whole.
    Of the tensors those whose names begin with `prefix`."""
    home = _present(folder)
    facts, sums = _read_facts(home / FACTS)
    files.tensor_shapes(home / TENSORS)  # before the checksum of what may be no file of tensors
    if files.checksum(home / TENSORS) != sums.get(TENSORS):
        raise UnusableInput(f"{home / TENSORS} is damaged: {WRONG_SUM}")
    return files.read_tensors(home / TENSORS, device, prefix), facts


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Those of the tensors of a checkpoint, by name, without reading any."""
    return files.tensor_shapes(_present(folder) / TENSORS)


def contents(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts of a checkpoint and the names of its tensors, which are not loaded."""
    home = _present(folder)
    facts, _ = _read_facts(home / FACTS)
    return facts, list(files.tensor_shapes(home / TENSORS))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    replaced = {folder / p.name[1:].removesuffix(REPLACED) for p in folder.glob(f".*{REPLACED}")}
    return sorted(place for place in {*folder.glob("step-*"), *replaced} if _STEP.match(place.name))


def latest(run: Path) -> Path:
    """The newest checkpoint of a run; UnusableInput if it has none."""
    found = checkpoints(run)
    if not found:
        raise UnusableInput(f"{run} has no checkpoint: nothing was trained there yet")
    return found[-1]


def prune(run: Path, keep: int = 2) -> None:
    """Remove all checkpoints of a run but the newest `keep`, at least one."""
    for folder in checkpoints(run)[: -max(keep, 1)]:
        _discard(_present(folder))


def _hidden(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")


def _present(folder: Path) -> Path:
    """The folder, or where `_exchange` has put it aside."""
    aside = _hidden(folder, REPLACED)
    return aside if aside.is_dir() and not folder.exists() else folder


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / FACTS).is_file():
        raise UnusableInput(f"{folder} is there and is no checkpoint: choose another name")


def _clean(parent: Path) -> None:
    """Undo what a process that died in the middle of `save` left."""
    for aside in parent.glob(f".*{REPLACED}"):
        home = parent / aside.name[1:].removesuffix(REPLACED)
        if home.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(home)
    for draft in parent.glob(f".*{UNFINISHED}"):
        shutil.rmtree(draft)


def _write(draft: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    (draft / TENSORS).touch()
    mode = (draft / TENSORS).stat().st_mode  # as the umask has it; safetensors' own is 0600
    save_file(_separate(tensors), draft / TENSORS)
    (draft / TENSORS).chmod(mode)
    _sync(draft / TENSORS)
    sums = {TENSORS: files.checksum(draft / TENSORS), FACTS: _sha256_of(facts)}
    whole = {"format": FORMAT, "sha256": sums, "facts": facts}
    (draft / FACTS).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _sync(draft / FACTS)
    _sync(draft)


def _exchange(draft: Path, folder: Path) -> None:
    aside = _hidden(folder, REPLACED)
    if folder.exists():
        folder.rename(aside)
    draft.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove a checkpoint so that no half of one is ever seen."""
    draft = folder.with_name(f".{folder.name.strip('.')}{UNFINISHED}")
    folder.rename(draft)
    shutil.rmtree(draft)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous on the CPU, no two in one storage: only what needs a copy gets one."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return separate


def _read_facts(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts and the checksums."""
    data = files.read_bytes(path, files.JSON_LIMIT)
    try:
        whole = files.decoded(data)
    except ValueError as error:
        raise UnusableInput(f"{path} is damaged: it is no JSON ({error})") from None
    known = whole if isinstance(whole, dict) else {}
    version, facts, sums = (known.get(part) for part in ("format", "facts", "sha256"))
    if not isinstance(facts, dict) or not isinstance(sums, dict):
        raise UnusableInput(f"{path} is damaged: it holds no facts of a checkpoint")
    if version != FORMAT:
        raise UnusableInput(f"{path} has format {version}; this version reads format {FORMAT}")
    if _sha256_of(facts) != sums.get(FACTS):
        raise UnusableInput(f"{path} is damaged: {WRONG_SUM}")
    return facts, sums


def _sha256_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complaint(folder: Path, tensors: Mapping[str, Tensor], error: Exception) -> str:
    needed = sum(tensor.nbytes for tensor in tensors.values()) / MIB
    return f"{folder} was not written ({error}); it needs {needed:.1f} MiB of free disk"
