"""A lock on a folder: the operating system holds it, so it is released when a process is killed."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ami_agent.storage.atomic import not_written
from modules.types import ConfigError

LOCK = ".lock"
UNSUPPORTED_ERRORS = {"ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL"}
"""Errors of file systems without locks, as some network file systems are."""

_held: dict[Path, int] = {}  # file descriptors by the folders that this process has locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, this process has the lock on the folder, which is created where it does not
    exist. The same process can take the lock again.

    Raises ConfigError naming the process that has the lock, if it is another. On file systems
    without locks it has no effect; `flock` works on local disks, and on NFS from version 3 on with
    its lock service."""
    path = folder.resolve()
    if path in _held:
        yield
        return
    try:
        created = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder, path / LOCK)
    except OSError as error:
        raise not_written(folder, error) from error
    _held[path] = descriptor
    try:
        yield
    finally:
        del _held[path]
        with suppress(OSError):
            (path / LOCK).unlink()  # before another process can lock it
        os.close(descriptor)
        if created:
            with suppress(OSError):
                path.rmdir()  # if it is empty


def _acquire(folder: Path, lock: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            acquired = _lock(descriptor)
            if acquired and _is_same_file(descriptor, lock):
                _write_owner(descriptor)
                return descriptor
            if not acquired:
                owner = _owner(descriptor)
                raise ConfigError(
                    f"{folder} is in use by {owner}: wait for it, or choose another --out"
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed the file in the meantime


def _is_same_file(descriptor: int, lock: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    """Writes process and host into the file, for the message to other processes."""
    with suppress(OSError):  # the lock holds on a full disk too
        os.ftruncate(descriptor, 0)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.write(descriptor, owner.encode())


def _owner(descriptor: int) -> str:
    """The process and host in the file, in words of a bounded length."""
    try:
        owner = json.loads(os.read(descriptor, 4096))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:64]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _close_in_child() -> None:
    """A forked child shares its parent's lock, and would hold it after the parent has ended."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if sys.platform == "win32":
    import msvcrt

    LOCK_OFFSET = 2**30
    """The byte that is locked: far beyond those that other processes read."""

    def _lock(descriptor: int) -> bool:
        """Whether the lock was free, and is taken now."""
        os.lseek(descriptor, LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import errno
    import fcntl

    os.register_at_fork(after_in_child=_close_in_child)

    def _lock(descriptor: int) -> bool:
        """Whether the lock was free, and is taken now."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if errno.errorcode.get(error.errno or 0) not in UNSUPPORTED_ERRORS:
                raise
        return True
