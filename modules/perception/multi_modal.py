"""Any number of senses become one vector state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

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
from modules.perception.base import (
    ADAPT_IMAGES,
    Encoder,
    ModalityShapes,
    ScaledPatchEmbed,
    scale_modality,
)
from modules.types import (
    WIDTH,
    ConfigError,
    MapShape,
    ModalityWeights,
    Observation,
    as_dict,
    validate_ranges,
)

MAX_PATCHES = 64
"""Patches to the longer side of a picture."""


class ImageBranch(nn.Sequential):
    """Pixels `[B, C, S, S]` -> features `[B, F]`."""

    def __init__(self, shape: tuple[int, ...], config: MultiModalEncoderConfig) -> None:
        patch = config.patch or patch_size(shape[1:])
        side = [-(-(pixels // patch) // 2) for pixels in shape[1:]]
        super().__init__(
            ScaledPatchEmbed(shape[0], patch, 16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * prod(side), 2 * config.hidden),
            nn.LayerNorm(2 * config.hidden),
            nn.SiLU(),
            nn.Linear(2 * config.hidden, config.image_dim),
        )
        self.out = config.image_dim

    def adapt(self, part: Tensor) -> None:
        """Takes pictures `[N, C, S, S]` as the range of every channel."""
        self[0].adapt(part)  # type: ignore[operator]


def patch_size(sides: tuple[int, ...]) -> int:
    """About 8 patches to the shorter side, and so few to the longer one that the layers above stay
    small."""
    shorter, longer = min(sides), max(sides)
    return max(1, shorter // 8, min(shorter, longer // MAX_PATCHES))


class FourierBranch(nn.Module):
    """Numbers `[B, N]`, or a set of things alike `[B, K, N]` -> features `[B, F]` or `[B, K F]`:
    the same layers for every thing."""

    def __init__(self, shape: tuple[int, ...], config: MultiModalEncoderConfig) -> None:
        super().__init__()
        self.fourier = FourierFeatures(shape[-1], config.num_frequencies, config.frequency_scale)
        self.layers = silu_mlp(self.fourier.out, config.hidden, config.vector_dim)
        self.out = prod(shape[:-1]) * config.vector_dim

    def forward(self, part: Tensor) -> Tensor:
        return self.layers(self.fourier(part)).flatten(1)


class StandardizedInput(nn.Module):
    """Numbers `[B, ...]` as they are, each in its own unit, `[B, F]`. They are centred in the
    precision in which they come: a clock of seconds since 1970 has none left in float32."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.out = prod(shape)
        self.register_buffer("mean", torch.zeros(self.out, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.out, dtype=torch.float64))

    def adapt(self, part: Tensor) -> None:
        """Takes observations `[N, ...]` as the unit; what never varied keeps its own."""
        mean, std = mean_and_std(part.flatten(1))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, 1.0))

    def update_units(self, part: Tensor) -> None:
        """Takes new units for those numbers that observations `[N, ...]` have left."""
        values = part.flatten(1).double()
        mean, std = mean_and_std(values)
        max_deviation, max_spread = (
            (values - self.mean).abs().amax(0),
            (values - mean).abs().amax(0),
        )
        has_left = updated_scale(max_deviation, std, self.scale, self.scale == 1) != self.scale
        unit = torch.where(
            self.scale == 1, max_spread, torch.maximum(std, max_spread / LARGE_MEAN_FACTOR)
        )
        self.mean.copy_(torch.where(has_left, mean, self.mean))
        self.scale.copy_(torch.where(has_left, unit, self.scale))

    def has_outliers(self, part: Tensor) -> Tensor:
        """Whether any number of observations `[N, ...]` is far outside its unit."""
        return (self(part).abs() > OUTLIER_FACTOR).any()

    def forward(self, part: Tensor) -> Tensor:
        values = part.flatten(1)
        values = values if values.is_floating_point() else values.double()
        centred = (values - self.mean.to(values)) / self.scale.to(values)
        return centred.to(torch.get_default_dtype())


