"""What the replay buffer keeps of a step of B environments: parts by name, and nothing that is not
a number; and which windows of steps there are to draw from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modules.types import Observation, Transition, UnusableInput, by_sense

DEEDS = ("action", "interoception", "terminated")
"""What is kept beside observations."""


class Parts(NamedTuple):
    """What is read of each window of T steps; of the rest, no step is."""

    obs: Collection[str] | None = None
    """Parts of the observation, by name; None: all."""
    actions: bool = True
    interoception: bool = True


ALL, SEEN = Parts(), Parts(actions=False, interoception=False)


class Windows(NamedTuple):
    """All N windows of one length, by environment and time: those of one of E episodes lie
    together."""

    start: Tensor  # [N] where the first observation lies: env * columns + rows since the oldest
    runs: Tensor  # [E + 1] number of the first window of every episode, and N
    padded: bool  # whether some reach beyond the end of their episode
    fraction: Tensor  # scalar: the fraction of the steps kept that lie in some window


def windows(age: Tensor, done: Tensor, length: int, since: int = 0, pad: bool = True) -> Windows:
    """Where windows of `length` steps begin, from column `since` on. Rows of B environments,
    `[B, rows]`, oldest first: the age of each in its episode, and whether the environment said
    there that the episode is done. A window lies within its episode. Where some episode is done and
    shorter than a window, windows are padded, if `pad`: one begins with each step of every episode
    that is done.

    None begins with the last observation of an episode, so episodes are runs of beginnings."""
    full = torch.zeros_like(done)
    full[:, :-length] = age[:, length:] >= length
    full[:, :since] = False
    heads = _heads(full)
    covered = full.sum() + len(heads) * (length - 1)
    padded = pad and bool((done & (age >= 1) & (age < length)).any())
    if padded:
        whole, covers = full.clone(), full.clone()
        for later in range(1, length):
            covers[:, later:] |= whole[:, :-later]
            full[:, :-later] |= done[:, later:] & (age[:, later:] >= later)
        full[:, :since] = False
        covered, heads = (covers | full).sum(), _heads(full)
    start = full.flatten().nonzero().squeeze(1)
    bounds = torch.cat([heads, start.new_tensor([full.numel()])])
    taken = (age[:, 1 + since :] >= 1).sum()  # steps, each leading from a row to the next
    fraction = covered / taken.clamp_min(1)
    return Windows(start, torch.searchsorted(start, bounds), padded, fraction)


def _heads(fits: Tensor) -> Tensor:
    """`[B, rows]` bool -> where runs of True begin, flat; no row ends with True."""
    fits = fits.flatten()
    before = torch.cat([fits.new_zeros(1), fits[:-1]])
    return (fits & ~before).nonzero().squeeze(1)


def take(part: Tensor, index: Tensor) -> Tensor:
    """[rows, B, ...] and index [N, T] into rows * B -> [N, T, ...]."""
    each = part.shape[2:]
    flat = part.view(part.shape[0] * part.shape[1], each.numel())  # 2-D is copied far faster
    return flat.index_select(0, index.flatten().to(part.device)).view(*index.shape, *each)


def senses(obs: Observation) -> dict[str, Tensor]:
    parts = by_sense(obs).items()
    return {name if name == "obs" else f"obs.{name}": part for name, part in parts}


def observation(senses: Mapping[str, Tensor]) -> Observation:
    """What `senses` took apart."""
    named = {name.removeprefix("obs."): part for name, part in senses.items()}
    return named.get("obs", named)


def deeds(lived: Transition) -> dict[str, Tensor]:
    return {name: getattr(lived, name) for name in DEEDS}


def holds(wanted: torch.dtype, given: torch.dtype) -> bool:
    """Whether numbers of the one type are kept exactly as those of the other: float32 as float64
    too."""
    wider = wanted.is_floating_point and given.is_floating_point
    return wanted == given or (wider and torch.promote_types(wanted, given) == wanted)


def newest(name: str, part: Tensor, stack: int) -> Tensor:
    """Observations `[B, stack * F, ...]` that are stacks of frames, the latest last -> the latest
    frame `[B, F, ...]`; UnusableInput where they can't be taken apart."""
    if part.shape[1] % stack:
        raise UnusableInput(f"{name} {list(part.shape)} is no stack of {stack} frames")
    return part[:, part.shape[1] - part.shape[1] // stack :]


def check_stacks(
    name: str, obs: Tensor, next_obs: Tensor, first: Tensor, resets: Tensor, stack: int
) -> None:
    """Raises UnusableInput where older frames could not be rebuilt from the rows before: `first`
    `[B]`, episodes that begin with `obs`, and `resets` `[B]`, those that begin with `next_obs`,
    hold one frame only; elsewhere `next_obs` is `obs` and a new frame."""
    size = obs.shape[1] // stack
    shift = (-1, *[1] * (obs.ndim - 1))
    alike = torch.where(resets.view(shift), next_obs[:, size:], obs[:, size:])
    begun = torch.where(first.view(shift), obs[:, size:], obs[:, :-size])
    if not (next_obs[:, :-size].equal(alike) and obs[:, :-size].equal(begun)):
        raise UnusableInput(
            f"{name} is not a stack of {stack} frames, the latest last, that begins with the first "
            "frame repeated (as FrameStackObservation's with padding_type reset)"
        )


def check_like(name: str, wanted: Tensor, given: Tensor) -> None:
    if wanted.shape != given.shape or not holds(wanted.dtype, given.dtype):
        raise UnusableInput(
            f"memory keeps {name} as {wanted.dtype} {list(wanted.shape)}, "
            f"was given {given.dtype} {list(given.shape)}"
        )


def check_finite(parts: Mapping[str, Tensor]) -> None:
    numbers = {name: part for name, part in parts.items() if part.is_floating_point()}
    sound = torch.stack([part.isfinite().flatten(1).all(1) for part in numbers.values()])
    if not sound.all():
        which, world = (~sound).nonzero()[0].tolist()
        raise UnusableInput(f"{list(numbers)[which]} of world {world} is not finite")


def draw(windows: Windows, count: int, together: int, generator: torch.Generator) -> Tensor:
    """[count] numbers of windows. A window drawn uniformly brings its episode, and that `together`
    windows drawn uniformly from it: each of them is then uniform over all."""
    if together < 1 or count % together:
        raise UnusableInput(f"{count} stretches can't come in runs of {together}")
    device, size = generator.device, (count // together, together)
    leader = torch.randint(len(windows.start), (size[0], 1), generator=generator, device=device)
    share = torch.rand(size, dtype=torch.float64, generator=generator, device=device)
    run = torch.searchsorted(windows.runs, leader.to(windows.runs.device), right=True)
    first, following = windows.runs[run - 1], windows.runs[run]
    return (first + (share.to(first.device) * (following - first)).long()).flatten()


def ahead(windows: Windows, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """For windows `[count]`, by number: others of the same episode, drawn uniformly from the same
    one to the last."""
    share = torch.rand(len(drawn), dtype=torch.float64, generator=generator)
    ends = windows.runs[torch.searchsorted(windows.runs, drawn, right=True)]
    return drawn + (share.to(drawn.device) * (ends - drawn)).long()
