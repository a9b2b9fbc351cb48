"""Files of a Minari dataset, looked at before Minari reads them: regular files, metadata within
bounds, and arrays that hold what they say they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ami_agent import files
from modules.types import UnusableInput

METADATA, HDF5 = "metadata.json", "main_data.hdf5"
RATIO, SMALL = 2000, 64 * 1024
"""Bytes of an array for each on the disk, more than deflate could save; and an array so small that
nobody looks."""


def check(home: Path) -> None:
    """Raises UnusableInput for a dataset, in the folder `home`, that can't be read safely."""
    metadata = files.read_json(home / METADATA)
    known = metadata if isinstance(metadata, dict) else {}
    for what in ("total_steps", "total_episodes"):
        if not isinstance(known.get(what), int) or known[what] < 0:
            raise UnusableInput(f"{home / METADATA} tells no {what}: it must be a whole number")
    if known.get("data_format") != "hdf5":
        for path in home.rglob("*"):
            if not path.is_dir():
                files.open_regular(path).close()
        return
    with files.open_regular(home / HDF5) as file:
        found = os.fstat(file.fileno())
    steps = _steps(home / HDF5, found.st_mtime_ns, found.st_size)
    if steps != known["total_steps"]:
        raise UnusableInput(
            f"{home / METADATA} tells of {known['total_steps']} steps, and {HDF5} holds {steps}"
        )


@cache
def _steps(path: Path, written: int, size: int) -> int:
    """Steps of all episodes of an HDF5 file, as it was written at that time; UnusableInput where
    it is none, refers to other files, or has arrays that are not on the disk."""
    import h5py  # comes with the extra of Minari

    with files.fitting(path), h5py.File(path, "r") as file:
        arrays = list(_arrays(h5py, file))
        for where, array in arrays:
            on_disk = array.id.get_storage_size()
            if array.is_virtual or array.external:
                raise UnusableInput(f"{path}: {where} lies in another file")
            if array.nbytes > max(SMALL, RATIO * on_disk):
                raise UnusableInput(
                    f"{path}: {where} claims {array.nbytes} bytes, and {on_disk} are on the disk"
                )
        rewards = [a for where, a in arrays if where.endswith("/rewards") and where.count("/") == 2]
        return sum(len(array) for array in rewards)


def _arrays(h5py: Any, group: Any, depth: int = files.DEPTH) -> Iterator[tuple[str, Any]]:
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not depth:
            raise UnusableInput(f"{group.file.filename}: {group.name}/{name} is a link elsewhere")
        found = group[name]
        if isinstance(found, h5py.Group):
            yield from _arrays(h5py, found, depth - 1)
        elif isinstance(found, h5py.Dataset):
            yield found.name, found
