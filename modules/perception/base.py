"""Shared parts of the encoders: image shapes, modality weights, and the first layer over
patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modules.types import ConfigError, MapShape, Observation

ModalityShapes = Mapping[str, tuple[int, ...]]
"""The shape of each modality of an observation, by name."""

BYTES = 255.0
"""The largest value of a uint8 pixel."""
SMALL_RANGE = 32
"""A uint8 channel that spans less than this is scaled by its own range: symbols, a mask, depth in
metres."""
ADAPT_IMAGES = 256
"""Images that the range of a channel is taken from."""


def image_shape(shapes: ModalityShapes, patch: int) -> MapShape:
    """The shape of the only modality, an image; raises ConfigError for other observations."""
    found = [shape for shape in shapes.values() if _is_image(shape, patch)]
    if len(shapes) != 1 or not found:
        raise ConfigError(
            f"observations of shape {_describe(shapes)} are no images [channels, height, width] "
            f"of at least {patch} by {patch} pixels, which this encoder needs"
        )
    return found[0]  # type: ignore[return-value]


def _is_image(shape: tuple[int, ...], patch: int) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= patch


def _describe(shapes: ModalityShapes) -> str:
    return " ".join(str(s) if n == "obs" else f"{n} {s}" for n, s in shapes.items())


def scale_modality(part: Tensor, weight: float | Tensor) -> Tensor:
    """`[B, ...]` times its weight, one number or `[B]`."""
    if isinstance(weight, Tensor):
        return part * weight.reshape(-1, *[1] * (part.ndim - 1))
    return part if weight == 1 else part * weight


class Encoder(nn.Module):
    """Observations `[B, *O]` -> states `[B, D]`; D folds into `shape`."""

    shape: MapShape

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        """The modalities that `adapt` reads, by name, and how many observations of each."""
        return {}

    def adapt(self, obs: Observation) -> None:
        """Takes the scale of the inputs from observations `[N, *O]`; most encoders need none."""


def to_byte_range(image: Tensor) -> Tensor:
    """Float pixels `[B, C, S, S]` from 0 to 1 -> from 0 to 255; uint8 pixels stay as they are."""
    return BYTES * image if image.is_floating_point() else image


class PatchEmbed(nn.Module):
    """A linear layer over patches of pixels `[N, C, S, S]` from 0 to 255 -> `[N, C', h, w]`. A
    matrix product over rearranged uint8 is several times faster than a strided convolution. Pixels
    beyond the last whole patch are ignored, as in a vision transformer."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)

    def forward(self, obs: Tensor) -> Tensor:
        patches, weight = self.patches(obs), self.project.weight / BYTES
        features = nn.functional.linear(patches.to(weight.dtype), weight, self.project.bias)
        return features.permute(0, 3, 1, 2)

    def patches(self, obs: Tensor) -> Tensor:
        """`[N, h, w, C p p]`, of the same type."""
        size = self.patch
        patches = obs.unfold(2, size, size).unfold(3, size, size)  # [N, C, h, w, p, p]
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


class ScaledPatchEmbed(PatchEmbed):
    """`PatchEmbed` for pixels of any type and range: every channel is scaled to 0 to 1 by the range
    in the first observations. A uint8 channel keeps its full range unless it spans less than
    SMALL_RANGE."""

    low: Tensor
    span: Tensor

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(channels, patch, width)
        self.register_buffer("low", torch.zeros(channels))
        self.register_buffer("span", torch.full((channels,), BYTES))

    def adapt(self, obs: Tensor) -> None:
        """Takes the range of each channel from pixels `[N, C, S, S]`."""
        pixels = obs[:ADAPT_IMAGES].movedim(1, 0).flatten(1)
        low, high = pixels.amin(1).to(self.low), pixels.amax(1).to(self.low)
        span = high - low
        if obs.is_floating_point():  # a constant channel may vary later, by about its own value
            span = torch.where(span > 0, span, torch.where(low == 0, 1.0, low.abs()))
        else:
            is_small = (span > 0) & (span < SMALL_RANGE)
            low, span = torch.where(is_small, low, 0.0), torch.where(is_small, span, BYTES)
        self.low.copy_(low)
        self.span.copy_(span)

    def forward(self, obs: Tensor) -> Tensor:
        patches, size = self.patches(obs), self.patch**2
        low, span = (unit.repeat_interleave(size) for unit in (self.low, self.span))
        weight, bias = self.project.weight / span, self.project.bias
        if obs.is_floating_point():  # a shifted bias would lose precision where low is large
            features = nn.functional.linear(patches - low, weight, bias)
        else:
            features = nn.functional.linear(patches.to(weight.dtype), weight, bias - weight @ low)
        return features.permute(0, 3, 1, 2)