ADAPT_VECTORS = 4096
"""Observations that numbers take their unit from."""

MODALITY_KINDS = {
    1: "a vector [N]",
    2: "a set of things [K, N]",
    3: "an image [channels, height, width]",
}


@dataclass(frozen=True, kw_only=True)
class MultiModalEncoderConfig:
    patch: int = 8
    """Pixels to a side of what the first layer sees of an image at once; 0: about an eighth of
        the shorter side of each image."""
    hidden: int = 64
    vector_dim: int = 16
    """Numbers of the state for a vector, and for each thing of a set; 0: the numbers of the
        sense themselves, in units of what was seen first."""
    image_dim: int = 32
    """Numbers of the state for an image."""
    num_frequencies: int = 16
    """Waves in which vectors are seen."""
    frequency_scale: float = 4.0
    """Radians per unit of a vector: how fine they are."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, patch=(0, 65_536), hidden=WIDTH, vector_dim=(0, 65_536), image_dim=WIDTH
        )
        validate_ranges(self, num_frequencies=(0, 65_536), frequency_scale=(0.0, 1e6))

    def build(self, shapes: ModalityShapes) -> MultiModalEncoder:
        for name, shape in shapes.items():
            if len(shape) not in MODALITY_KINDS or (
                len(shape) == 3 and min(shape[1:]) < self.patch
            ):
                raise ConfigError(
                    f"{name!r} delivers {shape}; needed is {', '.join(MODALITY_KINDS.values())} of at "
                    f"least {self.patch} by {self.patch} pixels (perception.patch)"
                )
        return MultiModalEncoder(self, shapes)


class MultiModalEncoder(Encoder):
    """Any number of senses by name, vectors, sets of things, images -> one vector state `[B, D]`.

    Each has a part of the state to itself, so that none crowds out another; its gain scales that
    part, and a sense of gain 0 is not there."""

    def __init__(self, config: MultiModalEncoderConfig, shapes: ModalityShapes) -> None:
        super().__init__()
        self.names = {_module_name(name): name for name in shapes}
        self.branches = nn.ModuleDict(
            {_module_name(n): _branch(part, config) for n, part in shapes.items()}
        )
        self.shape: MapShape = (sum(branch.out for branch in self.branches.values()), 1, 1)  # type: ignore[misc]

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        counts = {StandardizedInput: ADAPT_VECTORS, ImageBranch: ADAPT_IMAGES}
        found = {name: counts.get(type(self.branches[key]), 0) for key, name in self.names.items()}
        return {name: count for name, count in found.items() if count}

    def adapt(self, obs: Observation) -> None:
        """Takes observations `[N, *O]` as the unit of those senses that have one."""
        for key, branch in self.branches.items():
            if isinstance(branch, StandardizedInput | ImageBranch):
                branch.adapt(as_dict(obs)[self.names[key]])

    def standardized_inputs(self) -> dict[str, StandardizedInput]:
        """The branches that have a unit for each number, by the name of what they read."""
        found = {self.names[key]: branch for key, branch in self.branches.items()}
        return {name: b for name, b in found.items() if isinstance(b, StandardizedInput)}

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        parts, names = as_dict(obs), self.names
        features = (
            scale_modality(s(parts[names[k]]), modality_weights.get(names[k], 1))
            for k, s in self.branches.items()
        )
        return torch.cat(list(features), 1)


def _module_name(name: str) -> str:
    """What a module may be called: not as what every dictionary of modules can do or has."""
    return f"sense {name}" if not name or hasattr(nn.ModuleDict(), name) else name


def _branch(shape: tuple[int, ...], config: MultiModalEncoderConfig) -> nn.Module:
    if len(shape) == 3:
        return ImageBranch(shape, config)
    return FourierBranch(shape, config) if config.vector_dim else StandardizedInput(shape)
