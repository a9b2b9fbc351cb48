"""Changes of what is seen, under which a representation may stay the same or follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.adapters.make import call_function
from modules.types import ConfigError, Observation, as_dict, tree_map

Perturbation: TypeAlias = Callable[[Observation], Observation]
"""Observation `[B, *O]` -> the same seen otherwise, of the same kind."""

NOISE_SCALE = 0.05
"""Of the noise, in units of the spread of every number of a sense."""
DIM_FACTOR = 0.7
SHIFT_FRACTION = 1 / 32
"""Of a picture's width."""


def load_perturbations(path_spec: str, spec: EnvironmentSpec) -> Mapping[str, Perturbation]:
    """Those of `FILE.py:FUNCTION`, by name; where it is empty noise for every sense, and for
    pictures a shift to the right, dimmer light and a mirror too."""
    if path_spec:
        return _load(path_spec)
    has_images = any(len(shape) == 3 for shape in spec.shapes.values())
    by_default = {
        name: partial(on_images, perturbation) for name, perturbation in IMAGE_PERTURBATIONS.items()
    }
    return {"noise": add_noise, **(by_default if has_images else {})}


def _load(path_spec: str) -> Mapping[str, Perturbation]:
    """ConfigError where the function doesn't return any."""
    found = call_function(path_spec, "changes by name")
    if not (found and isinstance(found, Mapping) and all(map(callable, found.values()))):
        raise ConfigError(f"{path_spec} must return functions of observations, by name")
    return {str(perturbation): of for perturbation, of in found.items()}


def apply_perturbation(name: str, perturbation: Perturbation, obs: Observation) -> Observation:
    """What the change makes of it; ConfigError where it fails, or returns another kind of
    observation."""
    try:
        perturbed = perturbation(obs)
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        message = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the change {name!r} fails: {' '.join(message.split())}") from error
    if _describe(perturbed) != _describe(obs):
        raise ConfigError(
            f"the change {name!r} returns {_describe(perturbed)}; it must return {_describe(obs)}"
        )
    floats = [part for part in as_dict(perturbed).values() if part.is_floating_point()]
    if not all(part.isfinite().all() for part in floats):
        raise ConfigError(f"the change {name!r} returns NaN or infinity")
    return perturbed


def _describe(obs: object) -> str:
    """What an observation is: shape and dtype of every part."""
    if isinstance(obs, Mapping):
        parts = sorted(f"{name!r}: {_describe(part)}" for name, part in obs.items())
        return f"{{{', '.join(parts)}}}"
    return f"{tuple(obs.shape)} {obs.dtype}" if isinstance(obs, Tensor) else type(obs).__name__


def add_noise(obs: Observation) -> Observation:
    """Every number a little off; the same chance every time."""
    generator = torch.Generator().manual_seed(0)

    def noisy_part(part: Tensor) -> Tensor:
        noise = torch.randn(part.shape, generator=generator).to(part.device)
        # of a picture as a whole: most of its pixels never change
        spread = part.float().std() if _is_image(part) else part.float().std(0)
        return _cast_like(part, part.float() + NOISE_SCALE * spread * noise)

    return tree_map(noisy_part, obs)


def on_images(perturbation: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """Pictures changed, all else as it was."""
    return tree_map(lambda part: perturbation(part) if _is_image(part) else part, obs)


def _shift(image: Tensor) -> Tensor:
    """To the right; what was at the left edge stays there too."""
    pixels = max(1, round(SHIFT_FRACTION * image.shape[-1]))
    return torch.cat([image[..., :1].repeat_interleave(pixels, -1), image[..., :-pixels]], -1)


IMAGE_PERTURBATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "shift": _shift,
    "dim": lambda image: _cast_like(image, DIM_FACTOR * image.float()),
    "mirror": lambda image: image.flip(-1),
}


def _is_image(part: Tensor) -> bool:
    """Of what a sense delivers, `[B, *O]`."""
    return part.ndim == 4


def _cast_like(part: Tensor, perturbed: Tensor) -> Tensor:
    """As this sense would deliver it."""
    if part.is_floating_point():
        return perturbed.to(part.dtype)
    return perturbed.round().clamp(0, torch.iinfo(part.dtype).max).to(part.dtype)
