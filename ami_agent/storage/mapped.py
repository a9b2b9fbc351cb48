"""Tensors in files that are mapped into memory: the operating system reads what is used, and keeps
it as long as memory is free."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ami_agent.resources import format_bytes
from ami_agent.storage.files import writing
from modules.memory.storage import Allocate
from modules.types import ConfigError


def zeros_in(folder: Path) -> Allocate:
    """Allocates tensors of zeros, each in a file without a name in `folder`, which is gone when the
    process ends, however it ends. ConfigError where the disk has no room for it: it is reserved, as
    a mapped file that can't grow would kill the process."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = prod(shape) * dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=dtype)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(folder, file.fileno(), size)
                mapped = mmap.mmap(file.fileno(), size)
        # windows are read at random: neighbouring pages are not needed with them
        with suppress(OSError):
            mapped.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)

    return allocate


def _reserve(folder: Path, descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = os.statvfs(folder)
        raise ConfigError(
            f"a replay buffer in files needs {format_bytes(size)} of disk, and {folder} has "
            f"{format_bytes(free.f_bavail * free.f_frsize)} free: choose another --out, or keep "
            "fewer --data.steps"
        ) from None
