"""Converts recorded episodes: any layout that can be read into OGBench's `.npz`, a folder of `.npz`
episodes, or HDF5.

Episodes are first appended to one raw file for each column, in a folder beside the result, so that
a conversion that was interrupted continues where it was; then the result is written, whole or not
at all."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from ami_agent.data.flat import LENGTHS, OFFSETS
from ami_agent.data.recording import (
    ACTIONS,
    OBSERVATIONS,
    REWARDS,
    TERMINATED,
    Column,
    Episode,
    Recording,
)
from ami_agent.logger import Logger
from ami_agent.storage import files
from ami_agent.storage.run_dir import write_json
from modules.types import ConfigError

PROGRESS, SAVE_EVERY, COPIED = "progress.json", 200, 2**22
"""The file of the conversion's state, episodes between two of its versions, and bytes that are
copied at once."""
ENDINGS = ".npz (rows as OGBench's), .h5 or .hdf5 (rows as stable-worldmodel's), or a folder"
Write = Callable[[Path, "RawColumns"], None]


def convert(recording: Recording, out: Path, logger: Logger) -> None:
    """Writes all episodes to `out`, in the layout of its ending. ConfigError where that exists, or
    has another ending; NotWritten where the disk is full."""
    write = _writer(out)
    if out.exists():
        raise ConfigError(f"{out} exists: remove it, or choose another name")
    draft = out.with_name(f".{out.name}.parts")
    with files.locked(draft), files.writing(out):
        raw = RawColumns(draft, recording)
        try:
            with logger.progress("read", len(recording.lengths), raw.num_done) as progress:
                for _ in raw.append():
                    progress.advance()
        except ConfigError:  # it would fail again
            files.remove_folder(draft)
            raise
        logger.info(f"writes {out}")
        write(out, raw)
        logger.info(f"{out}: {len(raw.lengths):,} episodes, {recording.num_steps:,} steps")
    files.remove_folder(draft)


def _writer(out: Path) -> Write:
    if out.suffix == ".npz":
        return write_npz
    if out.suffix in (".h5", ".hdf5"):
        if find_spec("h5py") is None:
            raise ConfigError(
                f"{out} needs h5py, which is not installed: pip install 'ami-agent[hdf5]'"
            )
        return write_hdf5
    if out.suffix:
        raise ConfigError(f"{out} ends in {out.suffix}; it must end in {ENDINGS}")
    return write_folder


class RawColumns:
    """The columns of all episodes, T + 1 rows each, as raw files in a folder. The last rows of
    actions, rewards and terminations, which are not used, are zero."""

    def __init__(self, folder: Path, recording: Recording) -> None:
        self.folder, self.recording = folder, recording
        self.lengths = recording.lengths + 1  # rows of each episode
        columns = {f"{OBSERVATIONS}/{p}".rstrip("/"): c for p, c in recording.obs.items()}
        columns[ACTIONS] = recording.actions
        if recording.keys.rewards:
            columns[REWARDS] = Column((), np.dtype(np.float64))
        columns[TERMINATED] = Column((), np.dtype(bool))
        for name, column in recording.extra.items():
            columns.setdefault(name, column)
        self.columns = {
            name: Column(c.shape, c.dtype.newbyteorder("=")) for name, c in columns.items()
        }
        self._paths = {name: folder / f"{i:03d}.raw" for i, name in enumerate(self.columns)}
        self.num_done = self._resume()

    @property
    def num_rows(self) -> int:
        return int(self.lengths.sum())

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a conversion to continue."""
        source = Path(self.recording.label).absolute()
        return {
            "source": str(source),
            "modified": source.stat().st_mtime_ns if source.exists() else 0,
            "rows": self.num_rows, "episodes": len(self.lengths),
            "columns": {name: str(column) for name, column in self.columns.items()},
        }  # fmt: skip

    def _resume(self) -> int:
        """The episodes that an earlier process has appended; the files are cut to their end."""
        state: Any = {}
        with suppress(ConfigError):
            state = files.read_json(self.folder / PROGRESS)
        num_done = state.pop("done", 0) if isinstance(state, dict) else 0
        if state != self._identity() or num_done not in range(len(self.lengths) + 1):
            num_done = 0
        rows = int(self.lengths[:num_done].sum())
        for name, path in self._paths.items():
            size, needed = path.stat().st_size if path.exists() else 0, self._size(name, rows)
            if size < needed:
                return self._restart()
            with path.open("ab") as file:
                file.truncate(needed)
        return num_done

    def _restart(self) -> int:
        for path in self._paths.values():
            path.write_bytes(b"")
        return 0

    def _size(self, name: str, rows: int) -> int:
        return rows * self.columns[name].row_bytes

    def append(self) -> Iterator[int]:
        """Appends the episodes that are missing; yields the number of each."""
        outputs = {name: path.open("ab") for name, path in self._paths.items()}
        try:
            episodes = self.recording.episodes(self.num_done, extra=True)
            for index, episode in enumerate(episodes, start=self.num_done):
                for name, part in self._parts(episode).items():
                    self._check(index, name, part)
                    outputs[name].write(np.ascontiguousarray(part).tobytes())
                if (index + 1) % SAVE_EVERY == 0 or index + 1 == len(self.lengths):
                    for file in outputs.values():
                        file.flush()
                    write_json(self.folder / PROGRESS, {**self._identity(), "done": index + 1})
                yield index
        finally:
            for file in outputs.values():
                file.close()

    def _parts(self, episode: Episode) -> dict[str, np.ndarray]:
        """The rows of every column, in its dtype."""
        parts = {f"{OBSERVATIONS}/{p}".rstrip("/"): a for p, a in episode.obs.items()}
        parts |= {
            ACTIONS: _with_last_row(episode.actions), REWARDS: _with_last_row(episode.rewards),
            TERMINATED: _with_last_row(episode.terminated),
        }  # fmt: skip
        parts = {**episode.extra, **parts}
        return {name: parts[name].astype(c.dtype, copy=False) for name, c in self.columns.items()}

    def _check(self, index: int, name: str, part: np.ndarray) -> None:
        expected = (int(self.lengths[index]), *self.columns[name].shape)
        if part.shape != expected:
            raise ConfigError(
                f"episode {index} of {self.recording.label}: {name} is {part.shape}; it must be "
                f"{expected}"
            )

    def open(self, name: str) -> BinaryIO:
        return self._paths[name].open("rb")

    def rows(self, name: str, count: int, file: BinaryIO) -> np.ndarray:
        """The next rows of an open column."""
        column = self.columns[name]
        data = file.read(count * column.row_bytes)
        return np.frombuffer(data, column.dtype).reshape(count, *column.shape)


