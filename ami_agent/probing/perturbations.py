"""Perturbations of observations, for the invariance and equivariance of a representation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.adapters.imports import call_function
from modules.types import ConfigError, Observation, as_dict, tree_map

Perturbation: TypeAlias = Callable[[Observation], Observation]
"""Observation `[B, *O]` -> the perturbed observation, of the same shapes and dtypes."""

NOISE_SCALE = 0.05
"""Standard deviation of the noise, in units of that of each number."""
DIM_FACTOR = 0.7
SHIFT_FRACTION = 1 / 32
"""Fraction of an image's width."""


def load_perturbations(path_spec: str, spec: EnvironmentSpec) -> Mapping[str, Perturbation]:
    """The perturbations that `FILE.py:FUNCTION` returns, by name. By default: noise in every
    modality, and for images a shift to the right, dimming and mirroring too."""
    if path_spec:
        found = call_function(path_spec, "perturbations by name")
        if not (found and isinstance(found, Mapping) and all(map(callable, found.values()))):
            raise ConfigError(f"{path_spec} must return functions of observations, by name")
        return {str(name): perturbation for name, perturbation in found.items()}
    has_images = any(len(shape) == 3 for shape in spec.shapes.values())
    on_image = {name: partial(on_images, fn) for name, fn in IMAGE_PERTURBATIONS.items()}
    return {"noise": add_noise, **(on_image if has_images else {})}


def apply_perturbation(name: str, perturbation: Perturbation, obs: Observation) -> Observation:
    """The perturbed observation; ConfigError where the perturbation fails, or returns other shapes
    or dtypes."""
    try:
        perturbed = perturbation(obs)
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"the perturbation {name!r} fails: {reason}") from error
    returned, expected = _describe(perturbed), _describe(obs)
    if returned != expected:
        raise ConfigError(
            f"the perturbation {name!r} returns {returned}; it must return {expected}"
        )
    floats = [part for part in as_dict(perturbed).values() if part.is_floating_point()]
    if not all(part.isfinite().all() for part in floats):
        raise ConfigError(f"the perturbation {name!r} returns NaN or infinity")
    return perturbed


def _describe(obs: object) -> str:
    """Shape and dtype of every part of an observation."""
    if isinstance(obs, Mapping):
        parts = sorted(f"{name!r}: {_describe(part)}" for name, part in obs.items())
        return f"{{{', '.join(parts)}}}"
    return f"{tuple(obs.shape)} {obs.dtype}" if isinstance(obs, Tensor) else type(obs).__name__


def add_noise(obs: Observation) -> Observation:
    """Gaussian noise on every number, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def noisy_part(part: Tensor) -> Tensor:
        noise = torch.randn(part.shape, generator=generator).to(part.device)
        # the spread of an image as a whole: most of its pixels are constant
        spread = part.float().std() if _is_image(part) else part.float().std(0)
        return _cast_like(part, part.float() + NOISE_SCALE * spread * noise)

    return tree_map(noisy_part, obs)


def on_images(perturbation: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """The observation with its images perturbed."""
    return tree_map(lambda part: perturbation(part) if _is_image(part) else part, obs)


def _shift(image: Tensor) -> Tensor:
    """A shift to the right that repeats the left edge."""
    pixels = max(1, round(SHIFT_FRACTION * image.shape[-1]))
    return torch.cat([image[..., :1].repeat_interleave(pixels, -1), image[..., :-pixels]], -1)


IMAGE_PERTURBATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "shift": _shift,
    "dim": lambda image: _cast_like(image, DIM_FACTOR * image.float()),
    "mirror": lambda image: image.flip(-1),
}


def _is_image(part: Tensor) -> bool:
    """Whether a modality `[B, *O]` is an image."""
    return part.ndim == 4


def _cast_like(part: Tensor, perturbed: Tensor) -> Tensor:
    """Rounded and clipped to the dtype of `part`."""
    if part.is_floating_point():
        return perturbed.to(part.dtype)
    return perturbed.round().clamp(0, torch.iinfo(part.dtype).max).to(part.dtype)
