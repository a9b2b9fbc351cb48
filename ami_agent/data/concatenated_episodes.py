"""Episodes one behind the other in the rows of arrays: OGBench's `.npz`, D4RL's HDF5, and
stable-worldmodel's HDF5. Where they end decides how the rows are read:

- OGBench: an episode of T steps has T + 1 rows, `terminals` is 1 in its last row alone, and the
  action of that row is not used. The same rows with `valids` (OGBench's compact form) have no valid
  transition in the last row.
- stable-worldmodel: `ep_offset` and `ep_len` say which rows are an episode, again T + 1. Its
  `reward` and `terminated` came with the observation of their row.
- With `next_observations` (D4RL, OGBench's regular form) an episode has T rows. D4RL's `terminals`
  are the environment's own ends, `timeouts` the others, and the last episode may have neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ami_agent.data.recording import (
    DONE,
    MARKS,
    NEXT_OBS,
    TIMEOUTS,
    WHOLE,
    Episode,
    KeyChooser,
    ReadRows,
    Recording,
    Table,
    flags,
)
from modules.types import ConfigError

OFFSETS, LENGTHS, VALIDS = "ep_offset", "ep_len", "valids"


class FlatRecording(Recording):
    """Episodes one behind the other."""

    def __init__(self, table: Table, chosen: Mapping[str, str], file: str) -> None:
        """`file`: the kind of file, in words."""
        self.label, self._table = str(table.path), table
        chooser = KeyChooser(self.label, chosen, table.columns, tuple(MARKS))
        marks = {role: chooser.mark(role) for role in MARKS}
        self._is_arrival = LENGTHS in table.columns  # of rewards: they came with their row
        others = "D4RL" if marks[TIMEOUTS] else "OGBench"
        written_by = "stable-worldmodel" if self._is_arrival else others
        self.layout = f"{file}, rows as {written_by}'s"
        has_ends = self._is_arrival or marks[DONE] or marks[TIMEOUTS]
        keys = chooser.keys("" if has_ends else DONE)
        used = [*marks[DONE], *marks[TIMEOUTS], *marks[NEXT_OBS], VALIDS, OFFSETS, LENGTHS]
        self._num_rows = self._check_rows([*keys.names, *used[:-2]])
        self._set_columns(
            {
                name: column
                for name, column in table.columns.items()
                if name in keys.names or (table.rows[name] == self._num_rows and name not in used)
            },
            keys,
        )
        self._next_obs = ""  # the column of the observations after the steps
        if marks[NEXT_OBS] and [*self.obs] == [WHOLE]:
            self._next_obs = marks[NEXT_OBS][0]
            self.extra = {}  # without a row for the last observation
            if (next_obs := table.columns[self._next_obs]) != self.obs[WHOLE]:
                raise ConfigError(
                    f"{self.label}: {self._next_obs} is {next_obs}, and observations "
                    f"{self.obs[WHOLE]}"
                )
        self._terminals: np.ndarray | None = None  # D4RL's, of all rows
        self._rows = self._find_rows(marks[DONE], marks[TIMEOUTS])
        self._set_lengths(self._rows - (not self._next_obs))

    def _check_rows(self, names: Sequence[str]) -> int:
        """The rows of the file; ConfigError where those of its columns that are there have
        different numbers of them."""
        names = [name for name in names if name in self._table.columns]
        counts = {name: self._table.rows[name] for name in names}
        num_rows = counts[names[0]]
        for name, count in counts.items():
            if count != num_rows:
                raise ConfigError(
                    f"{self.label}: {name} has {count} rows, and {names[0]} {num_rows}"
                )
        if not num_rows:
            raise ConfigError(f"{self.label} is empty")
        return num_rows

    def _find_rows(self, done: Sequence[str], timeouts: Sequence[str]) -> np.ndarray:
        """The rows of each episode, by the columns that mark their ends; where a time limit is
        marked alone, `terminated` marks the other ends."""
        if self._is_arrival:
            return self._stated_rows()
        marks = [*(done or filter(None, [self.keys.terminated])), *timeouts]
        ends = np.logical_or.reduce([self._flags(name) for name in marks])
        if timeouts:
            is_known = "terminals" in done
            self._terminals = self._flags("terminals") if is_known else np.zeros_like(ends)
            ends[-1] |= ends.any()
        elif VALIDS in self._table.columns:
            ends = ~self._flags(VALIDS)
        if not ends[-1]:
            raise ConfigError(
                f"{self.label}: its last episode has no end ({' or '.join(marks)} must be 1 in the "
                "last row)"
            )
        return np.diff(np.flatnonzero(ends), prepend=-1)

    def _flags(self, name: str) -> np.ndarray:
        return flags(f"{self.label}: {name}", self._table.whole(name))

    def _stated_rows(self) -> np.ndarray:
        lengths = self._table.whole(LENGTHS)
        if OFFSETS not in self._table.columns:
            raise ConfigError(f"{self.label} holds {LENGTHS} without {OFFSETS}")
        offsets = self._table.whole(OFFSETS)
        are_counts = all(a.ndim == 1 and a.dtype.kind in "iu" for a in (lengths, offsets))
        rows = lengths.astype(np.int64) if are_counts else np.zeros(1, np.int64)
        is_whole = rows.min(initial=1) > 0 and rows.sum() == self._num_rows
        if not (is_whole and np.array_equal(offsets, np.cumsum(rows) - rows)):
            raise ConfigError(
                f"{self.label}: {LENGTHS} and {OFFSETS} are not those of {self._num_rows} rows"
            )
        return rows

    def describe_episode(self, index: int) -> str:
        row = int(self._rows[:index].sum())
        return f"{super().describe_episode(index)} (rows {row} to {row + self._rows[index] - 1})"

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        row = int(self._rows[:first].sum())
        with self._table.reader() as read:
            for rows in self._rows[first:].tolist():
                yield self._episode(read, row, rows, extra)
                row += rows

    def _episode(self, read: ReadRows, row: int, rows: int, extra: bool) -> Episode:
        """The episode in `rows` rows from `row` on."""
        keys, steps = self.keys, rows - (not self._next_obs)
        obs = {part: read(key, row, rows) for part, key in keys.obs.items()}
        if self._next_obs:
            obs = {WHOLE: np.concatenate([obs[WHOLE], read(self._next_obs, row, rows)[-1:]])}
        actions = read(keys.actions, row, rows)[:steps]
        used = slice(self._is_arrival, self._is_arrival + steps)
        rewards, terminated = self._rewards_and_ends(
            f"{self.label}: ", steps, lambda key: read(key, row, rows)[used]
        )
        if self._terminals is not None and not keys.terminated:
            terminated = self._terminals[row : row + steps]
        more = {name: read(name, row, rows) for name in (self.extra if extra else ())}
        return Episode(obs, actions, rewards, terminated, more)
