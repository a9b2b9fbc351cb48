"""Encoder of any number of modalities to one vector state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.nets import (
    LARGE_MEAN_FACTOR,
    OUTLIER_FACTOR,
    FourierFeatures,
    mean_and_std,
    silu_mlp,
    updated_scale,
)
from modules.perception.image import (
    BYTES,
    ConvMasking,
    Encoder,
    MaskableImage,
    ModalityShapes,
    PatchEmbed,
    image_layers,
    mask_image_layers,
    scale_modality,
)
from modules.types import (
    WIDTH,
    ConfigError,
    MapShape,
    ModalityWeights,
    Observation,
    Settings,
    as_dict,
)

MAX_PATCHES = 64
"""Most patches along the longer side of an image."""
IMAGE_CHANNELS = 16
"""Features of a patch."""

SMALL_RANGE = 32
"""A uint8 channel that spans less than this is scaled by its own range: symbols, a mask, depth in
metres."""
ADAPT_IMAGES = 256
"""Images that the range of a channel is taken from."""


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


class ImageBranch(nn.Sequential):
    """Pixels `[B, C, S, S]` -> features `[B, F]`."""

    def __init__(self, shape: tuple[int, ...], config: MultiModalEncoderConfig) -> None:
        patch = config.patch or patch_size(shape[1:])
        embed = ScaledPatchEmbed(shape[0], patch, IMAGE_CHANNELS)
        super().__init__(*image_layers(embed, shape[1:], 2 * config.hidden, config.image_dim))
        self.out, self.sides = config.image_dim, shape[1:]

    def masking(self) -> ConvMasking:
        """The image of which patches can be hidden; hidden pixels have the lowest value of each
        channel."""
        return mask_image_layers(self, self.sides, nn.Identity(), self[0].low)  # type: ignore[arg-type]

    def adapt(self, part: Tensor) -> None:
        """Takes the range of every channel from images `[N, C, S, S]`."""
        self[0].adapt(part)  # type: ignore[operator]


def patch_size(sides: tuple[int, ...]) -> int:
    """The patch size for about 8 patches along the shorter side and at most MAX_PATCHES along the
    longer one, which bounds the layers above."""
    shorter, longer = min(sides), max(sides)
    return max(1, shorter // 8, min(shorter, longer // MAX_PATCHES))


class FourierBranch(nn.Module):
    """A vector `[B, N]` or a set of vectors `[B, K, N]` -> features `[B, F]` or `[B, K F]`, by
    Fourier features and an MLP that all members of a set share."""

    def __init__(self, shape: tuple[int, ...], config: MultiModalEncoderConfig) -> None:
        super().__init__()
        self.fourier = FourierFeatures(shape[-1], config.num_frequencies, config.frequency_scale)
        self.layers = silu_mlp(self.fourier.out, config.hidden, config.vector_dim)
        self.out = prod(shape[:-1]) * config.vector_dim

    def forward(self, part: Tensor) -> Tensor:
        return self.layers(self.fourier(part)).flatten(1)


class StandardizedInput(nn.Module):
    """Numbers `[B, ...]` -> the same, standardized, `[B, F]`. They are centred in the precision of
    the input: seconds since 1970 for instance exceed that of float32."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out = prod(shape)
        self.register_buffer("mean", torch.zeros(self.out, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.out, dtype=torch.float64))

    def adapt(self, part: Tensor) -> None:
        """Takes mean and scale from observations `[N, ...]`; a constant number keeps scale 1."""
        mean, std = mean_and_std(part.flatten(1))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, 1.0))

    def update_units(self, part: Tensor) -> None:
        """Takes new means and scales where those of the observations `[N, ...]` are outdated."""
        values = part.flatten(1).double()
        mean, std = mean_and_std(values)
        max_deviation = (values - self.mean).abs().amax(0)
        max_spread = (values - mean).abs().amax(0)
        outdated = updated_scale(max_deviation, std, self.scale, self.scale == 1) != self.scale
        scale = torch.maximum(std, max_spread / LARGE_MEAN_FACTOR)
        scale = torch.where(self.scale == 1, max_spread, scale)
        self.mean.copy_(torch.where(outdated, mean, self.mean))
        self.scale.copy_(torch.where(outdated, scale, self.scale))

    def has_outliers(self, part: Tensor) -> Tensor:
        """Whether any number of observations `[N, ...]` is over OUTLIER_FACTOR scales from its
        mean."""
        return (self(part).abs() > OUTLIER_FACTOR).any()

    def forward(self, part: Tensor) -> Tensor:
        values = part.flatten(1)
        values = values if values.is_floating_point() else values.double()
        centred = (values - self.mean.to(values)) / self.scale.to(values)
        return centred.to(torch.get_default_dtype())


ADAPT_VECTORS = 4096
"""Observations that vectors take mean and scale from."""

