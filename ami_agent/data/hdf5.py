"""HDF5 files, read as data: every array lies in the file itself and on the disk. Layouts: a group
for each episode (robomimic), and rows one behind the other (`flat`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ami_agent.data.concatenated_episodes import FlatRecording
from ami_agent.data.recording import (
    ACTIONS,
    OBSERVATIONS,
    WHOLE,
    Column,
    Episode,
    KeyChooser,
    Keys,
    ReadRows,
    Recording,
    Table,
    empty,
    flags,
)
from ami_agent.storage import files
from modules.types import ConfigError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_COMPRESSION, MIN_CHECKED_SIZE = 2000, 64 * 1024
"""Bytes of an array for each byte on disk, more than deflate can save; and the size of an array, in
bytes, from which on this is checked."""
CANT_READ = "can't be read"
DEMO = re.compile(r"data/(demo_\d+)/(.+)")


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, for reading; ConfigError where it is none, or h5py is not installed."""
    if find_spec("h5py") is None:
        raise ConfigError(
            f"{path} is an HDF5 file, and h5py is not installed: pip install 'ami-agent[hdf5]'"
        )
    import h5py  # comes with the extra of Minari

    with files.one_line_errors(path, CANT_READ):
        files.open_regular(path).close()
        file = h5py.File(path, "r")
    with file:
        yield file


def checked_arrays(path: Path, file: Any) -> dict[str, Any]:
    """Every array of an open file by its name; ConfigError where the file refers to others, or has
    arrays that are not on the disk."""
    found = {}
    for name, array in _arrays(file):
        disk_size = array.id.get_storage_size()
        if array.is_virtual or array.external:
            raise ConfigError(f"{path}: {name} lies in another file")
        if array.nbytes > max(MIN_CHECKED_SIZE, MAX_COMPRESSION * disk_size):
            raise ConfigError(
                f"{path}: {name} claims {array.nbytes} bytes, and {disk_size} are on the disk"
            )
        found[name.lstrip("/")] = array
    return found


def _arrays(group: Any, depth: int = files.MAX_DEPTH) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not depth:
            raise ConfigError(f"{group.file.filename}: {group.name}/{name} is a link elsewhere")
        item = group[name]
        if isinstance(item, h5py.Group):
            if h5py.h5o.get_info(item.id).rc > 1:  # the ways to an array could be without number
                raise ConfigError(
                    f"{group.file.filename}: {group.name}/{name} has several names; a group has one"
                )
            yield from _arrays(item, depth - 1)
        elif isinstance(item, h5py.Dataset):
            yield item.name, item


def from_hdf5(path: Path, chosen: Mapping[str, str]) -> Recording:
    """The episodes of an HDF5 file; ConfigError for a layout that is not known."""
    with open_hdf5(path) as file, files.one_line_errors(path, CANT_READ):
        arrays = checked_arrays(path, file)
        columns = {
            name: Column(array.shape[1:], array.dtype)
            for name, array in arrays.items()
            if array.shape and array.dtype.kind != "O"  # texts of any length
        }
        rows = {name: len(arrays[name]) for name in columns}
    table = Hdf5Table(path, columns, rows)
    if any(DEMO.fullmatch(name) for name in columns):
        return DemoRecording(table, chosen)
    if not any("/" not in name for name in columns):
        groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in columns)) or "nothing"
        raise ConfigError(
            f"{path} has an unknown layout: it holds {groups[:200]}, and neither rows one behind "
            "the other nor data/demo_0"
        )
    return FlatRecording(table, chosen, "HDF5")


class Hdf5Table(Table):
    """Arrays of an HDF5 file with one row for each step."""

    def __init__(self, path: Path, columns: dict[str, Column], rows: dict[str, int]) -> None:
        self.path, self.columns, self.rows = path, columns, rows

    @contextmanager
    def _open(self) -> Iterator[ReadRows]:
        with open_hdf5(self.path) as file:

            def read(name: str, first: int, count: int) -> np.ndarray:
                column, label = self.columns[name], f"{self.path}: {name}"
                with files.one_line_errors(self.path, CANT_READ):
                    array = file[name]
                    is_same = Column(array.shape[1:], array.dtype) == column
                    if not is_same or first + count > len(array):
                        raise ConfigError(f"{label} has changed")
                    found = empty(count, column, label)
                    if found.size:
                        array.read_direct(found, np.s_[first : first + count])
                    return found.astype(column.dtype.newbyteorder("="), copy=False)

            yield read


