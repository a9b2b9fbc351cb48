"""Ways to damage the files of a run folder: by accident, or with intent. Each takes the file and a
source of random numbers."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ami_agent.storage import checkpoint

LARGE = 2**30
"""Bytes of a file that no harm can be added to."""
HUGE = ["9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "9" * 19, "1e300", "-1", "0", "2.5"]
PLAIN: list[Any] = [None, True, False, 0, -1, 2.5, 1e18, 2**62, "", "x", "\ud800", "\x1b[31m", [],
                    {}, [[]], ["a"], {"_type": "x"}, "a" * 10_000]  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value within plain data."""
    parts = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [path, *(found for name, part in parts for found in places(part, (*path, name)))]


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same with another value in one place."""
    if not path:
        return value
    copy = data.copy()
    copy[path[0]] = changed(data[path[0]], path[1:], value) if path[1:] else value
    return copy


def json_text(text: str, rng: random.Random) -> str:
    """The text of a JSON file, with one value, name or piece of it replaced."""
    data = json.loads(text)
    path = rng.choice(places(data))
    kind = rng.randrange(6)
    if kind == 0:
        return json.dumps(changed(data, path, "@@")).replace('"@@"', rng.choice(HUGE))
    if kind == 1:
        depth = rng.choice([70, 2000, 100_000])
        return json.dumps(changed(data, path, "@@")).replace('"@@"', "[" * depth + "]" * depth)
    if kind == 2 and path and isinstance(path[-1], str):
        holder = data
        for name in path[:-1]:
            holder = holder[name]
        value = holder.pop(path[-1])
        if rng.random() < 0.6:
            holder[rng.choice(["extra", path[-1] + "_", "_type", ""])] = value
        return json.dumps(data)
    if kind == 3 and path and isinstance(path[-1], str):
        again = json.dumps(path[-1])
        return text.replace(f"{again}:", f"{again}: 1, {again}:", 1)
    return json.dumps(changed(data, path, rng.choice(PLAIN)))


def json_file(path: Path, rng: random.Random) -> None:
    mutant = json_text(path.read_text(), rng)
    path.write_bytes(mutant.encode("utf-8", "surrogatepass"))
    if path.name == checkpoint.METADATA and rng.random() < 0.5:
        signed(path.parent)


def signed(folder: Path) -> None:
    """An attacker who writes the tensors can write their checksums too."""
    metadata = folder / checkpoint.METADATA
    if not metadata.is_file() or metadata.stat().st_size > LARGE:
        return  # other harm has been done to it
    try:
        whole = json.loads(metadata.read_text())
        tensors = (folder / checkpoint.TENSORS).read_bytes()
        facts = json.dumps(whole["metadata"], sort_keys=True).encode()
        whole["sha256"] = {
            checkpoint.TENSORS: hashlib.sha256(tensors).hexdigest(),
            checkpoint.METADATA: hashlib.sha256(facts).hexdigest(),
        }
        metadata.write_text(json.dumps(whole))
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        pass  # it is damaged beyond that


def tensors_header(path: Path, rng: random.Random) -> None:
    """The header says something else; the numbers are as they were."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, rest = whole[8 : 8 + size].decode(), whole[8 + size :]
    if rng.random() < 0.3:
        size = rng.choice([0, 2**31, 2**62, len(whole), size - 1, size + 9])
    else:
        header = json_text(header, rng)
        for _ in range(rng.randrange(2)):
            header = header.replace("F32", rng.choice(["F64", "I64", "BF16", "U8", "X"]), 1)
        size = len(header.encode("utf-8", "surrogatepass"))
    path.write_bytes(size.to_bytes(8, "little") + header.encode("utf-8", "surrogatepass") + rest)
    signed(path.parent)


def tensors_values(path: Path, rng: random.Random) -> None:
    """Whole tensors of other numbers, shapes, kinds or names."""
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    value = tensors[name].clone()
    odd = value.double().flatten()
    odd[:1] = rng.choice([torch.nan, torch.inf])
    types = [
        odd.to(value.dtype if value.is_floating_point() else torch.float32).view(value.shape),
        value.double(), value.to(torch.int32), value.half(), value[None], value.flatten()[:0],
        torch.zeros(3, 1, 2), value.bool(), torch.ones(()), value.flatten().repeat(2),
    ]  # fmt: skip
    if rng.random() < 0.2:
        tensors[rng.choice(["agent.", "stage_run.x", "", f"{name}.x"])] = tensors.pop(name)
    else:
        tensors[name] = rng.choice(types)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    signed(path.parent)


def any_bytes(path: Path, rng: random.Random) -> None:
    """Cut, flipped, doubled, emptied, or other bytes in their place."""
    whole = bytearray(path.read_bytes())
    kind, position = rng.randrange(6), rng.randrange(max(len(whole), 1))
    if kind == 0:
        whole = whole[:position]
    elif kind == 1:
        for _ in range(rng.choice([1, 8])):
            whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        whole = bytearray(rng.choice([b"", b"\xef\xbb\xbf", b"\x00" * 64, b"\xff\xfe{}"]))
    elif kind == 3:
        whole += rng.choice([b"}", b"\n{}", b"\x00" * 100, bytes(whole[:100])])
    elif kind == 4:
        whole[position : position + 4] = rng.choice(
            [b"\xc0\x80", b'"', b"[[[[", b"\\ud800", b"1e999"]
        )
    else:
        whole = bytearray(b"\xef\xbb\xbf") + whole
    path.write_bytes(whole)
    if rng.random() < 0.5 and "checkpoints" in path.parts:
        signed(path.parent)


def other_kind(path: Path, rng: random.Random) -> None:
    """Not a file at all, or one too large to hold."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", "/proc/self/mem", "nowhere"]))
    elif kind == 4:
        with path.open("wb") as file:
            file.truncate(2**40)  # of holes
