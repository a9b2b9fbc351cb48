"""What memory keeps of a step of B worlds: parts by name, and nothing that is not a number; and
which stretches of steps there are to draw from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modules.types import Observation, Transition, UnusableInput, by_sense

DEEDS = ("action", "interoception", "terminated")
"""What is kept beside observations."""


class Windows(NamedTuple):
    """All N stretches of one length, by world and time: those of one of E episodes lie together."""

    end: Tensor  # [N] where the last observation lies: world * rows + steps since the oldest row
    runs: Tensor  # [E + 1] number of the first window of every episode, and N


def windows(fits: Tensor) -> Windows:
    """Where stretches end, `[B, rows]` bool, oldest first -> all of them. What is seen ends one of
    T steps if its episode is at least T steps old there and the T rows before it are kept. None
    ends on the first observation of an episode, so episodes are runs of ends."""
    fits = fits.flatten()
    end = fits.nonzero().squeeze(1)
    heads = (fits[1:] & ~fits[:-1]).nonzero().squeeze(1) + 1
    bounds = torch.cat([heads, heads.new_tensor([len(fits)])])
    return Windows(end, torch.searchsorted(end, bounds))


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
    leader = torch.randint(len(windows.end), (size[0], 1), generator=generator, device=device)
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
