"""The fuzz tests for an hour, with fresh inputs, each kind in a process whose memory is measured. A
failure prints the input; add it to that test as an `@example`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = [
    "test_fuzz_flags.py", "test_fuzz_run_dir.py", "test_fuzz_observations.py",
    "test_fuzz_spaces.py", "test_setting_bounds.py::test_no_flag_is_answered_with_a_traceback",
]  # fmt: skip
SECONDS = os.environ.get("AMI_FUZZ_SECONDS", str(3600 // len(KINDS)))
"""For each kind."""
ADDRESSES, MEMORY = 8 * 2**30, 2 * 2**30
"""Bytes: of address space, of which libraries take most, and of memory."""
WITHIN = f"""
import resource, sys, pytest
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESSES}, {ADDRESSES}))
code = pytest.main(["-s", "-p", "no:cacheprovider", sys.argv[1]])
print("KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_inputs_are_answered_within_the_memory_limit(kind, capsys):
    found = subprocess.run(
        [sys.executable, "-c", WITHIN, f"tests/{kind}"], cwd=Path(__file__).parents[1],
        env={**os.environ, "AMI_FUZZ_SECONDS": SECONDS}, capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2000:]
    *_, kibibytes = found.stdout.split()
    with capsys.disabled():
        tried = [line for line in found.stdout.splitlines() if line.endswith(" inputs")]
        print("", *tried, f"{int(kibibytes) >> 10} MiB of memory", sep="\n")
    assert int(kibibytes) * 1024 < MEMORY