def _with_last_row(part: np.ndarray) -> np.ndarray:
    return np.concatenate([part, np.zeros_like(part[:1])])


def _ends(lengths: np.ndarray) -> np.ndarray:
    """`[rows]` bool: the last row of each episode."""
    ends = np.zeros(int(lengths.sum()), bool)
    ends[np.cumsum(lengths) - 1] = True
    return ends


def write_npz(out: Path, raw: RawColumns) -> None:
    """Rows as OGBench's, uncompressed, which reads fastest; rewards and `terminated` are further
    columns, which its loader leaves aside."""
    ends = _ends(raw.lengths)
    with files.replacing(out) as draft, zipfile.ZipFile(draft, "w") as archive:
        for name, column in raw.columns.items():
            with raw.open(name) as file:
                blocks = iter(partial(file.read, COPIED), b"")
                _add_array(
                    archive, name, Column((raw.num_rows, *column.shape), column.dtype), blocks
                )
        _add_array(archive, "terminals", Column(ends.shape, ends.dtype), [ends.tobytes()])


def _add_array(archive: zipfile.ZipFile, name: str, whole: Column, blocks: Iterable[bytes]) -> None:
    """Writes an array of that whole shape, whose bytes come in blocks."""
    header = {
        "descr": np.lib.format.dtype_to_descr(whole.dtype), "fortran_order": False,
        "shape": whole.shape,
    }  # fmt: skip
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(cast("IO[bytes]", member), header)
        for block in blocks:
            member.write(block)


def write_hdf5(out: Path, raw: RawColumns) -> None:
    """Rows as stable-worldmodel's: rewards and terminations came with the observation of their
    row."""
    import h5py

    with files.replacing(out) as draft, h5py.File(draft, "w") as target:
        for name, column in raw.columns.items():
            shape = (raw.num_rows, *column.shape)
            array = target.create_dataset(name, shape, column.dtype, chunks=_chunks(shape, column))
            is_arrival, row = name in (REWARDS, TERMINATED), 0
            with raw.open(name) as file:
                for count in raw.lengths.tolist():
                    values = raw.rows(name, count, file)
                    array[row : row + count] = np.roll(values, 1) if is_arrival else values
                    row += count
        target[LENGTHS] = raw.lengths.astype(np.int32)
        target[OFFSETS] = (np.cumsum(raw.lengths) - raw.lengths).astype(np.int64)


def _chunks(shape: tuple[int, ...], column: Column) -> tuple[int, ...]:
    """About 256 KiB: one picture a read would be slow, and all of them as well."""
    return (max(1, min(shape[0], 2**18 // max(1, column.row_bytes))), *column.shape)


def write_folder(out: Path, raw: RawColumns) -> None:
    """One file an episode: observations of T + 1 rows, all others of T."""
    draft = out.with_name(f".{out.name}{files.DRAFT}")
    files.remove_folder(draft)
    draft.mkdir()
    digits = len(str(len(raw.lengths) - 1))
    inputs = {name: raw.open(name) for name in raw.columns}
    try:
        for index, count in enumerate(raw.lengths.tolist()):
            rows = {name: raw.rows(name, count, file) for name, file in inputs.items()}
            with zipfile.ZipFile(draft / f"episode-{index:0{digits}d}.npz", "w") as archive:
                for name, part in rows.items():
                    part = part[:-1] if name in (ACTIONS, REWARDS, TERMINATED) else part
                    _add_array(archive, name, Column(part.shape, part.dtype), [part.tobytes()])
        draft.rename(out)
    finally:
        for file in inputs.values():
            file.close()
        files.remove_folder(draft)
