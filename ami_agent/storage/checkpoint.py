"""Checkpoints: folders that are complete or absent, with checksums of what they hold.

One is written under a hidden name and renamed when it is on the disk. A previous one of that name
is moved aside before and removed after that; `load` finds it in between."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ami_agent.storage import files
from modules.types import ConfigError

FORMAT = 1
TENSORS, METADATA = "tensors.safetensors", "metadata.json"
UNFINISHED, REPLACED = ".unfinished", ".replaced"
_STEP = re.compile(r"step-\d{8,12}\Z")
WRONG_CHECKSUM = (
    "its checksum is not the one it was written with (remove its folder to use the checkpoint "
    "before it, if there is one)"
)


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; all earlier ones are unchanged."""


def checkpoint_dir(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint at that step."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all; replaces one of that name. `metadata` must be JSON
    without NaN. Raises CheckpointNotWritten if the disk is full or not writable, ConfigError if the
    folder exists and is no checkpoint."""
    metadata = json.loads(json.dumps(dict(metadata), allow_nan=False))  # fails before it writes
    check_replaceable(folder)
    tmp, backup = _hidden_path(folder, UNFINISHED), _hidden_path(folder, REPLACED)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _recover(folder.parent)
        tmp.mkdir()
        _write(tmp, tensors, metadata)
        if folder.exists():
            folder.rename(backup)
        tmp.rename(folder)
        _fsync(folder.parent)
        files.remove_folder(backup)
    except (OSError, SafetensorError) as error:
        files.remove_folder(tmp)
        needed = sum(tensor.nbytes for tensor in tensors.values()) / files.MIB
        raise CheckpointNotWritten(
            f"{folder} was not written ({error}); it needs {needed:.1f} MiB of free disk"
        ) from error


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError if the folder exists and is no checkpoint."""
    if folder.exists() and not (folder / METADATA).is_file():
        raise ConfigError(f"{folder} exists and is no checkpoint: choose another name")


def load(
    folder: Path, device: torch.device | str = "cpu", prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors whose names begin with `prefix`, and the metadata; ConfigError if not whole."""
    path = _existing_path(folder)
    metadata, checksums = _read_metadata(path / METADATA)
    shapes = files.tensor_shapes(path / TENSORS)  # a clearer error than the checksum's
    if files.checksum(path / TENSORS) != checksums.get(TENSORS):
        raise ConfigError(f"{path / TENSORS} is damaged: {WRONG_CHECKSUM}")
    names = [name for name in shapes if name.startswith(prefix)]
    return files.read_tensors(path / TENSORS, names, device), metadata


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The metadata of a checkpoint, and the shapes of its tensors by name; no tensor is loaded."""
    path = _existing_path(folder)
    metadata, _ = _read_metadata(path / METADATA)
    return metadata, files.tensor_shapes(path / TENSORS)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    replaced = {folder / p.name[1:].removesuffix(REPLACED) for p in folder.glob(f".*{REPLACED}")}
    return sorted(path for path in {*folder.glob("step-*"), *replaced} if _STEP.match(path.name))


def latest(run: Path) -> Path:
    """The newest checkpoint of a run; ConfigError if it has none."""
    found = checkpoints(run)
    if not found:
        raise ConfigError(f"{run} has no checkpoint: no agent was trained there yet")
    return found[-1]


def prune(run: Path, keep: int = 2) -> None:
    """Removes all checkpoints of a run but the newest `keep`, at least one."""
    for folder in map(_existing_path, checkpoints(run)[: -max(keep, 1)]):
        tmp = folder.with_name(f".{folder.name.strip('.')}{UNFINISHED}")
        folder.rename(tmp)  # first, so that no process can find half of it
        files.remove_folder(tmp)


def _hidden_path(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")


def _existing_path(folder: Path) -> Path:
    """The folder, or the one to which `save` has moved it."""
    backup = _hidden_path(folder, REPLACED)
    return backup if backup.is_dir() and not folder.exists() else folder


def _recover(parent: Path) -> None:
    """Cleans up after a process that died in the middle of `save`."""
    for backup in parent.glob(f".*{REPLACED}"):
        path = parent / backup.name[1:].removesuffix(REPLACED)
        if path.exists():
            files.remove_folder(backup)
        else:
            backup.rename(path)
    for tmp in parent.glob(f".*{UNFINISHED}"):
        files.remove_folder(tmp)


def _write(tmp: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    (tmp / TENSORS).touch()
    mode = (tmp / TENSORS).stat().st_mode  # that of the umask; safetensors creates files with 0600
    save_file(_without_shared_storage(tensors), tmp / TENSORS)
    (tmp / TENSORS).chmod(mode)
    _fsync(tmp / TENSORS)
    checksums = {TENSORS: files.checksum(tmp / TENSORS), METADATA: _sha256(metadata)}
    content = {"format": FORMAT, "sha256": checksums, "metadata": metadata}
    (tmp / METADATA).write_text(
        json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    _fsync(tmp / METADATA)
    _fsync(tmp)


def _without_shared_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share storage; copied only where needed."""
    storages: set[int] = set()
    separate = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in separate.items():
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separate


def _read_metadata(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    content = files.read_json(path, "is damaged: it is not JSON")
    fields = content if isinstance(content, dict) else {}
    version, metadata, checksums = (fields.get(part) for part in ("format", "metadata", "sha256"))
    if not isinstance(metadata, dict) or not isinstance(checksums, dict):
        raise ConfigError(f"{path} is damaged: it holds no metadata of a checkpoint")
    if version != FORMAT:
        raise ConfigError(f"{path} has format {version}; this version reads format {FORMAT}")
    if _sha256(metadata) != checksums.get(METADATA):
        raise ConfigError(f"{path} is damaged: {WRONG_CHECKSUM}")
    return metadata, checksums


def _sha256(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
