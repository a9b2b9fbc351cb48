"""The replay buffer of a run on the disk, in chunks of steps in the format of checkpoints: saving
writes only new steps. A checkpoint of the run has a head, which says how many steps count.

Steps that were recorded elsewhere are not written: they are read again from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ami_agent.storage import checkpoint, files
from modules.memory.replay_buffer import BY_ENV, ReplayBuffer
from modules.types import ConfigError

HEAD_PARTS = ("ended", "steps")
"""Parts without rows: small, and saved with every checkpoint of the run."""


def buffer_head(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """The parts of its state without rows, copied, the number of rows, and what was recorded
    elsewhere; empty without steps."""
    state = buffer.state_dict()
    parts = {name: state[name].detach().cpu().clone() for name in HEAD_PARTS}
    num_rows = torch.tensor(state["age"].shape[1])
    return (
        {**parts, "rows": num_rows, "recorded": buffer.recorded} if int(parts["steps"][0]) else {}
    )


def num_recorded(head: Mapping[str, Tensor]) -> int:
    """The steps of the buffer that were recorded elsewhere; 0 in heads of older versions."""
    return int(head["recorded"][0]) if "recorded" in head else 0


class Chunks:
    """The chunks in a folder. Row k holds observation k, and the action and interoception after it;
    the last row of a chunk, an observation alone, is the first row of the next chunk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = 0  # steps that the chunks hold

    def save(self, buffer: ReplayBuffer) -> None:
        """Writes the new steps of a buffer; raises CheckpointNotWritten."""
        state = buffer.state_dict()
        steps, num_rows = int(state["steps"][0]), state["age"].shape[1]
        self.saved = max(self.saved, int(buffer.recorded[0]))
        if steps <= self.saved:
            return
        first = max(self.saved, steps + 1 - num_rows)
        rows = torch.arange(first, steps + 1) % num_rows  # the buffer is a ring
        parts = {
            name: part.index_select(_row_axis(name), rows.to(part.device))
            for name, part in state.items()
            if name not in HEAD_PARTS
        }
        checkpoint.save(self._path(first, steps), parts, {})
        self.saved = steps

    def prune(self, heads: Sequence[Mapping[str, Tensor]]) -> None:
        """Removes the chunks that the buffer needs at none of these heads."""
        needed = [_row_range(head) for head in heads if head]
        for first, last in self._chunks():
            if not any(first <= stop and last >= start for start, stop in needed):
                files.remove_folder(self._path(first, last))

    def load(self, head: Mapping[str, Tensor], max_rows: int) -> dict[str, Tensor]:
        """The buffer at a checkpoint, or its steps from `first` on where those before were recorded
        elsewhere; ConfigError where chunks are missing, or rows too many."""
        (start, stop), num_rows = _row_range(head), int(head["rows"])
        if not 0 < num_rows <= min(max_rows, stop + 1):
            raise ConfigError(
                f"{self.folder} holds a replay buffer of {num_rows} rows, not {max_rows}"
            )
        offset = 0  # of a step's row
        if recorded := num_recorded(head):
            start = offset = max(start, recorded)
            num_rows = stop + 1 - start
        reached = start
        state: dict[str, Tensor] = {}
        for first, last in self._chunks():
            if first > reached or last <= start or first >= stop:
                continue
            parts, _ = checkpoint.load(self._path(first, last), "cpu")
            steps_here = torch.arange(max(first, start), min(last, stop) + 1)
            for name, part in parts.items():
                axis = _row_axis(name)
                if name not in state:
                    shape = (*part.shape[:axis], num_rows, *part.shape[axis + 1 :])
                    state[name] = torch.zeros(shape, dtype=part.dtype)
                rows = part.index_select(axis, steps_here - first)
                state[name].index_copy_(axis, (steps_here - offset) % num_rows, rows)
            reached = max(reached, last)
        if reached < stop:
            raise ConfigError(
                f"{self.folder} holds the replay buffer up to step {reached} of {stop}: the run "
                "can't be resumed without the rest"
            )
        if offset:
            state["first"] = torch.tensor(offset)
        return {**state, **{name: head[name].clone() for name in HEAD_PARTS}}

    def truncate(self, steps: int) -> None:
        """Removes chunks that were saved after a checkpoint of so many steps."""
        for first, last in self._chunks():
            if first >= steps:
                files.remove_folder(self._path(first, last))
        self.saved = steps

    def remove(self) -> None:
        """Removes all chunks at once: a process that is killed meanwhile leaves all or none."""
        removed = self.folder.with_name(f"{self.folder.name}.removed")
        files.remove_folder(removed)  # of a process that was killed here
        with suppress(OSError):
            self.folder.rename(removed)
        files.remove_folder(removed)

    def _chunks(self) -> list[tuple[int, int]]:
        """First and last step of each chunk, in order."""
        names = (path.name.split("-") for path in self.folder.glob("*-*"))
        valid = [n for n in names if len(n) == 2 and all(part.isdecimal() for part in n)]
        return sorted((int(first), int(last)) for first, last in valid)

    def _path(self, first: int, last: int) -> Path:
        return self.folder / f"{first:012d}-{last:012d}"


def _row_range(head: Mapping[str, Tensor]) -> tuple[int, int]:
    """The oldest and the newest step of which a buffer has a row."""
    newest = int(head["steps"][0])
    return newest + 1 - int(head["rows"]), newest


def _row_axis(name: str) -> int:
    """The axis of a part's rows: the second one, if the first is that of the environments."""
    return int(name in BY_ENV)
