"""A folder has one owner: the operating system holds the lock, and a kill releases it."""

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
"""What file systems answer that know no locks, as some network file systems."""

_held: dict[Path, int] = {}  # descriptors by the folders that this process owns


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process owns the folder, which is made where there is none; within it, it may ask again.

    Raises ConfigError naming the owner where another process has it. A file system without locks
    keeps nobody out: `flock` works on local disks, and on NFS from version 3 on with its lock
    service."""
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
            (path / LOCK).unlink()  # before others can have it
        os.close(descriptor)
        if created:
            with suppress(OSError):
                path.rmdir()  # where nothing came of it


def _acquire(folder: Path, lock: Path) -> int:
    """A descriptor of the locked file."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            acquired = _lock(descriptor)
            if acquired and _is_same_file(descriptor, lock):
                _write_owner(descriptor)
                return descriptor
            if not acquired:
                raise ConfigError(
                    f"{folder} is in use by {_owner(descriptor)}: wait for it, or choose another --out"
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it while we waited for it


def _is_same_file(descriptor: int, lock: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    """For whoever is refused."""
    with suppress(OSError):  # a full disk locks as well as an empty one
        os.ftruncate(descriptor, 0)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.write(descriptor, owner.encode())


def _owner(descriptor: int) -> str:
    """As it signed; at most a few numbers and a name, whatever the file holds."""
    try:
        owner = json.loads(os.read(descriptor, 4096))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:64]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _close_in_child() -> None:
    """A forked child shares its parent's lock, and would hold it after the parent's end."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if sys.platform == "win32":
    import msvcrt

    LOCK_OFFSET = 2**30
    """The byte that is locked: far behind what others read."""

    def _lock(descriptor: int) -> bool:
        """Whether it could be had."""
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
        """Whether it could be had."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if errno.errorcode.get(error.errno or 0) not in UNSUPPORTED_ERRORS:
                raise
        return True
