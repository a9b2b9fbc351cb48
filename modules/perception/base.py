"""What encoders share: which observations are images, gains, and the first layer over patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modules.types import ConfigError, MapShape, Observation

ModalityShapes = Mapping[str, tuple[int, ...]]
"""What each sense delivers, by name."""

BYTES = 255.0
"""The range of bytes."""
SMALL_RANGE = 32
"""Bytes whose values lie closer together than this use a small part of their range: symbols, a
mask, depth in metres."""
ADAPT_IMAGES = 256
"""Pictures that the range of a channel is taken from."""


def image_shape(shapes: ModalityShapes, patch: int) -> MapShape:
    """The shape of the one image there is; raises ConfigError for anything else."""
    found = [shape for shape in shapes.values() if _is_image(shape, patch)]
    if len(shapes) != 1 or not found:
        raise ConfigError(
            f"observations of shape {_describe(shapes)} are no images [channels, height, width] "
            f"of at least {patch} by {patch} pixels, which this perception needs"
        )
    return found[0]  # type: ignore[return-value]


def _is_image(shape: tuple[int, ...], patch: int) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= patch


def _describe(shapes: ModalityShapes) -> str:
    return " ".join(str(s) if n == "obs" else f"{n} {s}" for n, s in shapes.items())


def scale_modality(part: Tensor, weight: float | Tensor) -> Tensor:
    """`[B, ...]` times its gain, one number or `[B]`."""
    if isinstance(weight, Tensor):
        return part * weight.reshape(-1, *[1] * (part.ndim - 1))
    return part if weight == 1 else part * weight


class Encoder(nn.Module):
    """Observations `[B, *O]` -> states `[B, D]`; D folds into `shape`."""

    shape: MapShape

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        """The parts of an observation that `adapt` reads, by name, and of how many observations."""
        return {}

    def adapt(self, obs: Observation) -> None:
        """Takes observations `[N, *O]` as the unit of what is seen; most need none."""


def to_byte_range(image: Tensor) -> Tensor:
    """Pixels `[B, C, S, S]` of floats from 0 to 1 in the range of bytes, which stay as they are."""
    return 255 * image if image.is_floating_point() else image


class PatchEmbed(nn.Module):
    """The first layer of both: every patch of `[N, C, S, S]` uint8 pixels by itself -> `[N, C', h,
    w]`. A matrix product over bytes rearranged is several times faster than a strided convolution,
    and pixels beyond the last whole patch are not seen, as in a vision transformer."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)

    def forward(self, obs: Tensor) -> Tensor:
        patches, weight = self.patches(obs), self.project.weight
        return nn.functional.linear(
            patches.to(weight.dtype), weight / 255, self.project.bias
        ).permute(0, 3, 1, 2)

    def patches(self, obs: Tensor) -> Tensor:
        """`[N, h, w, C p p]`, of the kind they were."""
        size = self.patch
        patches = obs.unfold(2, size, size).unfold(3, size, size)  # [N, C, h, w, p, p]
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


class ScaledPatchEmbed(PatchEmbed):
    """The same of pixels of any kind, every channel in its own unit: from 0 to 1 within the range
    that was seen. Bytes keep the range of bytes, unless they use but a small part of it."""

    low: Tensor
    span: Tensor

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(channels, patch, width)
        self.register_buffer("low", torch.zeros(channels))
        self.register_buffer("span", torch.full((channels,), BYTES))

    def adapt(self, obs: Tensor) -> None:
        """Takes pixels `[N, C, S, S]` as the range of each channel."""
        pixels = obs[:ADAPT_IMAGES].movedim(1, 0).flatten(1)
        low, high = pixels.amin(1).to(self.low), pixels.amax(1).to(self.low)
        span = high - low
        if obs.is_floating_point():  # what never varied so far may yet, by about its own size
            span = torch.where(span > 0, span, torch.where(low == 0, 1.0, low.abs()))
        else:
            is_small_range = (span > 0) & (span < SMALL_RANGE)
            low, span = (
                torch.where(is_small_range, low, 0.0),
                torch.where(is_small_range, span, BYTES),
            )
        self.low.copy_(low)
        self.span.copy_(span)

    def forward(self, obs: Tensor) -> Tensor:
        patches, size = self.patches(obs), self.patch**2
        low, span = (unit.repeat_interleave(size) for unit in (self.low, self.span))
        weight, bias = self.project.weight / span, self.project.bias
        if obs.is_floating_point():  # where low is large beside span, a product would lose it
            return nn.functional.linear(patches - low, weight, bias).permute(0, 3, 1, 2)
        shifted_bias = bias - weight @ low
        return nn.functional.linear(patches.to(weight.dtype), weight, shifted_bias).permute(
            0, 3, 1, 2
        )
