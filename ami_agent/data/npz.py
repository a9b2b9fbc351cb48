"""`.npz` files, read as data: the headers of their arrays are checked against the bytes that are
there, rows are decompressed in order as they are needed, and no pickle is ever loaded."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ami_agent.data.flat import RowReader
from ami_agent.data.recording import (
    Column,
    Episode,
    KeyChooser,
    Keys,
    Recording,
    check_lengths,
    empty,
    flags,
    join,
)
from ami_agent.storage import files
from modules.types import ConfigError

MAX_ARRAYS, MAX_HEADER, MAX_RATIO = 10_000, 10_000, 1100
"""Arrays of a file, bytes of an array's header, and bytes for each compressed one, at most: deflate
saves no more."""
NOT_WHOLE = "is not a whole .npz file"


class NpzTable:
    """The arrays of one `.npz` file."""

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, str(path)
        columns: dict[str, Column] = {}
        rows: dict[str, int] = {}
        self._starts: dict[str, int] = {}  # bytes of the header before the rows
        with self._open() as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise ConfigError(f"{path} holds more than {MAX_ARRAYS} arrays")
            for member in members:
                name, shape, dtype, start = self._header(archive, member)
                if shape:
                    columns[name], rows[name] = Column(shape[1:], dtype), shape[0]
                    self._starts[name] = start
        self.columns: Mapping[str, Column] = columns
        self.rows: Mapping[str, int] = rows

    def _open(self) -> closing[zipfile.ZipFile]:
        with files.one_line_errors(self.path, NOT_WHOLE):
            return closing(_Archive(files.open_regular(self.path)))

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

    def whole(self, name: str) -> np.ndarray:
        with self.reader() as read:
            return read(name, self.rows[name])

    @contextmanager
    def reader(self, first: int = 0) -> Iterator[RowReader]:
        with ExitStack() as stack:
            archive = stack.enter_context(self._open())
            streams: dict[str, BinaryIO] = {}

            def read(name: str, count: int) -> np.ndarray:
                return join([read_one(part, count) for part in name.split("+")])

            def read_one(name: str, count: int) -> np.ndarray:
                column = self.columns[name]
                with files.one_line_errors(self.path, NOT_WHOLE):
                    if name not in streams:
                        opened = archive.open(f"{name}.npy")
                        streams[name] = stack.enter_context(opened)  # type: ignore[assignment]
                        opened.seek(self._starts[name] + first * column.row_bytes)
                    found = empty(count, column, f"{self.path}: {name}")
                    _fill(streams[name], found)
                    return found.astype(column.dtype.newbyteorder("="), copy=False)

            yield read


class _Archive(zipfile.ZipFile):
    """A zip file that closes its own file with it."""

    def __init__(self, file: BinaryIO) -> None:
        self._own = file
        try:
            super().__init__(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        super().close()
        self._own.close()


def _fill(file: BinaryIO, array: np.ndarray) -> None:
    """Reads as many bytes as the array has; EOFError where there are fewer."""
    if not array.nbytes:
        return
    view, filled = memoryview(array.data).cast("B"), 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{len(view) - filled} bytes are missing")
        filled += count


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
        keys = KeyChooser(first.label, chosen).keys(first.columns)
        num_obs = self._num_obs(first, keys)
        rows = {n: c for n, c in first.columns.items() if first.rows[n] == num_obs}
        self._set_columns({**rows, **{n: first.columns[n] for n in keys.names}}, keys)
        lengths = [self._length(NpzTable(path)) for path in self.paths]
        self.lengths = check_lengths(self.label, np.array(lengths))

    @staticmethod
    def _num_obs(table: NpzTable, keys: Keys) -> int:
        return table.rows[keys.names[0]]

    def _length(self, table: NpzTable) -> int:
        """The steps of an episode; ConfigError where its columns are not those of the first file,
        or don't fit one another."""
        for name, column in self._columns.items():
            if table.columns.get(name) != column:
                raise ConfigError(
                    f"{table.label}: {name} is {table.columns.get(name, 'missing')}, and in "
                    f"{self.paths[0].name} {column}"
                )
        num_obs = self._num_obs(table, self.keys)
        num_actions = table.rows[self.keys.actions.split("+")[0]]
        for key in self.keys.all:
            expected = num_obs if key in self.keys.obs.values() else num_actions
            for name in key.split("+"):
                if table.rows[name] != expected:
                    raise ConfigError(
                        f"{table.label}: {name} has {table.rows[name]} rows, and must have "
                        f"{expected}"
                    )
        if num_actions not in (num_obs, num_obs - 1):
            raise ConfigError(
                f"{table.label} has {num_obs} observations and {num_actions} actions; there must "
                "be one action less, or as many, of which the last is not used"
            )
        return num_obs - 1

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        keys = self.keys
        for path, steps in zip(self.paths[first:], self.lengths[first:].tolist(), strict=True):
            table = NpzTable(path)
            if self._length(table) != steps:
                raise ConfigError(f"{path} has changed")
            with table.reader() as read:
                obs = {part: read(key, steps + 1) for part, key in keys.obs.items()}
                rewards = read(keys.rewards, steps) if keys.rewards else np.zeros(steps)
                terminated = np.zeros(steps, bool)
                if keys.terminated:
                    terminated = flags(f"{path}: {keys.terminated}", read(keys.terminated, steps))
                more = {name: read(name, steps + 1) for name in (self.extra if extra else ())}
                yield Episode(obs, read(keys.actions, steps), rewards, terminated, more)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts `episode-10` behind `episode-9`."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
