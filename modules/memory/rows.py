"""What the replay buffer keeps of a step of B environments: parts by name, and nothing that is not
a number; and which windows of steps there are to draw from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modules.types import ConfigError, Observation, Transition, as_dict

STEP_PARTS = ("action", "interoception", "terminated")
"""What is kept beside observations."""


class Parts(NamedTuple):
    """What is read of each window of T steps; of the rest, no step is."""

    obs: Collection[str] | None = None
    """Parts of the observation, by name; None: all."""
    actions: bool = True
    interoception: bool = True


ALL_PARTS, OBS_ONLY = Parts(), Parts(actions=False, interoception=False)


class Windows(NamedTuple):
    """All N windows of one length, by environment and time: those of one of E episodes lie
    together."""

    start: Tensor  # [N] where the first observation lies: env * columns + rows since the oldest
    episode_bounds: Tensor  # [E + 1] number of the first window of every episode, and N
    padded: bool  # whether some reach beyond the end of their episode
    fraction: Tensor  # scalar: the fraction of the steps kept that lie in some window


def find_windows(
    age: Tensor, done: Tensor, length: int, since: int = 0, pad: bool = True
) -> Windows:
    """Where windows of `length` steps begin, from column `since` on. Rows of B environments,
    `[B, rows]`, oldest first: the age of each in its episode, and whether the environment said
    there that the episode is done. A window lies within its episode. Where some episode is done and
    shorter than a window, windows are padded, if `pad`: one begins with each step of every episode
    that is done.

    None begins with the last observation of an episode, so episodes are runs of beginnings."""
    full = torch.zeros_like(done)
    full[:, :-length] = age[:, length:] >= length
    full[:, :since] = False
    starts = _run_starts(full)
    covered = full.sum() + len(starts) * (length - 1)
    padded = pad and bool((done & (age >= 1) & (age < length)).any())
    if padded:
        complete, is_covered = full.clone(), full.clone()
        for offset in range(1, length):
            is_covered[:, offset:] |= complete[:, :-offset]
            full[:, :-offset] |= done[:, offset:] & (age[:, offset:] >= offset)
        full[:, :since] = False
        covered, starts = (is_covered | full).sum(), _run_starts(full)
    start = full.flatten().nonzero().squeeze(1)
    bounds = torch.cat([starts, start.new_tensor([full.numel()])])
    num_steps = (age[:, 1 + since :] >= 1).sum()  # steps, each leading from a row to the next
    fraction = covered / num_steps.clamp_min(1)
    return Windows(start, torch.searchsorted(start, bounds), padded, fraction)


def _run_starts(fits: Tensor) -> Tensor:
    """`[B, rows]` bool -> where runs of True begin, flat; no row ends with True."""
    fits = fits.flatten()
    before = torch.cat([fits.new_zeros(1), fits[:-1]])
    return (fits & ~before).nonzero().squeeze(1)


def gather_rows(part: Tensor, index: Tensor) -> Tensor:
    """[rows, B, ...] and index [N, T] into rows * B -> [N, T, ...]."""
    shape = part.shape[2:]
    flat = part.view(part.shape[0] * part.shape[1], shape.numel())  # 2-D is copied far faster
    return flat.index_select(0, index.flatten().to(part.device)).view(*index.shape, *shape)


def obs_parts(obs: Observation) -> dict[str, Tensor]:
    parts = as_dict(obs).items()
    return {name if name == "obs" else f"obs.{name}": part for name, part in parts}


def from_obs_parts(parts: Mapping[str, Tensor]) -> Observation:
    """What `senses` took apart."""
    named = {name.removeprefix("obs."): part for name, part in parts.items()}
    return named.get("obs", named)


def step_parts(transition: Transition) -> dict[str, Tensor]:
    return {name: getattr(transition, name) for name in STEP_PARTS}


def can_store(kept: torch.dtype, given: torch.dtype) -> bool:
    """Whether numbers of the one type are kept exactly as those of the other: float32 as float64
    too."""
    wider = kept.is_floating_point and given.is_floating_point
    return kept == given or (wider and torch.promote_types(kept, given) == kept)


def newest_frame(name: str, part: Tensor, stack: int) -> Tensor:
    """Observations `[B, stack * F, ...]` that are stacks of frames, the latest last -> the latest
    frame `[B, F, ...]`; ConfigError where they can't be taken apart."""
    if part.shape[1] % stack:
        raise ConfigError(f"{name} {list(part.shape)} is no stack of {stack} frames")
    return part[:, part.shape[1] - part.shape[1] // stack :]


def check_stacks(
    name: str, obs: Tensor, next_obs: Tensor, first: Tensor, resets: Tensor, stack: int
) -> None:
    """Raises ConfigError where older frames could not be rebuilt from the rows before: `first`
    `[B]`, episodes that begin with `obs`, and `resets` `[B]`, those that begin with `next_obs`,
    hold one frame only; elsewhere `next_obs` is `obs` and a new frame."""
    size = obs.shape[1] // stack
    shift = (-1, *[1] * (obs.ndim - 1))
    expected = torch.where(resets.view(shift), next_obs[:, size:], obs[:, size:])
    expected_first = torch.where(first.view(shift), obs[:, size:], obs[:, :-size])
    if not (next_obs[:, :-size].equal(expected) and obs[:, :-size].equal(expected_first)):
        raise ConfigError(
            f"{name} is not a stack of {stack} frames, the latest last, that begins with the first "
            "frame repeated (as FrameStackObservation's with padding_type reset)"
        )


def check_like(name: str, kept: Tensor, given: Tensor) -> None:
    if kept.shape != given.shape or not can_store(kept.dtype, given.dtype):
        raise ConfigError(
            f"memory keeps {name} as {kept.dtype} {list(kept.shape)}, "
            f"was given {given.dtype} {list(given.shape)}"
        )


def check_finite(parts: Mapping[str, Tensor]) -> None:
    floats = {name: part for name, part in parts.items() if part.is_floating_point()}
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in floats.values()])
    if not finite.all():
        which, env = (~finite).nonzero()[0].tolist()
        raise ConfigError(f"{list(floats)[which]} of world {env} is not finite")


def draw_windows(
    windows: Windows, count: int, group_size: int, generator: torch.Generator
) -> Tensor:
    """[count] numbers of windows. A window drawn uniformly brings its episode, and that `group_size`
    windows drawn uniformly from it: each of them is then uniform over all."""
    if group_size < 1 or count % group_size:
        raise ConfigError(f"{count} stretches can't come in runs of {group_size}")
    device, size = generator.device, (count // group_size, group_size)
    leader = torch.randint(len(windows.start), (size[0], 1), generator=generator, device=device)
    fraction = torch.rand(size, dtype=torch.float64, generator=generator, device=device)
    episode = torch.searchsorted(
        windows.episode_bounds, leader.to(windows.episode_bounds.device), right=True
    )
    first, last = windows.episode_bounds[episode - 1], windows.episode_bounds[episode]
    return (first + (fraction.to(first.device) * (last - first)).long()).flatten()


def draw_future(windows: Windows, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """For windows `[count]`, by number: others of the same episode, drawn uniformly from the same
    one to the last."""
    fraction = torch.rand(len(drawn), dtype=torch.float64, generator=generator)
    ends = windows.episode_bounds[torch.searchsorted(windows.episode_bounds, drawn, right=True)]
    return drawn + (fraction.to(drawn.device) * (ends - drawn)).long()
