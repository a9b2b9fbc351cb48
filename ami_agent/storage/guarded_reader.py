"""Safe reading of files from any source. Only regular files of a bounded size are read, and only
JSON of a bounded depth with bounded numbers. An error is a ConfigError of one line that names the
file and what is expected."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modules.types import ConfigError

MIB, GIB = 2**20, 2**30
JSON_LIMIT, LOG_LIMIT, HEADER_LIMIT = 16 * MIB, 64 * MIB, 4 * MIB
"""Bytes, at most, of a JSON file, of a file of JSON lines, and of a safetensors header."""
MAX_DEPTH = 64
"""Of nested lists and objects."""
MAX_INTEGER = 2**63
MAX_SPARSENESS = 100
"""Bytes of a file, at most, per byte that it takes on the disk."""


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading. ConfigError where it is missing, not readable, or a folder, a
    pipe, a socket or a device, which could block for ever."""
    try:
        _check_regular(path, os.stat(path))  # before it is opened
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        _check_regular(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from None
    except ValueError as error:  # the name is not valid for a file
        raise ConfigError(f"{str(path)!r} can't be read: {error}") from None


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise ConfigError(f"{path} is {kind}; it must be a regular file")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes."""
    with open_regular(path) as file, _as_one_line(path, "can't be read"):
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ConfigError(f"{path} has more than {limit // MIB} MiB, the limit for such a file")
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file; ConfigError where a number is not finite or a name is twice in an
    object."""
    return parse_json(read_bytes(path, JSON_LIMIT), path)


def parse_json(data: bytes, source: Path) -> Any:
    """Parses the bytes of a JSON file; `source` names it in the message."""
    try:
        return decode_json(data)
    except ValueError as error:
        raise ConfigError(f"{source} is not readable as JSON: {error}") from None


def decode_json(data: bytes) -> Any:
    """Parses JSON; ValueError where it is not JSON or exceeds the bounds."""
    try:
        found = json.loads(
            data.decode("utf-8-sig"), parse_constant=_reject_constant, parse_int=_parse_integer,
            parse_float=_parse_number, object_pairs_hook=_parse_object,
        )  # fmt: skip
        _check_depth(found)
        json.dumps(found, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except RecursionError:
        raise ValueError(f"lists and objects are nested deeper than {MAX_DEPTH}") from None
    except MemoryError:
        raise ValueError("it needs more memory than there is") from None
    return found


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _parse_integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]} is too large: it must be less than 2**63")
    return int(digits)


def _parse_number(digits: str) -> float:
    found = float(digits)
    if not isfinite(found):
        raise ValueError(f"the number {digits[:20]} is too large")
    return found


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (duplicate, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {duplicate!r} occurs twice in an object")
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(MAX_DEPTH + 1):
        containers = [part for part in level if isinstance(part, (dict, list))]
        if not containers:
            return
        level = [p for c in containers for p in (c.values() if isinstance(c, dict) else c)]
    raise RecursionError


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` whose stage begins with `stage`, oldest first. Lines that are
    not valid, and values that are not numbers, are skipped."""
    found, prefix = [], json.dumps(stage)[:-1].encode()
    for line in read_bytes(path, LOG_LIMIT).split(b"\n"):
        if prefix in line:
            with suppress(ConfigError):
                row = parse_json(line, path)
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
    with open_regular(path) as file, _as_one_line(path, "is not a whole safetensors file"):
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise ValueError(f"a header of {length} bytes")
        _check_size(path, os.fstat(file.fileno()))
    with (
        _as_one_line(path, "is not a whole safetensors file"),
        safe_open(path, framework="pt") as found,
    ):
        return {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118


def read_tensors(path: Path, device: torch.device | str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, on `device`; ConfigError where its memory is too
    small."""
    names = [name for name in tensor_shapes(path) if name.startswith(prefix)]
    with (
        _as_one_line(path, "can't be read into memory"),
        safe_open(path, framework="pt", device=str(device)) as found,
    ):
        return {name: found.get_tensor(name) for name in names}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open_regular(path) as file, _as_one_line(path, "can't be read"):
        digest = hashlib.sha256()
        while chunk := file.read(MIB):
            digest.update(chunk)
        return digest.hexdigest()


def _check_size(path: Path, found: os.stat_result) -> None:
    """Raises ValueError for a file that is larger than memory, or hardly on the disk (sparse)."""
    memory = _machine_memory()
    if found.st_size > memory:
        raise ValueError(
            f"it has {found.st_size / GIB:.1f} GiB, and this machine has {memory / GIB:.1f} GiB of "
            "memory"
        )
    if found.st_size > MAX_SPARSENESS * max(512 * found.st_blocks, MIB):
        raise ValueError(f"of its {found.st_size / GIB:.1f} GiB hardly any is on the disk")


def _machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Within the block, data read from `path` are used; any exception becomes a ConfigError of one
    line."""
    try:
        yield
    except ConfigError as error:
        if str(path.parent) in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # data from any source can fail anywhere
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{path} does not fit its settings ({reason[:300]})") from error


@contextmanager
def _as_one_line(path: Path, what: str) -> Iterator[None]:
    """Any exception that a library raises about the file becomes a ConfigError of one line."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} {what} ({reason[:200]})") from None


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises ConfigError where a tensor of that file holds NaN or infinity."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ConfigError(f"{path}: {name} holds NaN or infinity; its numbers must be finite")
