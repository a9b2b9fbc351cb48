"""Converts recorded episodes: any layout that can be read into OGBench's `.npz`, a folder of `.npz`
episodes, or HDF5.

Episodes are first appended to one raw file for each column, in a folder beside the result, so that
a conversion that was interrupted continues where it was; then the result is written, whole or not
at all."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ami_agent.data.concatenated_episodes import LENGTHS, OFFSETS
from ami_agent.data.recording import ACTIONS, FLAG, REWARDS, TERMINATED, Column, Episode, Recording
from ami_agent.logger import Logger, Progress
from ami_agent.storage import files
from ami_agent.storage.run_dir import write_json
from modules.types import ConfigError

PROGRESS, SAVE_EVERY = "progress.json", 200
"""The file of the conversion's state, and episodes between two of its versions."""
WITHOUT_LAST_ROW = (ACTIONS, REWARDS, TERMINATED)
"""Columns that have T rows in an episode of T steps, beside T + 1 observations."""
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
                raw.append(progress)
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
        roles = {**recording.columns_by_role(), TERMINATED: FLAG}
        further = {n: c for n, c in recording.extra.items() if n not in roles}
        self.columns = {
            name: Column(c.shape, c.dtype.newbyteorder("="))
            for name, c in {**roles, **further}.items()
        }
        self._paths = {name: folder / f"{i:03d}.raw" for i, name in enumerate(self.columns)}
        self.num_done = self._resume()

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a conversion to continue."""
        source = Path(self.recording.label).absolute()
        return {
            "source": str(source),
            "modified": source.stat().st_mtime_ns if source.exists() else 0,
            "rows": int(self.lengths.sum()), "episodes": len(self.lengths),
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
        num_rows = int(self.lengths[:num_done].sum())
        sizes = {
            path: num_rows * self.columns[name].row_bytes for name, path in self._paths.items()
        }
        if any(not path.exists() or path.stat().st_size < size for path, size in sizes.items()):
            num_done, sizes = 0, dict.fromkeys(sizes, 0)
        for path, size in sizes.items():
            with path.open("ab") as file:
                file.truncate(size)
        return num_done

    def append(self, progress: Progress) -> None:
        """Appends the episodes that are missing."""
        with ExitStack() as stack:
            outputs = {n: stack.enter_context(path.open("ab")) for n, path in self._paths.items()}
            episodes = self.recording.episodes(self.num_done, extra=True)
            for index, episode in enumerate(episodes, start=self.num_done):
                for name, part in self._parts(index, episode).items():
                    outputs[name].write(part.tobytes())
                if (index + 1) % SAVE_EVERY == 0 or index + 1 == len(self.lengths):
                    for file in outputs.values():
                        file.flush()
                    write_json(self.folder / PROGRESS, {**self._identity(), "done": index + 1})
                progress.advance()

    def _parts(self, index: int, episode: Episode) -> dict[str, np.ndarray]:
        """The rows of every column, in its dtype; ConfigError where they are not of its shape."""
        parts = {**episode.extra, **episode.by_role()}
        for name in WITHOUT_LAST_ROW:
            parts[name] = np.concatenate([parts[name], np.zeros_like(parts[name][:1])])
        for name, column in self.columns.items():
            expected = (int(self.lengths[index]), *column.shape)
            if parts[name].shape != expected:
                raise ConfigError(
                    f"episode {index} of {self.recording.label}: {name} is {parts[name].shape}; it "
                    f"must be {expected}"
                )
        return {name: parts[name].astype(c.dtype, copy=False) for name, c in self.columns.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole columns, mapped into memory: they may be larger than it."""
        return {name: self._mapped(name, *column) for name, column in self.columns.items()}

    def _mapped(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        whole = (int(self.lengths.sum()), *shape)
        if not prod(shape):
            return np.empty(whole, dtype)  # a file without bytes can't be mapped
        return np.memmap(self._paths[name], dtype, "r", shape=whole)


def write_npz(out: Path, raw: RawColumns) -> None:
    """Rows as OGBench's, uncompressed, which reads fastest; rewards and `terminated` are further
    columns, which its loader leaves aside."""
    ends = np.zeros(int(raw.lengths.sum()), bool)
    ends[np.cumsum(raw.lengths) - 1] = True
    with files.replacing(out) as draft:
        _write_arrays(draft, {**raw.arrays(), "terminals": ends})


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the file that numpy.savez would; that takes no path without its ending, and no array
    of any name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_hdf5(out: Path, raw: RawColumns) -> None:
    """Rows as stable-worldmodel's: rewards and terminations came with the observation of their
    row."""
    import h5py

    with files.replacing(out) as draft, h5py.File(draft, "w") as target:
        for name, array in raw.arrays().items():
            is_arrival = name in (REWARDS, TERMINATED)  # 0 in the last row of each episode
            values = np.roll(array, 1) if is_arrival else array
            # about 256 KiB: one picture a read would be slow, and all of them as well
            rows = max(1, min(len(array), 2**18 // max(1, raw.columns[name].row_bytes)))
            target.create_dataset(name, data=values, chunks=(rows, *array.shape[1:]))
        target[LENGTHS] = raw.lengths.astype(np.int32)
        target[OFFSETS] = (np.cumsum(raw.lengths) - raw.lengths).astype(np.int64)


def write_folder(out: Path, raw: RawColumns) -> None:
    """One file an episode: observations of T + 1 rows, all others of T."""
    draft = out.with_name(f".{out.name}{files.DRAFT}")
    files.remove_folder(draft)
    draft.mkdir()
    digits = len(str(len(raw.lengths) - 1))
    arrays, stops = raw.arrays(), np.cumsum(raw.lengths)
    try:
        for index, (stop, count) in enumerate(zip(stops, raw.lengths, strict=True)):
            episode = {
                name: array[stop - count : stop - (name in WITHOUT_LAST_ROW)]
                for name, array in arrays.items()
            }
            _write_arrays(draft / f"episode-{index:0{digits}d}.npz", episode)
        draft.rename(out)
    finally:
        files.remove_folder(draft)
