"""The settings of an optimizer, and how memory is kept for its updates."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.types import BATCH, FRACTION, RATE, STEPS, ConfigError, Settings


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """AdamW with linear warm-up and cosine decay of the learning rate."""

    steps: Annotated[int, STEPS]
    """Updates."""
    batch_size: Annotated[int, BATCH]
    lr: Annotated[float, RATE] = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, (0, 1_000_000)] = 50
    """Updates over which the learning rate rises to `lr`."""
    grad_clip_norm: Annotated[float, (1e-6, 1e12)] = 2.0
    """Norm to which larger gradients are clipped."""
    weight_decay: Annotated[float, RATE] = 0.01
    final_lr_fraction: Annotated[float, FRACTION] = 0.0
    """Learning rate at the end, as a fraction of `lr`."""

    def num_groups(self, group_size: int) -> int:
        """The number of groups in a batch; ConfigError if it is not a whole number."""
        if group_size < 1 or self.batch_size % group_size:
            raise ConfigError(
                f"a batch of {self.batch_size} can't be divided into groups of {group_size}"
            )
        return self.batch_size // group_size

    def lr_at(self, step: int) -> float:
        """The learning rate of that step."""
        warmup_factor = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = (1 + cos(pi * step / self.steps)) / 2
        return (
            self.lr
            * warmup_factor
            * (self.final_lr_fraction + (1 - self.final_lr_fraction) * decay)
        )


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scales the gradients so that their norm is at most `max_norm`, and returns the norm before
    that. As `nn.utils.clip_grad_norm_`, but in host memory gradients below that are left as they
    are, without a multiplication by 1."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type != "cpu" or norm > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def tune_malloc() -> None:
    """Lets glibc keep freed memory instead of returning it to the kernel: training on images is up
    to three times slower where the memory of every batch is mapped anew."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**30)
