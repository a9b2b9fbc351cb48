"""Replay buffers in files that are mapped into memory: the operating system reads what is used, and
keeps it as long as memory is free."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ami_agent.hardware import format_bytes
from ami_agent.storage.files import writing
from modules.types import ConfigError

PROCESS_MADVISE = 440  # the number of the system call; on all architectures of Linux
MAX_RANGES = 1024  # of one call
MIN_ROWS = 8
"""Rows from which on they are requested at once, as one call takes as long as a few reads."""


class MappedStorage:
    """Tensors in files without a name in a folder, which are gone when the process ends, however it
    ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._advise = _process_madvise() if sys.platform == "linux" else None

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """ConfigError where the disk has no room. It is reserved, as a mapped file that can't grow
        would kill the process."""
        size = prod(shape) * dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=dtype)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                self._reserve(file.fileno(), size)
                mapped = mmap.mmap(file.fileno(), size)
        if self._advise is not None:  # no neighbouring pages are read: `prefetch` names all
            mapped.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)

    def prefetch(self, part: Tensor, index: Tensor) -> None:
        """Starts to read rows of `part` `[rows, B, ...]`, by their indices into rows * B, all at
        the same time: one after the other, each would wait for the disk."""
        if self._advise is None or index.numel() < MIN_ROWS or part.device.type != "cpu":
            return
        row_bytes = part[0, 0].nbytes
        first = part.data_ptr() + index.flatten().numpy() * row_bytes
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        ranges = np.stack([start, first + row_bytes - start], 1).astype(np.uint64)
        for group in np.split(ranges, range(MAX_RANGES, len(ranges), MAX_RANGES)):
            if not self._advise(np.ascontiguousarray(group)):
                self._advise = None  # the kernel does not allow it
                return

    def _reserve(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            disk = os.statvfs(self.folder)
            raise ConfigError(
                f"a replay buffer in a file needs {format_bytes(size)} of disk, and {self.folder} "
                f"has {format_bytes(disk.f_bavail * disk.f_frsize)} free: choose another --out, or "
                "keep fewer steps (--data.steps)"
            ) from None


def _process_madvise() -> Callable[[np.ndarray], bool] | None:
    """A function that advises the kernel that ranges `[N, 2]` (address, bytes) of this process will
    be needed, and returns whether it could; None where there is none."""
    with suppress(OSError, AttributeError):
        call, process = ctypes.CDLL(None, use_errno=True).syscall, os.pidfd_open(os.getpid())
        call.restype = ctypes.c_long

        def advise(ranges: np.ndarray) -> bool:
            done = call(
                PROCESS_MADVISE, process, ctypes.c_void_p(ranges.ctypes.data),
                ctypes.c_size_t(len(ranges)), mmap.MADV_WILLNEED, 0,
            )  # fmt: skip
            return bool(done >= 0)

        return advise
    return None
