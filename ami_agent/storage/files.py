"""Safe access to files that others may have made, or may use at the same time.

Reading: only regular files of a bounded size, and only JSON of a bounded depth with bounded
numbers; an error is a ConfigError of one line that names the file and what is expected. Writing:
whole or not at all, with the permissions of the umask. Locks: a folder has one process that writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from modules.types import ConfigError

MIB, GIB = 2**20, 2**30
JSON_LIMIT, LOG_LIMIT, HEADER_LIMIT = 16 * MIB, 64 * MIB, 4 * MIB
"""Bytes, at most, of a JSON file, of a file of JSON lines, and of a safetensors header."""
MAX_DEPTH = 64  # of nested lists and objects
MAX_INTEGER = 2**63
MAX_SPARSENESS = 100  # bytes of a file, at most, per byte that it takes on the disk
DRAFT = ".unfinished"
STALE = 3600.0  # seconds after which a draft is taken to be that of a killed process
LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks, as some network file systems are."""
NO_READER = "it is a socket, or a pipe without a reader"


def open_regular(path: Path, append: bool = False) -> BinaryIO:
    """The file, open for reading; to `append` to it, it is created if need be. ConfigError where it
    is missing, not readable, or a folder, a pipe, a socket or a device, which could block for ever;
    OSError where nothing can be appended, as to a symbolic link: what it leads to is not ours."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW if append else os.O_RDONLY
    try:
        with suppress(FileNotFoundError):
            _check_regular(path, os.stat(path))  # before it is opened
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        _check_regular(path, os.fstat(handle))
        return os.fdopen(handle, "ab" if append else "rb")
    except ConfigError:
        raise
    except OSError as error:
        if append:
            raise
        if isinstance(error, FileNotFoundError):
            raise ConfigError(f"{path} is missing") from None
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from None
    except ValueError as error:  # the name is not valid for a file
        raise ConfigError(f"{str(path)!r} can't be read: {error}") from None


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise ConfigError(f"{path} is {kind}; it must be a regular file")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes."""
    with open_regular(path) as file, one_line_errors(path, "can't be read"):
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ConfigError(f"{path} has more than {limit // MIB} MiB, the limit for such a file")
    return found


def read_json(path: Path, problem: str = "is not readable as JSON") -> Any:
    """The content of a JSON file; ConfigError for NaN, or a name that is twice in an object.
    `problem`: what the error says of the file."""
    data = read_bytes(path, JSON_LIMIT)
    try:
        return parse_json(data)
    except ValueError as error:
        raise ConfigError(f"{path} {problem} ({error})") from None


def parse_json(data: bytes) -> Any:
    """Parses JSON; ValueError where it is not JSON or exceeds the bounds."""
    try:
        found = json.loads(
            data.decode("utf-8-sig"), parse_constant=_parse_number, parse_int=_parse_integer,
            parse_float=_parse_number, object_pairs_hook=_parse_object,
        )  # fmt: skip
        _check_depth(found)
        json.dumps(found, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except RecursionError:
        raise ValueError(f"lists and objects are nested deeper than {MAX_DEPTH}") from None
    except MemoryError:
        raise ValueError("it needs more memory than there is") from None
    return found


def _parse_integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]} is too large: it must be less than 2**63")
    return int(digits)


