"""Atomic writing: files are written whole or not at all, with the permissions of the umask."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAFT = ".unfinished"
STALE = 3600.0
"""Seconds after which a draft is taken to be that of a killed process."""


class NotWritten(OSError):
    """A file could not be written; the previous one is unchanged."""


def not_written(path: Path, error: OSError) -> NotWritten:
    """The error with the path that was to be written."""
    return NotWritten(f"{path} was not written: {error.strerror or error}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new empty file beside `path`, which replaces `path` when the block ends, and is
    removed if the block raises. Two processes that write the same path don't disturb each other.

    Symbolic links are kept. A path that is no regular file, such as a pipe, and a file in a
    read-only folder are written directly. Raises NotWritten."""
    target = path.resolve()
    draft = target.with_name(f".{secrets.token_hex(8)}{DRAFT}")  # the name may be as long as it can
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
    """Writes UTF-8; surrogates (of file names that are no UTF-8) become escapes. Raises
    NotWritten."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def clean(folder: Path) -> None:
    """Removes the drafts that killed processes left in a folder."""
    for draft in folder.glob(f".*{DRAFT}"):
        with suppress(OSError):
            if draft.is_file() and time.time() - draft.stat().st_mtime > STALE:
                draft.unlink()
