"""Recorded episodes as the files of others hold them: in the environment's units, one episode at a
time. Every layout has a reader that is a `Recording`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from ami_agent.adapters.tensors import NUMERIC_KINDS
from ami_agent.hardware import available_memory, format_bytes
from modules.types import ConfigError

WHOLE = ""
"""The name of an observation that is a single array."""
OBSERVATIONS, ACTIONS, REWARDS, TERMINATED = "observations", "actions", "rewards", "terminated"
ROLES = (OBSERVATIONS, ACTIONS, REWARDS, TERMINATED)
"""What a column of numbers can be in every layout."""
DONE, TIMEOUTS, NEXT_OBS = "done", "timeouts", "next_observations"
MARKS: Mapping[str, Sequence[str]] = {
    DONE: ("terminals", "dones", "done"),
    TIMEOUTS: ("timeouts",),
    NEXT_OBS: ("next_observations", "next_obs"),
}
"""What a column can be beside these where episodes lie one behind the other, and the common names:
1 in the last row of each episode; 1 where a time limit ended it; the observation after the step."""
CHECKED_FROM = 2**26
"""Bytes of an array from which on it is compared with the free memory before it is allocated."""

COMMON_NAMES: Mapping[str, Sequence[str]] = {
    OBSERVATIONS: ("observations", "observation", "obs", "pixels", "state", "states"),
    ACTIONS: ("actions", "action"),
    REWARDS: ("rewards", "reward"),
    TERMINATED: ("terminated", "terminations"),
}
"""The names that columns have in the files of others, by role."""


class Column(NamedTuple):
    """An array with one row for each step."""

    shape: tuple[int, ...]  # of one row
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


NUMBER, FLAG = Column((), np.dtype(np.float64)), Column((), np.dtype(bool))
"""The columns of rewards and terminations where no file says what they are."""


def obs_role(part: str) -> str:
    """The role of a part of an observation: `observations/PART`, or `observations` of the whole."""
    return f"{OBSERVATIONS}/{part}".rstrip("/")


class Episode(NamedTuple):
    """One episode of T steps, in the environment's units."""

    obs: Mapping[str, np.ndarray]  # each [T + 1, *O], by name; `WHOLE` where there is but one
    actions: np.ndarray  # [T, *A]
    rewards: np.ndarray  # [T]; zeros where none were recorded
    terminated: np.ndarray  # [T] bool: the environment's own end, not a time limit
    extra: Mapping[str, np.ndarray]  # further columns, each [T + 1, ...]; empty unless requested

    def by_role(self) -> dict[str, np.ndarray]:
        obs = {obs_role(part): values for part, values in self.obs.items()}
        steps = {ACTIONS: self.actions, REWARDS: self.rewards, TERMINATED: self.terminated}
        return {**obs, **steps}


ReadRows: TypeAlias = Callable[[str, int, int], np.ndarray]
"""The name of a column, or of vectors joined by +, the first row and the number of rows -> these
rows."""


class Table:
    """Arrays with one row for each step, in a file."""

    path: Path
    columns: Mapping[str, Column]
    rows: Mapping[str, int]
    """The rows of each column."""

    def _open(self) -> AbstractContextManager[ReadRows]:
        """A reader like that of `reader`, for names of single columns."""
        raise NotImplementedError

    @contextmanager
    def reader(self) -> Iterator[ReadRows]:
        """Opens the file; reading forward in a column is fast, backward may not be."""
        with self._open() as read:

            def read_joined(name: str, first: int, count: int) -> np.ndarray:
                parts = [read(part, first, count) for part in name.split("+")]
                return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)

            yield read_joined

    def whole(self, name: str) -> np.ndarray:
        """A column in memory."""
        with self.reader() as read:
            return read(name, 0, self.rows[name])


