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

from collections.abc import Iterator, Mapping

import numpy as np

from ami_agent.data.recording import (
    WHOLE,
    Episode,
    KeyChooser,
    Keys,
    ReadRows,
    Recording,
    Table,
    flags,
)
from modules.types import ConfigError

NEXT_OBS, OFFSETS, LENGTHS = "next_observations", "ep_offset", "ep_len"
ENDS = ("terminals", "dones")
BOOKKEEPING = (*ENDS, "timeouts", "valids", OFFSETS, LENGTHS)


class FlatRecording(Recording):
    """Episodes one behind the other."""

    def __init__(self, table: Table, chosen: Mapping[str, str], file: str) -> None:
        """`file`: the kind of file, in words."""
        self.label, self._table = str(table.path), table
        self._is_arrival = LENGTHS in table.columns  # of rewards: they came with their row
        others = "D4RL" if "timeouts" in table.columns else "OGBench"
        written_by = "stable-worldmodel" if self._is_arrival else others
        self.layout = f"{file}, rows as {written_by}'s"
        columns = {n: c for n, c in table.columns.items() if n not in (*BOOKKEEPING, NEXT_OBS)}
        keys = KeyChooser(self.label, chosen, columns).keys()
        self._num_rows = self._check_rows(keys)
        rows = {n: c for n, c in columns.items() if table.rows[n] == self._num_rows}
        self._set_columns(rows, keys)
        self._has_next = NEXT_OBS in table.columns and [*self.obs] == [WHOLE]
        if self._has_next:
            self.extra = {}  # without a row for the last observation
            if (next_obs := table.columns[NEXT_OBS]) != self.obs[WHOLE]:
                raise ConfigError(
                    f"{self.label}: {NEXT_OBS} is {next_obs}, and observations {self.obs[WHOLE]}"
                )
        self._terminals: np.ndarray | None = None  # D4RL's, of all rows
        self._rows = self._find_rows()
        self._set_lengths(self._rows - (not self._has_next))

    def _check_rows(self, keys: Keys) -> int:
        """The rows of the file; ConfigError where its columns have different numbers of them."""
        names = [*keys.names, *(n for n in (*ENDS, "timeouts", "valids", NEXT_OBS)
                 if n in self._table.columns)]  # fmt: skip
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

    def _find_rows(self) -> np.ndarray:
        """The rows of each episode; ConfigError where nothing says where episodes end."""
        columns = self._table.columns
        if LENGTHS in columns:
            return self._stated_rows()
        found = {n: self._flags(n) for n in (*ENDS, "timeouts") if n in columns}
        if not found:
            raise ConfigError(
                f"{self.label} doesn't say where its episodes end: it needs terminals, 1 in the "
                f"last row of each episode, or {OFFSETS} and {LENGTHS}"
            )
        ends = np.logical_or.reduce(list(found.values()))
        if "timeouts" in found:
            self._terminals = found.get("terminals", np.zeros_like(ends))
            ends[-1] |= ends.any()
        elif "valids" in columns:
            ends = ~self._flags("valids")
        if not ends[-1]:
            raise ConfigError(
                f"{self.label}: its last episode has no end ({' or '.join(found)} must be 1 in the "
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

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        row = int(self._rows[:first].sum())
        with self._table.reader() as read:
            for rows in self._rows[first:].tolist():
                yield self._episode(read, row, rows, extra)
                row += rows

    def _episode(self, read: ReadRows, row: int, rows: int, extra: bool) -> Episode:
        """The episode in `rows` rows from `row` on."""
        keys, steps = self.keys, rows - (not self._has_next)
        obs = {part: read(key, row, rows) for part, key in keys.obs.items()}
        if self._has_next:
            obs = {WHOLE: np.concatenate([obs[WHOLE], read(NEXT_OBS, row, rows)[-1:]])}
        actions = read(keys.actions, row, rows)[:steps]
        used = slice(self._is_arrival, self._is_arrival + steps)
        rewards, terminated = self._rewards_and_ends(
            f"{self.label}: ", steps, lambda key: read(key, row, rows)[used]
        )
        if self._terminals is not None and not keys.terminated:
            terminated = self._terminals[row : row + steps]
        more = {name: read(name, row, rows) for name in (self.extra if extra else ())}
        return Episode(obs, actions, rewards, terminated, more)
