"""Which windows of steps can be sampled from a replay buffer, and the drawing of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modules.types import ConfigError


class Windows(NamedTuple):
    """All N windows of one length, sorted by environment and time, so that the windows of each of
    E episodes are adjacent."""

    start: Tensor  # [N] index of the first observation: env * columns + rows since the oldest
    episode_bounds: Tensor  # [E + 1] index of the first window of every episode, and N
    padded: bool  # whether some windows extend beyond the end of their episode
    fraction: Tensor  # scalar: the fraction of the stored steps that lie in some window


def find_windows(
    age: Tensor, done: Tensor, length: int, since: int = 0, pad: bool = True
) -> Windows:
    """The windows of `length` steps that begin at column `since` or later. `age` and `done` `[B,
    rows]`, oldest first: the number of each observation in its episode, and whether the episode is
    done there. A window lies within its episode. If some finished episode is shorter than a window
    and `pad` is True, windows are padded: one begins at each step of every finished episode.

    No window begins at the last observation of an episode, so the starts of one episode form a run
    of adjacent columns."""
    full = torch.zeros_like(done)
    full[:, :-length] = age[:, length:] >= length
    full[:, :since] = False
    starts = _run_starts(full)
    covered = full.sum() + len(starts) * (length - 1)
    # of an episode that ends in the oldest column, no step is stored
    padded = pad and bool((done & (age >= 1) & (age < length))[:, 1:].any())
    if padded:
        complete, is_covered = full.clone(), full.clone()
        for offset in range(1, length):
            is_covered[:, offset:] |= complete[:, :-offset]
            full[:, :-offset] |= done[:, offset:] & (age[:, offset:] >= offset)
        full[:, :since] = False
        covered, starts = (is_covered | full).sum(), _run_starts(full)
    start = full.flatten().nonzero().squeeze(1)
    bounds = torch.cat([starts, start.new_tensor([full.numel()])])
    num_steps = (age[:, 1 + since :] >= 1).sum()
    fraction = covered / num_steps.clamp_min(1)
    return Windows(start, torch.searchsorted(start, bounds), padded, fraction)


def _run_starts(fits: Tensor) -> Tensor:
    """`[B, rows]` bool -> flat indices where runs of True begin; the last column is False."""
    fits = fits.flatten()
    before = torch.cat([fits.new_zeros(1), fits[:-1]])
    return (fits & ~before).nonzero().squeeze(1)


def draw_windows(
    windows: Windows, count: int, group_size: int, generator: torch.Generator
) -> Tensor:
    """`[count]` indices of windows, in groups of `group_size` from the same episode. The episode of
    a group is that of a window drawn uniformly, its windows are drawn uniformly from the episode:
    so each of them is uniform over all windows."""
    if group_size < 1 or count % group_size:
        raise ConfigError(f"{count} windows can't be drawn in groups of {group_size}")
    device, size = generator.device, (count // group_size, group_size)
    leader = torch.randint(len(windows.start), (size[0], 1), generator=generator, device=device)
    fraction = torch.rand(size, dtype=torch.float64, generator=generator, device=device)
    episode = torch.searchsorted(
        windows.episode_bounds, leader.to(windows.episode_bounds.device), right=True
    )
    first, last = windows.episode_bounds[episode - 1], windows.episode_bounds[episode]
    return (first + (fraction.to(first.device) * (last - first)).long()).flatten()


def draw_future(windows: Windows, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """For windows `[count]`, by index: windows of the same episode, each drawn uniformly from the
    given one to the last."""
    fraction = torch.rand(len(drawn), dtype=torch.float64, generator=generator)
    ends = windows.episode_bounds[torch.searchsorted(windows.episode_bounds, drawn, right=True)]
    return drawn + (fraction.to(drawn.device) * (ends - drawn)).long()
