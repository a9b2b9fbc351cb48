"""The number of PyTorch's processor threads, which is chosen before PyTorch is imported."""

from __future__ import annotations

import os
import sys


def import_torch() -> None:
    """Imports PyTorch with one thread; threads that are added later wait for each other asleep. A
    program that has imported PyTorch keeps its settings, and `OMP_NUM_THREADS`, `MKL_NUM_THREADS`
    and `OMP_WAIT_POLICY` hold where the user sets them.

    The number is the same on every machine because results depend on it in the last digits. It is
    one because the tensors of the recipes are small: `benchmarks/threads.py` measures what a second
    thread gains where its core is free, and what it loses beside another process."""
    if "torch" in sys.modules:
        return
    policy = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = policy or "PASSIVE"
    import torch

    is_chosen = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    torch.set_num_threads(torch.get_num_threads() if is_chosen else 1)  # OpenMP reads the policy
    if policy is None:
        del os.environ["OMP_WAIT_POLICY"]  # it is no setting for other programs