MODALITY_KINDS = "a vector [N], a set of vectors [K, N] or an image [channels, height, width]"


@dataclass(frozen=True, kw_only=True)
class MultiModalEncoderConfig(Settings):
    patch: Annotated[int, (0, 65_536)] = 8
    """Side of the patches of an image in the first layer, in pixels; 0: about an eighth of the
    shorter side of each image."""
    hidden: Annotated[int, WIDTH] = 64
    vector_dim: Annotated[int, (0, 65_536)] = 16
    """Features of a vector, and of each member of a set; 0: the input itself, standardized by the
    first observations."""
    image_dim: Annotated[int, WIDTH] = 32
    """Features of an image."""
    num_frequencies: Annotated[int, (0, 65_536)] = 16
    """Fourier features of vectors: a sine and a cosine for each frequency."""
    frequency_scale: Annotated[float, (0.0, 1e6)] = 4.0
    """Standard deviation of the frequencies, in radians per unit of a vector."""
    leading_dims: Annotated[tuple[int, ...], (0, 65_535)] = ()
    """Numbers of the state, by index, that are moved to its beginning: those that goals are about
    (`configurator.goal_dims`)."""

    def build(self, shapes: ModalityShapes) -> MultiModalEncoder:
        for name, shape in shapes.items():
            too_small = len(shape) == 3 and min(shape[1:]) < self.patch
            if not 1 <= len(shape) <= 3 or too_small:
                raise ConfigError(
                    f"observation {name!r} has shape {shape}; it must be {MODALITY_KINDS} of at "
                    f"least {self.patch} by {self.patch} pixels (perception.patch)"
                )
        return MultiModalEncoder(self, shapes)


class MultiModalEncoder(Encoder):
    """Any number of modalities by name, vectors, sets of vectors and images -> one vector state
    `[B, D]`. Each modality has its own part of the state, which its modality weight scales; a
    weight of 0 removes it."""

    order: Tensor  # [D] where numbers are moved; empty otherwise

    def __init__(self, config: MultiModalEncoderConfig, shapes: ModalityShapes) -> None:
        super().__init__()
        self.names = {_module_name(name): name for name in shapes}
        self.branches = nn.ModuleDict(
            {_module_name(n): _branch(part, config) for n, part in shapes.items()}
        )
        self.shape: MapShape = (sum(branch.out for branch in self.branches.values()), 1, 1)  # type: ignore[misc]
        order = torch.tensor(_order(config.leading_dims, self.shape[0]), dtype=torch.long)
        self.register_buffer("order", order, persistent=False)

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        counts = {StandardizedInput: ADAPT_VECTORS, ImageBranch: ADAPT_IMAGES}
        found = {name: counts.get(type(self.branches[key]), 0) for key, name in self.names.items()}
        return {name: count for name, count in found.items() if count}

    def adapt(self, obs: Observation) -> None:
        """Takes the scales of the branches that have one from observations `[N, *O]`."""
        for key, branch in self.branches.items():
            if isinstance(branch, StandardizedInput | ImageBranch):
                branch.adapt(as_dict(obs)[self.names[key]])

    def maskable_images(self) -> Mapping[str, MaskableImage]:
        found = {self.names[key]: branch for key, branch in self.branches.items()}
        return {
            n: branch.masking() for n, branch in found.items() if isinstance(branch, ImageBranch)
        }

    def standardized_inputs(self) -> dict[str, StandardizedInput]:
        """The `StandardizedInput` branches, by the name of their modality."""
        found = {self.names[key]: branch for key, branch in self.branches.items()}
        return {name: b for name, b in found.items() if isinstance(b, StandardizedInput)}

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        parts = as_dict(obs)
        features = [
            scale_modality(self.branches[key](parts[name]), modality_weights.get(name, 1))
            for key, name in self.names.items()
        ]
        state = torch.cat(features, 1)
        return state.index_select(1, self.order) if len(self.order) else state


def _order(first: tuple[int, ...], size: int) -> list[int]:
    """The indices of `size` numbers with `first` at the beginning; empty where they stay as they
    are."""
    if not first:
        return []
    if len(set(first)) < len(first) or max(first) >= size:
        raise ConfigError(
            f"perception.leading_dims is {first}; they must be different indices below {size}, the "
            "numbers of the state"
        )
    return [*first, *(index for index in range(size) if index not in first)]


def _module_name(name: str) -> str:
    """A key for `nn.ModuleDict`, which refuses empty names and those of its own attributes."""
    return f"sense {name}" if not name or hasattr(nn.ModuleDict(), name) else name


def _branch(shape: tuple[int, ...], config: MultiModalEncoderConfig) -> nn.Module:
    if len(shape) == 3:
        return ImageBranch(shape, config)
    return FourierBranch(shape, config) if config.vector_dim else StandardizedInput(shape)
