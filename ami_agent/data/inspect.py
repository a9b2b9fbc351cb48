"""What recorded episodes hold: lengths, columns, ranges, ends, and a sample of them to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ami_agent.data.recording import NUMERIC_KINDS, Column, Episode, Recording
from ami_agent.logger import Logger

NUM_PATHS, MAX_POINTS, NUM_FRAMES = 40, 300, 8
"""Episodes whose first two numbers are kept for the picture, points of each, and frames of a
film strip."""
MIN_SIDE = 8
"""Pixels of a picture's side; arrays of three axes with a shorter side are numbers."""


@dataclass
class Range:
    """The smallest and the largest number of a column, and the numbers that are not finite."""

    low: float = np.inf
    high: float = -np.inf
    num_not_finite: int = 0

    def add(self, values: np.ndarray) -> None:
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
            self.num_not_finite += values.size - finite.size
            values = finite
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}" if self.low <= self.high else "no number"


@dataclass
class Inspection:
    """What one pass over all episodes found."""

    recording: Recording
    ranges: dict[str, Range] = field(default_factory=dict)  # by column
    num_terminated: int = 0
    paths: list[np.ndarray] = field(default_factory=list)  # of a sample of episodes, each [N, 2]
    frames: list[np.ndarray] = field(default_factory=list)  # of one episode, each [H, W, C]
    validation: Path | None = None

    def rows(self) -> list[list[str]]:
        """One row for each column: its name in the file, what it is, shape, dtype and range."""
        return [
            [name, role, str(column.shape), str(column.dtype), str(self.ranges.get(name, ""))]
            for name, (role, column) in columns_of(self.recording).items()
        ]

    def facts(self) -> dict[str, str]:
        """What is known of the whole, by name."""
        lengths, count = self.recording.lengths, len(self.recording.lengths)
        facts = {
            "layout": self.recording.layout,
            "episodes": f"{count:,}",
            "steps": f"{self.recording.num_steps:,}",
            "steps of an episode": f"{lengths.min()} / {np.median(lengths):g} / {lengths.max()} "
            "(shortest, median, longest)",
            "episodes that terminate": f"{self.num_terminated:,} "
            f"({100 * self.num_terminated / count:.3g} %); the others end by a time limit or "
            "where the recording does",
        }
        if not self.recording.keys.rewards:
            facts["rewards"] = "none: read as zero"
        if self.validation is not None:
            facts["validation set"] = f"{self.validation.name}, beside it"
        return facts

    def warnings(self) -> list[str]:
        """What no agent can learn from, one line each."""
        return [
            f"{name} holds {found.num_not_finite:,} numbers that are NaN or infinite"
            for name, found in self.ranges.items()
            if found.num_not_finite
        ]

    def to_json(self) -> dict[str, Any]:
        lengths = self.recording.lengths
        return {
            "path": self.recording.label, "layout": self.recording.layout,
            "episodes": len(lengths), "steps": self.recording.num_steps,
            "lengths": {
                "min": int(lengths.min()), "median": float(np.median(lengths)),
                "max": int(lengths.max()),
            },
            "terminated": self.num_terminated / len(lengths),
            "validation": str(self.validation) if self.validation else None,
            "columns": {
                name: {
                    "role": role, "shape": list(column.shape), "dtype": str(column.dtype),
                    **_range_json(self.ranges.get(name)),
                }
                for name, (role, column) in columns_of(self.recording).items()
            },
        }  # fmt: skip


def _range_json(found: Range | None) -> dict[str, Any]:
    if found is None or found.low > found.high:
        return {"min": None, "max": None, "not_finite": found.num_not_finite if found else 0}
    return {"min": found.low, "max": found.high, "not_finite": found.num_not_finite}


def columns_of(recording: Recording) -> dict[str, tuple[str, Column]]:
    """The columns by their name in the file, each with what it is."""
    keys = recording.keys
    found = {
        key: (f"observations/{part}".rstrip("/"), recording.obs[part])
        for part, key in keys.obs.items()
    }
    found[keys.actions] = ("actions", recording.actions)
    number, flag = Column((), np.dtype(np.float64)), Column((), np.dtype(bool))
    for role, key, column in (
        ("rewards", keys.rewards, number), ("terminated", keys.terminated, flag),
    ):  # fmt: skip
        if key:
            found[key] = (role, column)
    return {**found, **{name: ("-", column) for name, column in recording.extra.items()}}


def inspect(recording: Recording, logger: Logger) -> Inspection:
    """Reads every episode once. `logger` shows the progress."""
    found = Inspection(recording, validation=validation_of(recording))
    count = len(recording.lengths)
    sampled = {int(index) for index in np.linspace(0, count - 1, NUM_PATHS)}
    filmed = int(np.argmax(recording.lengths == np.median(recording.lengths)))
    with logger.progress("inspect", count) as progress:
        for index, episode in enumerate(recording.episodes(extra=True)):
            for name, values in _values(recording, episode).items():
                found.ranges.setdefault(name, Range()).add(values)
            found.num_terminated += bool(episode.terminated[-1:].any())
            if index in sampled:
                found.paths.extend(_path(episode))
            if index == filmed:
                found.frames = _frames(episode)
            progress.advance()
    return found


def _values(recording: Recording, episode: Episode) -> Mapping[str, np.ndarray]:
    """The numbers of an episode by the name of their column."""
    keys = recording.keys
    named = {key: episode.obs[part] for part, key in keys.obs.items()}
    named[keys.actions] = episode.actions
    if keys.rewards:
        named[keys.rewards] = episode.rewards
    if keys.terminated:
        named[keys.terminated] = episode.terminated
    return {name: part for name, part in {**named, **episode.extra}.items()
            if part.dtype.kind in NUMERIC_KINDS}  # fmt: skip


def _path(episode: Episode) -> list[np.ndarray]:
    """The first two numbers of the first vector of an observation, at most MAX_POINTS."""
    for part in episode.obs.values():
        if part.ndim == 2 and part.shape[1] >= 2:
            step = -(-len(part) // MAX_POINTS)
            return [np.asarray(part[::step, :2], np.float64)]
    return []


def _frames(episode: Episode) -> list[np.ndarray]:
    """Frames from the first to the last of the first observation that is a picture."""
    for part in episode.obs.values():
        if part.ndim == 4 and (pictures := _channels_last(part)) is not None:
            chosen = np.linspace(0, len(part) - 1, min(NUM_FRAMES, len(part))).astype(int)
            return list(pictures[chosen])
    return []


def _channels_last(part: np.ndarray) -> np.ndarray | None:
    """Pictures `[N, H, W, 1 or 3]`, or None where the array holds none; of stacked ones, the
    latest."""
    if part.shape[1] < part.shape[3]:
        part = np.moveaxis(part, 1, -1)
    if min(part.shape[1:3]) < MIN_SIDE:
        return None
    return part[..., -3:] if part.shape[3] % 3 == 0 else part[..., -1:]


def validation_of(recording: Recording) -> Path | None:
    """OGBench's validation set, which lies beside the file, if it is there."""
    path = Path(recording.label)
    found = path.with_name(f"{path.stem}-val{path.suffix}")
    return found if path.suffix == ".npz" and found.is_file() else None