class DemoRecording(Recording):
    """robomimic's layout: a group `data/demo_i` for each episode, of N rows of `actions`, `obs/*`
    and, where they are there, `rewards`, `dones` and `next_obs/*`. Without `next_obs` an episode
    has N - 1 steps. Where the last row of `dones` is 1, the episode terminates."""

    layout = "HDF5, a group for each episode as robomimic's"

    def __init__(self, table: Hdf5Table, chosen: Mapping[str, str]) -> None:
        self.label, self._table = str(table.path), table
        demos = {match[1] for name in table.columns if (match := DEMO.fullmatch(name))}
        self._demos = sorted(demos, key=lambda demo: int(demo.rpartition("_")[2]))
        first = f"data/{self._demos[0]}/"
        own = {n.removeprefix(first): c for n, c in table.columns.items() if n.startswith(first)}
        obs = {n.removeprefix("obs/"): c for n, c in own.items() if n.startswith("obs/")}
        keys = self._choose(chosen, obs, own)
        flat = {**obs, **{n: c for n, c in own.items() if "/" not in n and n != "dones"}}
        self._set_columns(flat, keys)
        parts = [name for key in keys.obs.values() for name in key.split("+")]
        self._next = all(f"next_obs/{name}" in own for name in parts)
        self.extra = {}  # robomimic's further rows have none for the last observation
        self._columns = {
            **{f"obs/{name}": obs[name] for name in parts},
            **({f"next_obs/{name}": obs[name] for name in parts} if self._next else {}),
            **{name: own[name] for key in keys[1:] if key for name in key.split("+")},
            **({"dones": own["dones"]} if "dones" in own else {}),
        }
        self._set_lengths([self._length(demo) for demo in self._demos])

    def _choose(
        self, chosen: Mapping[str, str], obs: Mapping[str, Column], own: Mapping[str, Column]
    ) -> Keys:
        """All observations of the group by name; one alone, or what the user chooses, is the
        whole."""
        others = {n: c for n, c in own.items() if "/" not in n}
        if not any(role.startswith(OBSERVATIONS) for role in chosen) and obs:
            parts = {name: name for name in obs} if len(obs) > 1 else {WHOLE: next(iter(obs))}
            plain = {**others, OBSERVATIONS: others.get(ACTIONS, next(iter(obs.values())))}
            return KeyChooser(self.label, chosen, plain).keys()._replace(obs=parts)
        return KeyChooser(self.label, chosen, {**obs, **others}).keys()

    def _length(self, demo: str) -> int:
        """The steps of an episode; ConfigError where its columns are not those of the first."""
        rows, columns = self._table.rows, self._table.columns
        num_rows = rows.get(f"data/{demo}/{self.keys.actions.split('+')[0]}", 0)
        for part, column in self._columns.items():
            name = f"data/{demo}/{part}"
            if columns.get(name) != column:
                raise ConfigError(
                    f"{self.label}: {name} is {columns.get(name, 'missing')}; it must be {column}"
                )
            if rows[name] != num_rows:
                raise ConfigError(
                    f"{self.label}: {name} has {rows[name]} rows, and actions {num_rows}"
                )
        return num_rows - (not self._next)

    def describe_episode(self, index: int) -> str:
        return f"{super().describe_episode(index)} (data/{self._demos[index]})"

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        with self._table.reader() as read:
            for demo, steps in zip(self._demos[first:], self.lengths[first:].tolist(), strict=True):
                yield self._episode(read, f"data/{demo}/", steps)

    def _episode(self, read: ReadRows, group: str, steps: int) -> Episode:
        def read_in_group(
            key: str, prefix: str = "", first: int = 0, count: int = steps
        ) -> np.ndarray:
            names = [f"{group}{prefix}{name}" for name in key.split("+")]
            return read("+".join(names), first, count)

        obs = {}
        for part, key in self.keys.obs.items():
            obs[part] = read_in_group(key, "obs/", count=steps + (not self._next))
            if self._next:
                last = read_in_group(key, "next_obs/", steps - 1, 1)
                obs[part] = np.concatenate([obs[part], last])
        label = f"{self.label}: {group}"
        rewards, terminated = self._rewards_and_ends(label, steps, read_in_group)
        if "dones" in self._columns and not self.keys.terminated:
            # in some files it is 1 at every success
            terminated[-1] = flags(f"{label}dones", read_in_group("dones"))[-1]
        return Episode(obs, read_in_group(self.keys.actions), rewards, terminated, {})
