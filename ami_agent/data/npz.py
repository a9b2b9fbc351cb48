"""`.npz` files, read as data: the headers of their arrays are checked against the bytes that are
there, rows are decompressed in order as they are needed, and no pickle is ever loaded."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from ami_agent.data.recording import Column, Episode, KeyChooser, ReadRows, Recording, Table, empty
from ami_agent.storage import files
from modules.types import ConfigError

MAX_ARRAYS, MAX_HEADER, MAX_RATIO = 10_000, 10_000, 1100
"""Arrays of a file, bytes of an array's header, and bytes for each compressed one, at most: deflate
saves no more."""
NOT_WHOLE = "is not a whole .npz file"


class NpzTable(Table):
    """The arrays of one `.npz` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        columns: dict[str, Column] = {}
        rows: dict[str, int] = {}
        self._starts: dict[str, int] = {}  # bytes of the header before the rows
        with self._open_archive() as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise ConfigError(f"{path} holds more than {MAX_ARRAYS} arrays")
            for member in members:
                name, shape, dtype, start = self._header(archive, member)
                if shape:
                    columns[name], rows[name] = Column(shape[1:], dtype), shape[0]
                    self._starts[name] = start
        self.columns, self.rows = columns, rows

    @contextmanager
    def _open_archive(self) -> Iterator[zipfile.ZipFile]:
        with files.open_regular(self.path) as file:
            with files.one_line_errors(self.path, NOT_WHOLE):
                archive = zipfile.ZipFile(file)
            with archive:
                yield archive

    def _header(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo
    ) -> tuple[str, tuple[int, ...], np.dtype, int]:
        """Name, shape and dtype of one array, and the bytes before its rows; ConfigError where they
        contradict the bytes of the file."""
        name = member.filename.removesuffix(".npy")
        label = f"{self.path}: {name[:100]}"
        if member.file_size > MAX_RATIO * max(member.compress_size, 64):
            raise ConfigError(
                f"{label} claims {member.file_size} bytes, and {member.compress_size} are there"
            )
        with files.one_line_errors(self.path, NOT_WHOLE), archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ConfigError(
                    f"{label} is of version {'.'.join(map(str, version))} of the .npy format; this "
                    "version of AMI reads 1.0 and 2.0"
                )
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, by_column, dtype = read[version[0]](file, max_header_size=MAX_HEADER)
            start = file.tell()
        if dtype.hasobject:
            raise ConfigError(f"{label} holds pickled Python objects, which are never loaded")
        if start + prod(shape) * dtype.itemsize != member.file_size or min(shape, default=0) < 0:
            raise ConfigError(
                f"{label} is {dtype} {shape}, and its {member.file_size - start} bytes are another "
                "number"
            )
        if by_column and len(shape) > 1:
            raise ConfigError(
                f"{label} is stored column by column: save numpy.ascontiguousarray of it"
            )
        return name, shape, dtype, start

    @contextmanager
    def _open(self) -> Iterator[ReadRows]:
        with ExitStack() as stack:
            archive = stack.enter_context(self._open_archive())
            streams: dict[str, IO[bytes]] = {}

            def read(name: str, first: int, count: int) -> np.ndarray:
                column = self.columns[name]
                with files.one_line_errors(self.path, NOT_WHOLE):
                    if name not in streams:
                        streams[name] = stack.enter_context(archive.open(f"{name}.npy"))
                    streams[name].seek(self._starts[name] + first * column.row_bytes)
                    found = empty(count, column, f"{self.path}: {name}")
                    if found.nbytes:
                        view = memoryview(found.data).cast("B")
                        missing = len(view) - streams[name].readinto(view)  # type: ignore[attr-defined]
                        if missing:
                            raise EOFError(f"{missing} bytes are missing")
                    return found.astype(column.dtype.newbyteorder("="), copy=False)

            yield read


class NpzFolder(Recording):
    """A folder of `.npz` files, each an episode: observations of T + 1 rows, and actions of T rows,
    or of T + 1, of which the last is not used."""

    layout = "folder of .npz episodes"

    def __init__(self, folder: Path, chosen: Mapping[str, str]) -> None:
        self.label = str(folder)
        self.paths = sorted(folder.glob("*.npz"), key=_by_number)
        if not self.paths:
            raise ConfigError(f"{folder} holds no .npz file")
        first = NpzTable(self.paths[0])
        self._columns = first.columns
        keys = KeyChooser(str(first.path), chosen, first.columns).keys()
        num_obs = first.rows[keys.names[0]]
        rows = {n: c for n, c in first.columns.items() if first.rows[n] == num_obs}
        self._set_columns({**rows, **{n: first.columns[n] for n in keys.names}}, keys)
        self._set_lengths([self._length(NpzTable(path)) for path in self.paths])

    def _length(self, table: NpzTable) -> int:
        """The steps of an episode; ConfigError where its columns are not those of the first file,
        or don't fit one another."""
        for name, column in self._columns.items():
            if table.columns.get(name) != column:
                raise ConfigError(
                    f"{table.path}: {name} is {table.columns.get(name, 'missing')}, and in "
                    f"{self.paths[0].name} {column}"
                )
        num_obs = table.rows[self.keys.names[0]]
        num_actions = table.rows[self.keys.actions.split("+")[0]]
        for key in self.keys.all:
            expected = num_obs if key in self.keys.obs.values() else num_actions
            for name in key.split("+"):
                if table.rows[name] != expected:
                    raise ConfigError(
                        f"{table.path}: {name} has {table.rows[name]} rows, and must have "
                        f"{expected}"
                    )
        if num_actions not in (num_obs, num_obs - 1):
            raise ConfigError(
                f"{table.path} has {num_obs} observations and {num_actions} actions; there must "
                "be one action less, or as many, of which the last is not used"
            )
        return num_obs - 1

    def describe_episode(self, index: int) -> str:
        return f"{super().describe_episode(index)} ({self.paths[index].name})"

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        for path, steps in zip(self.paths[first:], self.lengths[first:].tolist(), strict=True):
            table = NpzTable(path)
            if self._length(table) != steps:
                raise ConfigError(f"{path} has changed")
            with table.reader() as read:
                yield self._episode(read, f"{path}: ", steps, extra)

    def _episode(self, read: ReadRows, label: str, steps: int, extra: bool) -> Episode:
        obs = {part: read(key, 0, steps + 1) for part, key in self.keys.obs.items()}
        rewards, terminated = self._rewards_and_ends(label, steps, lambda key: read(key, 0, steps))
        more = {name: read(name, 0, steps + 1) for name in (self.extra if extra else ())}
        return Episode(obs, read(self.keys.actions, 0, steps), rewards, terminated, more)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts `episode-10` behind `episode-9`."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