class Recording:
    """The episodes at one place. Opening one reads what describes them and no step."""

    label: str
    """What messages call it: `dataset ID`, or a path."""
    layout: str
    """The layout in words."""
    lengths: np.ndarray
    """`[E]` int64: the steps of each episode."""
    obs: Mapping[str, Column]
    """The parts of an observation by name, as in `Episode`."""
    actions: Column
    rewards: Column = NUMBER
    terminated: Column = FLAG
    extra: Mapping[str, Column]
    """Further columns with a row for each observation."""
    keys: Keys
    """Which columns of the file these are."""

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        """The episodes from `first` on, in order; ConfigError for one that can't be read. `extra`:
        with the further columns."""
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    def describe_episode(self, index: int) -> str:
        """Which episode that is, for messages."""
        return f"episode {index} of {self.label}"

    def columns_by_role(self) -> dict[str, Column]:
        """The columns of these roles that the file has."""
        obs = {obs_role(part): column for part, column in self.obs.items()}
        columns = {
            **obs, ACTIONS: self.actions, REWARDS: self.rewards, TERMINATED: self.terminated
        }  # fmt: skip
        return {role: columns[role] for role in self.keys.by_role()}

    def _set_columns(self, columns: Mapping[str, Column], keys: Keys) -> None:
        """Sets what describes the columns; further ones are those of `columns` with numbers."""
        self.keys = keys
        self.obs = {part: joined(self.label, key, columns) for part, key in keys.obs.items()}
        self.actions = joined(self.label, keys.actions, columns)
        if keys.rewards:
            self.rewards = Column((), joined(self.label, keys.rewards, columns).dtype)
        if keys.terminated:
            self.terminated = Column((), joined(self.label, keys.terminated, columns).dtype)
        used = {*keys.names}
        self.extra = {
            name: column
            for name, column in columns.items()
            if name not in used and column.dtype.kind in NUMERIC_KINDS
        }

    def _set_lengths(self, lengths: Sequence[int] | np.ndarray) -> None:
        """ConfigError where there are no episodes, or one has no step."""
        self.lengths = np.asarray(lengths, np.int64)
        if not len(self.lengths):
            raise ConfigError(f"{self.label} is empty")
        if (self.lengths < 1).any():
            index = int(np.argmax(self.lengths < 1))
            raise ConfigError(f"{self.label}: episode {index} has no step")

    def _rewards_and_ends(
        self, label: str, steps: int, read: Callable[[str], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rewards of an episode, zeros where none were recorded, and its terminations. `read`
        reads the rows of a column that belong to its steps; `label` stands before the name of a
        column in messages."""
        keys = self.keys
        rewards = read(keys.rewards) if keys.rewards else np.zeros(steps)
        if not keys.terminated:
            return rewards, np.zeros(steps, bool)
        return rewards, flags(f"{label}{keys.terminated}", read(keys.terminated))


class Keys(NamedTuple):
    """Which columns of a file hold what; several joined by + are one vector."""

    obs: Mapping[str, str]  # by the name of the part, as in `Episode`
    actions: str
    rewards: str  # empty where there are none, as the next
    terminated: str

    def by_role(self) -> dict[str, str]:
        """The columns that there are."""
        obs = {obs_role(part): key for part, key in self.obs.items()}
        others = zip((ACTIONS, REWARDS, TERMINATED), self[1:], strict=True)
        return {role: key for role, key in (*obs.items(), *others) if key}

    @property
    def all(self) -> list[str]:
        return list(self.by_role().values())

    @property
    def names(self) -> list[str]:
        """The single columns."""
        return [name for key in self.all for name in key.split("+")]


class KeyChooser:
    """Finds which column of a file is what: the user's choice (`--data.keys ROLE NAME`), or the
    common name that is there. `observations` may be several columns joined by +, which become one
    vector, and `observations/PART` is a part of a Dict observation. `marks`: the further roles that
    this layout has, of MARKS."""

    def __init__(
        self, label: str, chosen: Mapping[str, str], columns: Mapping[str, Column],
        marks: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.label, self.chosen, self.columns = label, chosen, columns
        self._roles = (
            f"{', '.join((*ROLES, *marks))}, and {OBSERVATIONS}/PART for a part of a Dict "
            "observation"
        )
        for role in chosen:
            if role not in (*ROLES, *marks) and not role.startswith(f"{OBSERVATIONS}/"):
                raise ConfigError(f"--data.keys names {role!r}; there are {self._roles}")

    def keys(self, missing_mark: str = "") -> Keys:
        """ConfigError, with all that is missing, where there are no observations or no actions, or
        where `missing_mark` is a role that the layout needs too."""
        rewards, terminated = self._find(REWARDS), self._find(TERMINATED)
        obs, actions = self._obs(), self._find(ACTIONS)
        found = {OBSERVATIONS: all(obs.values()), ACTIONS: actions, missing_mark: not missing_mark}
        if missing := [role for role, name in found.items() if not name]:
            what = "column that is" if len(missing) == 1 else "columns that are"
            flags = " ".join(f"{role} NAME" for role in missing)
            meaning = (
                f"; {DONE} says where its episodes end, 1 in the last row of each"
                if DONE in missing
                else ""
            )
            raise ConfigError(
                f"{self.label} holds no {_and_no(missing)}, but {_listed(self.columns)}: name the "
                f"{what} (--data.keys {flags}){meaning}; roles are {self._roles}"
            )
        return Keys(obs, actions, rewards, terminated)

    def mark(self, role: str) -> list[str]:
        """The columns of a role of MARKS: the user's choice, or all of the common names."""
        if role in self.chosen:
            self._check_name(self.chosen[role])
            return [self.chosen[role]]
        return [name for name in MARKS[role] if name in self.columns]

    def _find(self, role: str) -> str:
        """The column of that role, several joined by +; empty where there is none."""
        if role in self.chosen:
            for name in self.chosen[role].split("+"):
                self._check_name(name)
            return self.chosen[role]
        found = [name for name in COMMON_NAMES[role] if name in self.columns]
        if len(found) > 1:
            raise ConfigError(
                f"{self.label} holds {' and '.join(found)}: choose one of them "
                f"(--data.keys {role} {found[0]})"
            )
        return found[0] if found else ""

    def _obs(self) -> dict[str, str]:
        """The columns of the parts of an observation, by part: those that the user names, those
        that are called `observations/PART`, or a single one, whose name is empty where there is
        none."""
        prefix = f"{OBSERVATIONS}/"
        parts = {role.removeprefix(prefix): name for role, name in self.chosen.items()
                 if role.startswith(prefix)}  # fmt: skip
        for name in parts.values():
            self._check_name(name)
        if not parts and OBSERVATIONS not in self.chosen:
            parts = {n.removeprefix(prefix): n for n in self.columns if n.startswith(prefix)}
        if parts:
            return parts
        return {WHOLE: self._find(OBSERVATIONS)}

    def _check_name(self, name: str) -> None:
        if name not in self.columns:
            raise ConfigError(f"{self.label} holds no {name!r}, but {_listed(self.columns)}")


def _and_no(names: Sequence[str]) -> str:
    *first, last = names
    return " and no ".join(filter(None, (", no ".join(first), last)))


def _listed(names: Mapping[str, Column]) -> str:
    shown = list(names)[:20]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "") or "nothing"


def joined(label: str, name: str, columns: Mapping[str, Column]) -> Column:
    """The column that several, joined by + in `name`, are together: their vectors one behind the
    other; or the single one of that name. ConfigError for columns without numbers, or that can't
    be joined."""
    parts = [columns[part] for part in name.split("+")]
    for part, column in zip(name.split("+"), parts, strict=True):
        if column.dtype.kind not in NUMERIC_KINDS:
            raise ConfigError(f"{label}: {part} is {column}; it must hold numbers")
    if len(parts) == 1:
        return parts[0]
    if any(len(part.shape) != 1 for part in parts):
        raise ConfigError(f"{label}: only vectors can be joined, and {name} are not all vectors")
    dtype = np.result_type(*(part.dtype for part in parts))
    return Column((sum(part.shape[0] for part in parts),), dtype)


def empty(rows: int, column: Column, label: str) -> np.ndarray:
    """A new array of so many rows in native byte order; ConfigError where it would not fit into
    the free memory."""
    size = rows * column.row_bytes
    if size >= CHECKED_FROM:
        free = available_memory()
        if free is not None and size > free:
            raise ConfigError(
                f"{label} would take {format_bytes(size)} of memory at once, and "
                f"{format_bytes(free)} are free"
            )
    return np.empty((rows, *column.shape), column.dtype)


def flags(label: str, values: np.ndarray) -> np.ndarray:
    """`[N]` numbers that are 0 or 1 -> bool; ConfigError for others."""
    with suppress(TypeError):
        if values.ndim == 1 and np.isin(values, (0, 1)).all():
            return values.astype(bool)
    shape = "" if values.ndim == 1 else f", of shape {values.shape}"
    raise ConfigError(f"{label} holds others than 0 and 1{shape}")
