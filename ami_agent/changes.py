"""Changes of what is seen, under which a representation may stay the same or follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from ami_agent.life import Spec
from ami_agent.vectors import called
from modules.types import Observation, UnusableInput, by_sense, each

Change: TypeAlias = Callable[[Observation], Observation]
"""Observation `[B, *O]` -> the same seen otherwise, of the same kind."""

NOISE = 0.05
"""Of the noise, in units of the spread of every number of a sense."""
DIMMED = 0.7
SHIFT = 1 / 32
"""Of a picture's width."""


def asked(place: str, spec: Spec) -> Mapping[str, Change]:
    """Those of `FILE.py:FUNCTION`, by name; where it is empty noise for every sense, and for
    pictures a shift to the right, dimmer light and a mirror too."""
    if place:
        return _named(place)
    pictures = any(len(shape) == 3 for shape in spec.shapes.values())
    usual = {name: partial(pictured, change) for name, change in PICTURED.items()}
    return {"noise": noisy, **(usual if pictures else {})}


def _named(place: str) -> Mapping[str, Change]:
    """UnusableInput where the function doesn't return any."""
    found = called(place, "changes by name")
    if not (found and isinstance(found, Mapping) and all(map(callable, found.values()))):
        raise UnusableInput(f"{place} must return functions of observations, by name")
    return {str(change): of for change, of in found.items()}


def seen_otherwise(name: str, change: Change, obs: Observation) -> Observation:
    """What the change makes of it; UnusableInput where it fails, or returns another kind of
    observation."""
    try:
        changed = change(obs)
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        told = f"{type(error).__name__}: {error}"
        raise UnusableInput(f"the change {name!r} fails: {' '.join(told.split())}") from error
    if _kinds(changed) != _kinds(obs):
        raise UnusableInput(
            f"the change {name!r} returns {_kinds(changed)}; it must return {_kinds(obs)}"
        )
    floats = [part for part in by_sense(changed).values() if part.is_floating_point()]
    if not all(part.isfinite().all() for part in floats):
        raise UnusableInput(f"the change {name!r} returns NaN or infinity")
    return changed


def _kinds(obs: object) -> str:
    """What an observation is: shape and dtype of every part."""
    if isinstance(obs, Mapping):
        parts = sorted(f"{name!r}: {_kinds(part)}" for name, part in obs.items())
        return f"{{{', '.join(parts)}}}"
    return f"{tuple(obs.shape)} {obs.dtype}" if isinstance(obs, Tensor) else type(obs).__name__


def noisy(obs: Observation) -> Observation:
    """Every number a little off; the same chance every time."""
    random = torch.Generator().manual_seed(0)

    def shaken(part: Tensor) -> Tensor:
        noise = torch.randn(part.shape, generator=random).to(part.device)
        # of a picture as a whole: most of its pixels never change
        spread = part.float().std() if _is_picture(part) else part.float().std(0)
        return _like(part, part.float() + NOISE * spread * noise)

    return each(shaken, obs)


def pictured(change: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """Pictures changed, all else as it was."""
    return each(lambda part: change(part) if _is_picture(part) else part, obs)


def _shifted(picture: Tensor) -> Tensor:
    """To the right; what was at the left edge stays there too."""
    by = max(1, round(SHIFT * picture.shape[-1]))
    return torch.cat([picture[..., :1].repeat_interleave(by, -1), picture[..., :-by]], -1)


PICTURED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "shift": _shifted,
    "dim": lambda picture: _like(picture, DIMMED * picture.float()),
    "mirror": lambda picture: picture.flip(-1),
}


def _is_picture(part: Tensor) -> bool:
    """Of what a sense delivers, `[B, *O]`."""
    return part.ndim == 4


def _like(part: Tensor, changed: Tensor) -> Tensor:
    """As this sense would deliver it."""
    if part.is_floating_point():
        return changed.to(part.dtype)
    return changed.round().clamp(0, torch.iinfo(part.dtype).max).to(part.dtype)
