"""A folder has one owner: the operating system holds the lock, and a kill releases it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ami_agent.atomic import not_written
from modules.types import UnusableInput

LOCK = ".lock"
UNABLE = {"ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL"}
"""What file systems answer that know no locks, as some network file systems."""

_held: dict[Path, int] = {}  # descriptors by the folders that this process owns


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """This process owns the folder, which is made where there is none; within it, it may ask again.

    Raises UnusableInput naming the owner where another process has it. A file system without locks
    keeps nobody out: `flock` works on local disks, and on NFS from version 3 on with its lock
    service."""
    home = folder.resolve()
    if home in _held:
        yield
        return
    try:
        made = not home.exists()
        home.mkdir(parents=True, exist_ok=True)
        handle = _locked(folder, home / LOCK)
    except OSError as error:
        raise not_written(folder, error) from error
    _held[home] = handle
    try:
        yield
    finally:
        del _held[home]
        with suppress(OSError):
            (home / LOCK).unlink()  # before others can have it
        os.close(handle)
        if made:
            with suppress(OSError):
                home.rmdir()  # where nothing came of it


def _locked(folder: Path, lock: Path) -> int:
    """A descriptor of the locked file."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = _lock(handle)
            if free and _is(handle, lock):
                _sign(handle)
                return handle
            if not free:
                raise UnusableInput(
                    f"{folder} is in use by {_owner(handle)}: wait for it, or choose another --out"
                )
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it while we waited for it


def _is(handle: int, lock: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """For whoever is refused."""
    with suppress(OSError):  # a full disk locks as well as an empty one
        os.ftruncate(handle, 0)
        told = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.write(handle, told.encode())


def _owner(handle: int) -> str:
    """As it signed; at most a few numbers and a name, whatever the file holds."""
    try:
        told = json.loads(os.read(handle, 4096))
        return f"process {int(told['pid'])} on {str(told['host'])[:64]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _forget() -> None:
    """A forked child shares its parent's lock, and would hold it after the parent's end."""
    for handle in _held.values():
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if sys.platform == "win32":
    import msvcrt

    AT = 2**30
    """The byte that is locked: far behind what others read."""

    def _lock(handle: int) -> bool:
        """Whether it could be had."""
        os.lseek(handle, AT, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
else:
    import errno
    import fcntl

    os.register_at_fork(after_in_child=_forget)

    def _lock(handle: int) -> bool:
        """Whether it could be had."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if errno.errorcode.get(error.errno or 0) not in UNABLE:
                raise
        return True
