"""What recorded episodes hold: lengths, columns, ranges, ends, and a sample of them to draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ami_agent.adapters.tensors import NUMERIC_KINDS
from ami_agent.data.recording import Column, Episode, Recording
from ami_agent.logger import Logger

NUM_PATHS, MAX_POINTS, NUM_FRAMES = 40, 300, 8
"""Episodes whose first two numbers are kept for the picture, points of each, and frames of a
film strip."""
MIN_SIDE = 8
"""Pixels of a picture's side; arrays of three axes with a shorter side are numbers."""


@dataclass
class ColumnFacts:
    """A column of the file: what it is, its smallest and its largest number, and how many of its
    numbers are not finite."""

    role: str
    column: Column
    low: float = np.inf
    high: float = -np.inf
    num_not_finite: int = 0

    def add(self, values: np.ndarray) -> None:
        if values.dtype.kind not in NUMERIC_KINDS:
            return
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
            self.num_not_finite += values.size - finite.size
            values = finite
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    def cells(self) -> list[str]:
        """What it is, its shape, dtype and range, as cells of a table."""
        has_number = self.low <= self.high
        numbers = f"{self.low:.4g} to {self.high:.4g}" if has_number else "no number"
        return [self.role, str(self.column.shape), str(self.column.dtype), numbers]

    def to_json(self) -> dict[str, Any]:
        has_number = self.low <= self.high
        return {
            "role": self.role, "shape": list(self.column.shape), "dtype": str(self.column.dtype),
            "min": self.low if has_number else None, "max": self.high if has_number else None,
            "not_finite": self.num_not_finite,
        }  # fmt: skip


@dataclass
class Inspection:
    """What one pass over all episodes found."""

    recording: Recording
    columns: dict[str, ColumnFacts]
    num_terminated: int = 0
    paths: list[np.ndarray] = field(default_factory=list)  # of a sample of episodes, each [N, 2]
    frames: list[np.ndarray] = field(default_factory=list)  # of one episode, each [H, W, C]
    validation: Path | None = None

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
            f"{name} holds {column.num_not_finite:,} numbers that are NaN or infinite"
            for name, column in self.columns.items()
            if column.num_not_finite
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
            "columns": {name: column.to_json() for name, column in self.columns.items()},
        }  # fmt: skip


def inspect(recording: Recording, logger: Logger) -> Inspection:
    """Reads every episode once. `logger` shows the progress."""
    keys, columns = recording.keys.by_role(), recording.columns_by_role()
    facts = {key: ColumnFacts(role, columns[role]) for role, key in keys.items()}
    facts |= {name: ColumnFacts("-", column) for name, column in recording.extra.items()}
    found = Inspection(recording, facts, validation=validation_of(recording))
    count = len(recording.lengths)
    sampled = {int(index) for index in np.linspace(0, count - 1, NUM_PATHS)}
    filmed = int(np.argmax(recording.lengths == np.median(recording.lengths)))
    with logger.progress("inspect", count) as progress:
        for index, episode in enumerate(recording.episodes(extra=True)):
            values = episode.by_role()
            for name, column in facts.items():
                column.add(values[column.role] if column.role in values else episode.extra[name])
            found.num_terminated += bool(episode.terminated[-1:].any())
            if index in sampled:
                found.paths.extend(_path(episode))
            if index == filmed:
                found.frames = _frames(episode)
            progress.advance()
    return found


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
