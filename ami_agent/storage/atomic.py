"""Files are written whole or not at all, with the permissions that the umask gives."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAFT = ".unfinished"
STALE = 3600.0
"""Seconds after which a draft belongs to a process that was killed."""


class NotWritten(OSError):
    """The disk did not take a file; what stood there before is as it was."""


def not_written(path: Path, error: OSError) -> NotWritten:
    """The same error with the path that was to be written."""
    return NotWritten(f"{path} was not written: {error.strerror or error}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file of its own beside `path`, which takes the place of `path` when the block ends
    and is removed where it fails. Two processes that write the same path don't meet.

    Links stay links; what is no file, as a pipe, and a file in a closed folder are written as they
    are. Raises NotWritten."""
    target = path.resolve()
    draft = target.with_name(f".{secrets.token_hex(8)}{DRAFT}")  # a name may have no room for more
    try:
        if target.exists() and not (target.is_file() and os.access(target.parent, os.W_OK)):
            yield target
            return
        draft.touch(0o666, exist_ok=False)
        yield draft
        draft.replace(target)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise not_written(path, error) from error
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Raises NotWritten."""
    with replacing(path) as draft:
        draft.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """As UTF-8, with what UTF-8 can't hold (bytes of a file name) written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def clean(folder: Path) -> None:
    """Removes the drafts that killed processes left in a folder."""
    for draft in folder.glob(f".*{DRAFT}"):
        with suppress(OSError):
            if draft.is_file() and time.time() - draft.stat().st_mtime > STALE:
                draft.unlink()
