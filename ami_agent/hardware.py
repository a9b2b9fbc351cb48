"""Memory and processor cores of this machine, and errors of allocations that failed and of
operations that a device lacks. `threads.py` chooses the number of threads."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from modules.types import ConfigError

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of a control group, its limit and its use, in versions 2 and 1."""


def available_memory() -> int | None:
    """Bytes that this process can still allocate, within what the machine, its control groups and
    the limit on its address space leave; None where they are not known (known on Linux only)."""
    limits = [*_machine(), *_control_groups(), *_address_space()]
    return max(0, min(limits)) if limits else None


def num_cores() -> int:
    """Processor cores that this process may use."""
    known = sys.platform == "linux"
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min([count, *map(int, _quotas())]))


def _quotas() -> Iterator[float]:
    """Cores that the control group of this process, and every group above it, may use; cgroups
    version 2 and version 1."""
    for folder in _own_groups("cpu"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text()
            if int(quota) > 0:  # -1: no limit
                yield int(quota) / int((folder / "cpu.cfs_period_us").read_text())


def _numbers(path: Path, name: str) -> Iterator[int]:
    """The number of that name in a file of names and numbers; none where there is none."""
    with suppress(OSError):
        found = re.search(rf"^{name}\s+(\d+)", path.read_text(), re.M)
        if found:
            yield int(found[1])


def _machine() -> Iterator[int]:
    yield from (1024 * kib for kib in _numbers(Path("/proc/meminfo"), "MemAvailable:"))


def _control_groups() -> Iterator[int]:
    """Bytes left in the control group of this process, and in every group above it."""
    for folder in _own_groups("memory"):
        for limit, usage in MEMORY_FILES:
            with suppress(OSError, ValueError):  # no such file, or "max"
                free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                yield free + sum(_numbers(folder / "memory.stat", "inactive_file"))


def _own_groups(controller: str) -> Iterator[Path]:
    """The folders of this process' control group, and of every group above it."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                root = CGROUPS / controller if controllers else CGROUPS
                here = root / name.lstrip("/")
                yield from (path for path in (here, *here.parents) if path.is_relative_to(root))


def _address_space() -> Iterator[int]:
    if sys.platform != "linux":
        return
    import resource  # not on Windows

    max_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if max_bytes != resource.RLIM_INFINITY:
        sizes = _numbers(Path("/proc/self/status"), "VmSize:")
        yield from (max_bytes - 1024 * kib for kib in sizes)


def check_memory(needed: float, what: str, smaller: str) -> None:
    """Raises ConfigError where `what` needs more bytes than are free; `smaller` names the settings
    to decrease."""
    free = available_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} would take about {format_bytes(needed)}, but {format_bytes(free)} of memory "
            f"are free: make {smaller} smaller"
        )


def format_bytes(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


ADVICE = (
    "make a batch (--*.optim.batch-size), the layers (--*.hidden), the planner "
    "(--planner.num-proposals or .num-samples, .horizon), the number of environments "
    "(--collect.num-envs, --distill-policy.num-envs) or the replay buffer (--collect.steps, "
    "--actor-critic.steps) smaller"
)


def allocation_failure(error: BaseException) -> str:
    """A message about an allocation that failed; empty for an error of another kind."""
    text = " ".join(str(error).split())
    failed = isinstance(error, MemoryError) or re.search(
        r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory", text
    )
    if not failed:
        return ""
    requested = re.search(r"(?:[Tt]ried to allocate|allocate) ([\d.]+ ?\w*)", text)
    device_text = "the GPU has" if "CUDA" in text else "there is"
    amount_text = f" to allocate {requested[1]}" if requested else ""
    return f"more memory was needed than {device_text}{amount_text}: {ADVICE}"


def missing_operation(error: BaseException) -> str:
    """A message about an operation that a device does not have; empty for an error of another
    kind."""
    found = re.search(r"aten::[\w.]+", str(error))
    if not isinstance(error, NotImplementedError) or not found:
        return ""
    fallback = (
        "PYTORCH_ENABLE_MPS_FALLBACK=1 computes it on the CPU, " if "MPS" in str(error) else ""
    )
    return f"the device has no operation {found[0]}: {fallback}--device cpu has all operations"