def _parse_number(digits: str) -> float:
    if not digits[-1].isdigit():
        raise ValueError(f"{digits} is not a JSON number")  # NaN or Infinity
    if not isfinite(float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return float(digits)


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (duplicate, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {duplicate!r} occurs twice in an object")
    return found


def _check_depth(found: Any, depth: int = 0) -> None:
    if isinstance(found, (dict, list)):
        if depth == MAX_DEPTH:
            raise RecursionError
        for part in found.values() if isinstance(found, dict) else found:
            _check_depth(part, depth + 1)


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` whose stage begins with `stage`, oldest first. Lines that are
    not valid, and values that are not numbers, are skipped."""
    found, prefix = [], json.dumps(stage)[:-1].encode()
    for line in read_bytes(path, LOG_LIMIT).split(b"\n"):
        if prefix in line:
            with suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict) and str(row.get("stage")).startswith(stage):
                    numbers = {n: v for n, v in row.items() if v is None or is_number(v)}
                    found.append({"stage": row["stage"], **numbers})
    return found


def is_number(value: object) -> bool:
    """Whether the value is a finite number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, by name. Only its header is read, and
    checked against the length of the file; ConfigError where it is not valid."""
    with open_regular(path) as file, one_line_errors(path, "is not a whole safetensors file"):
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise ConfigError(
                f"{path} is not a whole safetensors file (a header of {length} bytes)"
            )
        found = os.fstat(file.fileno())
        size, memory = found.st_size, _machine_memory()
        if size > memory:
            raise ConfigError(
                f"{path} has {size / GIB:.1f} GiB, and this machine has {memory / GIB:.1f} GiB of "
                "memory"
            )
        if size > MAX_SPARSENESS * max(512 * found.st_blocks, MIB):
            raise ConfigError(
                f"{path} has {size / GIB:.1f} GiB, of which hardly any is on the disk"
            )
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def read_tensors(path: Path, names: Sequence[str], device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of these names, on `device`; ConfigError where its memory is too small."""
    with (
        one_line_errors(path, "can't be read into memory"),
        safe_open(path, framework="pt", device=str(device)) as found,
    ):
        return {name: found.get_tensor(name) for name in names}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open_regular(path) as file, one_line_errors(path, "can't be read"):
        digest = hashlib.sha256()
        while chunk := file.read(MIB):
            digest.update(chunk)
        return digest.hexdigest()


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def one_line_errors(path: Path, what: str = "does not fit its settings") -> Iterator[None]:
    """Any exception of the block, which reads `path`, becomes a ConfigError of one line."""
    try:
        yield
    except ConfigError as error:
        if str(path.parent) in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # data from any source can fail anywhere
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{path} {what} ({reason[:300]})") from error


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises ConfigError where a tensor of that file holds NaN or infinity."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ConfigError(f"{path}: {name} holds NaN or infinity; its numbers must be finite")


class NotWritten(OSError):
    """A file could not be written; the previous one is unchanged."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, an error of the file system becomes NotWritten, which names `path`."""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        reason = NO_READER if error.errno == errno.ENXIO else error.strerror or error
        raise NotWritten(f"{path} was not written: {reason}") from error


@contextmanager
def replacing(path: Path, follow_links: bool = False) -> Iterator[Path]:
    """Yields a new empty file beside `path`, which replaces `path` when the block ends, and is
    removed if the block raises. A pipe that has a reader, a device, and a file in a read-only
    folder are written directly. Raises NotWritten.

    A symbolic link is replaced as a file is, so that a run folder of a stranger can't lead to other
    files; to `follow_links`, where the user named the path itself, writes what the link leads to.
    """
    target = Path(os.path.realpath(path)) if follow_links else path
    # not after the target, whose name may be as long as a name can be
    name = f".{secrets.token_hex(8)}.{os.getpid()}.{_host()}{DRAFT}"
    draft = target.with_name(name)
    try:
        with writing(path):
            mode = 0
            with suppress(FileNotFoundError):
                # raises for a loop of links
                mode = os.stat(path, follow_symlinks=follow_links).st_mode
            is_replaced = stat.S_ISREG(mode) or stat.S_ISLNK(mode)
            if mode and not (is_replaced and os.access(target.parent, os.W_OK)):
                # fails for a pipe without a reader, which would be waited for
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                handle = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
                try:
                    yield path
                finally:
                    os.close(handle)
                return
            draft.touch(0o666, exist_ok=False)
            yield draft
            draft.replace(target)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, follow_links: bool = False) -> None:
    """Raises NotWritten. `follow_links`: as in `replacing`."""
    with replacing(path, follow_links) as draft:
        draft.write_bytes(data)


def write_text(path: Path, text: str, follow_links: bool = False) -> None:
    """Writes UTF-8, surrogates (of file names) as escapes. Raises NotWritten. `follow_links`: as in
    `replacing`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), follow_links)


def clean(folder: Path) -> None:
    """Removes the drafts that killed processes left in a folder: of this host at once, of others
    when they are stale."""
    for draft in folder.glob(f".*{DRAFT}"):
        with suppress(OSError):
            if draft.is_file() and (
                _is_orphan(draft) or time.time() - draft.stat().st_mtime > STALE
            ):
                draft.unlink()


def _host() -> str:
    """What tells this host from others in the name of a draft."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_orphan(draft: Path) -> bool:
    """Whether the process of this host that made the draft has ended."""
    found = re.fullmatch(rf"\.\w+\.(\d{{1,9}})\.{_host()}{re.escape(DRAFT)}", draft.name)
    if not found or os.name != "posix":  # elsewhere a signal 0 ends the process
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def remove_folder(folder: Path) -> None:
    """Removes a folder as far as possible; what is none is left, as `rmtree` waits for a pipe."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


_held: dict[Path, int] = {}  # file descriptors by the folders that this process has locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, this process has the lock on the folder, which is created if need be; it
    can take it again. The operating system releases the lock of a killed process. Raises
    ConfigError naming another process that has it. It has no effect on file systems without locks;
    NFS has them from version 3 on."""
    path = Path(os.path.realpath(folder))
    if path in _held:
        yield
        return
    with writing(folder):
        created = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        _held[path] = descriptor = _acquire(folder, path / LOCK)
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
    """The descriptor of the locked file, in which process and host stand for other processes."""
    while True:
        with writing(lock):  # not through a link: the lock is written, and may be anyone's
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _check_regular(lock, os.fstat(descriptor))
            if not _lock(descriptor):
                owner = _owner(descriptor)
                raise ConfigError(
                    f"{folder} is in use by {owner}: wait for it, or choose another --out"
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    with suppress(OSError):  # the lock holds on a full disk too
                        os.ftruncate(descriptor, 0)
                        owner_facts = {"pid": os.getpid(), "host": socket.gethostname()}
                        os.write(descriptor, json.dumps(owner_facts).encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed the file in the meantime


def _lock(descriptor: int) -> bool:
    """Whether the lock was free, and is taken now."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


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


if os.name == "posix":
    os.register_at_fork(after_in_child=_close_in_child)


def not_a_run(run: Path, missing: str) -> ConfigError:
    """The error for a place that is no run folder, as the file `missing` is not there; it names a
    run that was probably meant."""
    reason = f"{run} is not a run folder: it has no {missing}"
    runs: list[Path] = []
    with suppress(OSError, ValueError):  # the name may be that of nothing
        if run.is_file():
            reason, runs = f"{run} is a file; a run folder is needed", [run.parent]
        for folder in (run, Path("runs") / run):
            runs += [folder, *sorted(folder.iterdir() if folder.is_dir() else ())]
        runs = [folder for folder in runs if (folder / "config.json").is_file()]
    return ConfigError(reason + (f" (perhaps you meant {runs[0]}?)" if runs else ""))
