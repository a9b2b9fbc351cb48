"""Files of a Minari dataset, looked at before Minari reads them: regular files, metadata within
bounds, and arrays that hold what they say they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ami_agent.storage import guarded_reader
from modules.types import ConfigError

METADATA, HDF5 = "metadata.json", "main_data.hdf5"
MAX_COMPRESSION, MIN_CHECKED_SIZE = 2000, 64 * 1024
"""Bytes of an array for each on the disk, more than deflate could save; and an array so small that
nobody looks."""


def check(home: Path) -> None:
    """Raises ConfigError for a dataset, in the folder `home`, that can't be read safely."""
    metadata = guarded_reader.read_json(home / METADATA)
    info = metadata if isinstance(metadata, dict) else {}
    for what in ("total_steps", "total_episodes"):
        if not isinstance(info.get(what), int) or info[what] < 0:
            raise ConfigError(f"{home / METADATA} tells no {what}: it must be a whole number")
    if info.get("data_format") != "hdf5":
        for path in home.rglob("*"):
            if not path.is_dir():
                guarded_reader.open_regular(path).close()
        return
    with guarded_reader.open_regular(home / HDF5) as file:
        stat = os.fstat(file.fileno())
    steps = _steps(home / HDF5, stat.st_mtime_ns, stat.st_size)
    if steps != info["total_steps"]:
        raise ConfigError(
            f"{home / METADATA} tells of {info['total_steps']} steps, and {HDF5} holds {steps}"
        )


@cache
def _steps(path: Path, modified: int, size: int) -> int:
    """Steps of all episodes of an HDF5 file, as it was written at that time; ConfigError where
    it is none, refers to other files, or has arrays that are not on the disk."""
    import h5py  # comes with the extra of Minari

    with guarded_reader.one_line_errors(path), h5py.File(path, "r") as file:
        arrays = list(_arrays(h5py, file))
        for name, array in arrays:
            disk_size = array.id.get_storage_size()
            if array.is_virtual or array.external:
                raise ConfigError(f"{path}: {name} lies in another file")
            if array.nbytes > max(MIN_CHECKED_SIZE, MAX_COMPRESSION * disk_size):
                raise ConfigError(
                    f"{path}: {name} claims {array.nbytes} bytes, and {disk_size} are on the disk"
                )
        rewards = [a for name, a in arrays if name.endswith("/rewards") and name.count("/") == 2]
        return sum(len(array) for array in rewards)


def _arrays(
    h5py: Any, group: Any, depth: int = guarded_reader.MAX_DEPTH
) -> Iterator[tuple[str, Any]]:
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not depth:
            raise ConfigError(f"{group.file.filename}: {group.name}/{name} is a link elsewhere")
        stat = group[name]
        if isinstance(stat, h5py.Group):
            yield from _arrays(h5py, stat, depth - 1)
        elif isinstance(stat, h5py.Dataset):
            yield stat.name, stat
