"""Chance as a function: a world's luck depends on its own key and on nothing else.

Keys are 64-bit words, one per world, so a world lives the same life alone and in any batch, on any
device. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The same 64 bits, as the signed number that torch's int64 knows."""
    return word - 2**64 if word >= 2**63 else word


STRIDE = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign."""
    return (word >> bits) & (2 ** (64 - bits) - 1)


def mix(word: Tensor) -> Tensor:
    """[...] int64 -> [...] int64 that look independent of one another."""
    word = (word ^ _shift(word, 30)) * FIRST
    word = (word ^ _shift(word, 27)) * SECOND
    return word ^ _shift(word, 31)


def keys_of(seeds: Sequence[int], device: torch.device) -> Tensor:
    """One key per seed, [B] int64."""
    return mix(torch.tensor([_signed(s % 2**64) for s in seeds], device=device) + STRIDE)


def draw(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[B] keys -> [B, count] uniform numbers in [0, 1) and the keys for the next draw, [B]."""
    offsets = torch.arange(1, count + 2, device=keys.device) * STRIDE
    words = mix(keys[:, None] + offsets)  # [B, count + 1]
    return _shift(words[:, 1:], 40).float() / 2**24, words[:, 0]


@lru_cache
def _von_mises_table(kappa: float, device: torch.device) -> Tensor:
    """Angles at 4097 equal steps of cumulative probability."""
    angle = np.linspace(-np.pi, np.pi, 2**14 + 1)
    density = np.exp(kappa * (np.cos(angle) - 1))
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    table = np.interp(np.linspace(0, 1, 4097), below / below[-1], angle)
    return torch.tensor(table, dtype=torch.float32, device=device)


def von_mises(uniform: Tensor, kappa: float) -> Tensor:
    """Uniform [...] in [0, 1) -> angles [...] in radians, around 0."""
    table = _von_mises_table(kappa, uniform.device)
    place = uniform * 4096
    index = place.long().clamp(max=4095)
    return torch.lerp(table[index], table[index + 1], place - index)


def truncated_normal(
    uniform: Tensor, *, mean: float, std: float, low: float, high: float
) -> Tensor:
    """Uniform [...] in [0, 1) -> numbers [...] in [low, high]."""
    edges = torch.tensor([low, high], dtype=torch.float64).sub(mean).div(std)
    start, end = torch.special.ndtr(edges).tolist()
    drawn = mean + std * torch.special.ndtri(start + uniform * (end - start))
    return drawn.clamp(low, high)


def normal(uniform: Tensor) -> Tensor:
    """Uniform [...] in [0, 1) -> standard normal [...], never infinite."""
    return torch.special.ndtri(uniform.clamp(2**-25, 1 - 2**-24))
