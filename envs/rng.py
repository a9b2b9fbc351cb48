"""Counter-based random numbers: what an environment draws depends on its own key and on nothing
else, so an episode is the same alone and in any batch, on any device. A key is a 64-bit word; the
mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The same 64 bits as a signed number, as torch's int64 holds them."""
    return word - 2**64 if word >= 2**63 else word


INCREMENT = _signed(0x9E3779B97F4A7C15)
MULTIPLIERS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own shift copies the sign."""
    return (word >> bits) & (2 ** (64 - bits) - 1)


def splitmix64(word: Tensor) -> Tensor:
    """[...] int64 -> [...] int64 that look independent of one another."""
    word = (word ^ _shift(word, 30)) * MULTIPLIERS[0]
    word = (word ^ _shift(word, 27)) * MULTIPLIERS[1]
    return word ^ _shift(word, 31)


def keys_from_seeds(seeds: Sequence[int], device: torch.device) -> Tensor:
    """One key for each seed, [B] int64."""
    words = torch.tensor([_signed(seed % 2**64) for seed in seeds], device=device)
    return splitmix64(words + INCREMENT)


def uniform(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keys [B] -> uniform numbers [B, count] in [0, 1), and the keys [B] for the next draw."""
    offsets = torch.arange(1, count + 2, device=keys.device) * INCREMENT
    words = splitmix64(keys[:, None] + offsets)  # [B, count + 1]
    return _shift(words[:, 1:], 40).float() / 2**24, words[:, 0]


@lru_cache
def _von_mises_table(kappa: float, device: torch.device) -> Tensor:
    """Angles at 4097 equal steps of cumulative probability."""
    angle = np.linspace(-np.pi, np.pi, 2**14 + 1)
    density = np.exp(kappa * (np.cos(angle) - 1))
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    table = np.interp(np.linspace(0, 1, 4097), cumulative / cumulative[-1], angle)
    return torch.tensor(table, dtype=torch.float32, device=device)


def von_mises(u: Tensor, kappa: float) -> Tensor:
    """Uniform [...] in [0, 1) -> angles [...] in radians, around 0."""
    table = _von_mises_table(kappa, u.device)
    position = u * 4096
    index = position.long().clamp(max=4095)
    return torch.lerp(table[index], table[index + 1], position - index)


def truncated_normal(u: Tensor, *, mean: float, std: float, low: float, high: float) -> Tensor:
    """Uniform [...] in [0, 1) -> numbers [...] in [low, high]."""
    edges = torch.tensor([low, high], dtype=torch.float64).sub(mean).div(std)
    start, end = torch.special.ndtr(edges).tolist()
    return (mean + std * torch.special.ndtri(start + u * (end - start))).clamp(low, high)


def normal(u: Tensor) -> Tensor:
    """Uniform [...] in [0, 1) -> standard normal [...], never infinite."""
    return torch.special.ndtri(u.clamp(2**-25, 1 - 2**-24))


def between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Uniform [...] in [0, 1) -> numbers [...] between the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def integers(u: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Uniform [...] in [0, 1) -> whole numbers [...] as floats, both bounds included."""
    return bounds[0] + ((bounds[1] - bounds[0] + 1) * u).floor()
