"""Networks that several modules share."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.types import WIDTH, BadSetting, ConfigError, MapShape, Settings


def silu_mlp(size: int, hidden: int, out: int) -> nn.Sequential:
    """`[..., size]` -> two hidden layers -> `[..., out]`"""
    return nn.Sequential(
        nn.Linear(size, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    )


def check_goal_dims(goal_dims: int, shape: MapShape) -> int:
    """Returns `goal_dims`; raises ConfigError if a state has fewer numbers."""
    if goal_dims > prod(shape):
        raise ConfigError(f"goal_dims is {goal_dims}, but a state has {prod(shape)} numbers")
    return goal_dims


class TakeFirst(nn.Module):
    """`[..., D]` -> the first `count` numbers, `[..., count]`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, state: Tensor) -> Tensor:
        return state[..., : self.count]


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, N]` -> mean and standard deviation of each column, `[N]` float64. The standard deviation
    is 0 where a column varies by no more than its rounding error."""
    if not values.is_floating_point():
        values = values.double()
    exact, mean, std = values.double(), values.mean(0).double(), values.std(0).double()
    in_range = (std > 1e-15) & (std < 1e15)  # beyond, squares leave the range of float32
    mean = torch.where(in_range, mean, exact.mean(0))
    std = torch.where(in_range, std, exact.std(0))
    rounding = 4 * torch.finfo(values.dtype).eps * exact.abs().amax(0)
    return mean, torch.where(std > rounding, std, 0.0)


OUTLIER_FACTOR = 100.0
"""A scale is outdated for data that deviate from the mean by more than this many scales, or never
by more than 1 / this many."""
LARGE_MEAN_FACTOR = 10.0
"""A mean of more than this many standard deviations is subtracted; otherwise it would dominate."""


def updated_scale(
    max_deviation: Tensor, std: Tensor, scale: Tensor, was_constant: Tensor
) -> Tensor:
    """New scales `[N]` for data with these largest deviations from the mean and standard
    deviations: `scale`, unless it is outdated. Columns that were constant when `scale` was set
    (`was_constant`) take the largest deviation, so that a rare reward becomes about 1."""
    has_left = (std > 0) & (
        (max_deviation > OUTLIER_FACTOR * scale) | (max_deviation < scale / OUTLIER_FACTOR)
    )
    unit = torch.where(
        was_constant, max_deviation, torch.maximum(std, max_deviation / LARGE_MEAN_FACTOR)
    )
    return torch.where(has_left, unit, scale)


class StandardizedHead(nn.Module):
    """Layers that predict `[..., N]` standardized numbers, and the mean and scale (the unit) of
    each."""

    mean: Tensor
    scale: Tensor
    offset: Tensor  # [N] float64: subtracted from the targets before they are cast to float32

    CONSTANT_UNIT = 1.0
    """The scale of a target that never varied, relative to its absolute value."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size, dtype=torch.float64))

    def adapt(self, targets: Tensor, centred: Tensor | None = None) -> None:
        """Takes mean and scale from the targets `[M, N]`. The scale of a constant target is its
        absolute value, or 1 where it is 0, since it may vary later. Where `centred` `[N]` bool
        allows it, a mean much larger than the standard deviation becomes the offset."""
        self.offset.zero_()
        if centred is not None:
            mean, std = mean_and_std(targets.double())
            self.offset.copy_(torch.where(centred & _is_large_mean(mean, std), mean, 0.0))
        mean, std = mean_and_std(self.subtract_offset(targets))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, self._constant_units()))

    def subtract_offset(self, targets: Tensor) -> Tensor:
        """Targets `[..., N]` of any precision -> what the head is trained on: less the offset."""
        return (targets.double() - self.offset).to(self.mean.dtype)

    def update_units(self, targets: Tensor, centred: Tensor) -> Tensor:
        """Takes new scales where those of the targets `[M, N]` are outdated. Where a scale grows,
        the layers are rescaled so that predictions stay the same (PopArt, van Hasselt et al. 2016).
        Returns the factor by which each scale has grown, `[N]`."""
        targets = targets.double()
        mean, std = mean_and_std(targets)
        was_constant = (self.scale == self._constant_units()) | (self.scale == 0)
        needs_offset = centred & (self.offset == 0) & _is_large_mean(mean, std)
        constant = torch.where(was_constant, self.mean.double(), mean)
        offset = torch.where(needs_offset, constant, self.offset)
        center = torch.where(needs_offset, 0.0, self.mean)
        max_deviation = (targets - offset - center.double()).abs().amax(0)
        # with the mean subtracted the old scale is too coarse; 0 makes it outdated
        previous_scale = torch.where(needs_offset, 0.0, self.scale.double())
        unit = updated_scale(max_deviation, std, previous_scale, was_constant).to(self.scale.dtype)
        self.offset.copy_(offset)
        self.mean.copy_(center)
        unit = torch.where((std == 0) & ~centred & self.offset.any(), 0.0, unit)
        growth = torch.where((unit > 0) & (self.scale > 0), unit / self.scale, 1.0)
        self.scale.copy_(unit)
        self.rescale(growth)
        return growth

    def has_outliers(self, targets: Tensor) -> Tensor:
        """Whether any target `[M, N]` is more than OUTLIER_FACTOR scales from the mean."""
        deviation = (self.subtract_offset(targets) - self.mean).abs()
        return (deviation > OUTLIER_FACTOR * self.scale).any()

    def rescale(self, growth: Tensor) -> None:
        """Divides the outputs of the layers by the factors `[N]` by which the scales have grown.
        Where a scale shrinks they stay: outputs that were negligible in a scale that was too large
        remain negligible."""
        heads = self.layers if isinstance(self.layers, EnsembleHead) else [self.layers]
        with torch.no_grad():
            for head in heads:
                last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
                last.weight.div_(growth.clamp_min(1)[:, None])
                last.bias.div_(growth.clamp_min(1))

    def error_scale(self) -> Tensor:
        """The unit of errors, `[N]`; 1 where the scale is 0, whose predictions are exact."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def _constant_units(self) -> Tensor:
        """The scales of constant targets, `[N]`. If any target has an offset they are 0: the end of
        an episode then costs the discounted sum of the offset, so a small error of the predicted
        continuation, which was always 1, would dominate every other cost."""
        size = torch.where(self.mean == 0, 1.0, self.CONSTANT_UNIT * self.mean.abs())
        return torch.where(self.offset.any(), 0.0, size)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`"""
        return self.mean + self.scale * self.layers(state)


def _is_large_mean(mean: Tensor, std: Tensor) -> Tensor:
    return (std > 0) & (mean.abs() > LARGE_MEAN_FACTOR * std)


def relu_mlp(size: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """`[..., size]` -> three hidden ReLU layers -> `[..., out]`: for functions that change within a
    small part of the state space, which smooth layers are slow to learn. `norm`: with
    LayerNorm."""
    layers: list[nn.Module] = []
    for width in (size, hidden, hidden):
        norm_layers = [nn.LayerNorm(hidden)] if norm else []
        layers += [nn.Linear(width, hidden), *norm_layers, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out))


class EnsembleHead(nn.ModuleList):
    """K networks that predict the same targets, `[..., D]` -> `[K, ..., N]`."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.stack([member(state) for member in self])


class TransformerBlock(nn.Module):
    """Tokens `[N, L, W]` -> the same shape: self-attention and an MLP, each after a LayerNorm and
    added to its input (Vaswani et al. 2017; pre-norm as in ViT, Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        attention_norm, mlp_norm = self.norms
        joint = self.to_query_key_value(attention_norm(tokens))
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)  # [N, heads, L, W']
        tokens = tokens + self.project(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(mlp_norm(tokens))


def check_heads(width: int, heads: int) -> None:
    """Raises BadSetting where tokens of `width` can't have `heads`, or positions in a plane."""
    if width % 4:
        raise BadSetting("width", width, "a multiple of 4: sines and cosines of two coordinates")
    if width % heads:
        raise BadSetting("heads", heads, f"a divisor of width, {width}")


def sincos_positions(width: int, *sizes: int) -> Tensor:
    """`[L, width]`: sines and cosines of the coordinates of each cell of a grid of these sizes, row
    by row, with wavelengths from 2 pi to 20,000 pi cells (Vaswani et al. 2017, 3.5); each
    coordinate has an equal share of the width."""
    count = width // (2 * len(sizes))
    frequencies = 10_000.0 ** -(torch.arange(count) / count)
    axes = torch.meshgrid(*(torch.arange(float(size)) for size in sizes), indexing="ij")
    phases = torch.stack(axes, -1).flatten(0, -2)[..., None] * frequencies  # [L, axes, count]
    return torch.cat([phases.sin(), phases.cos()], -1).flatten(1)


class FourierFeatures(nn.Module):
    """Numbers `[..., N]` -> the numbers, and sines and cosines of them at W random frequencies,
    `[..., N + 2 W]`: small differences of the input become large ones, which an MLP alone is slow
    to learn (Fourier features, Tancik et al. 2020)."""

    frequencies: Tensor

    def __init__(self, size: int, num_frequencies: int, frequency_scale: float) -> None:
        super().__init__()
        self.out = size + 2 * num_frequencies
        self.register_buffer("frequencies", frequency_scale * torch.randn(size, num_frequencies))

    def forward(self, values: Tensor) -> Tensor:
        values = values.to(self.frequencies.dtype)
        phase = values @ self.frequencies
        return torch.cat([values, phase.sin(), phase.cos()], -1)


def fourier_linear(
    size: int, num_frequencies: int, frequency_scale: float, out: int
) -> nn.Sequential:
    """`[..., size]` -> a linear layer on Fourier features, `[..., out]`"""
    features = FourierFeatures(size, num_frequencies, frequency_scale)
    return nn.Sequential(features, nn.Linear(features.out, out))


class ConvHead(nn.Module):
    """Flat states `[..., D]`, folded into maps -> two convolutions and an MLP -> `[..., out]`."""

    def __init__(self, shape: MapShape, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            nn.Unflatten(-1, shape),
            nn.Conv2d(shape[0], channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            silu_mlp(channels * shape[1] * shape[2], hidden, out),
        )

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state.flatten(0, -2)).unflatten(0, state.shape[:-1])


POSITION_SCALE = 2.0
"""Factor on keypoint positions, which lie from -1 to 1: with it they vary by about 1, as the other
numbers of a state do."""


@dataclass(frozen=True, kw_only=True)
class GlimpseConfig(Settings):
    points: Annotated[int, WIDTH] = 1
    """Keypoints in the state."""
    channels: Annotated[int, WIDTH] = 4
    """Channels C of the feature map in the state."""
    radius: Annotated[int, (0, 1000)] = 2
    """Cells of the map that the glimpse covers to every side of a keypoint."""

    def build(self, shape: MapShape) -> Glimpse:
        side = isqrt(max(0, prod(shape) - 4 * self.points) // self.channels)
        if side < 2 or 4 * self.points + self.channels * side**2 != prod(shape):
            raise ConfigError(
                f"a state of {prod(shape)} numbers does not hold {self.points} points and a map of "
                f"{self.channels} channels; perception must be a KeypointMapEncoder with as many"
            )
        return Glimpse(self, side)


class Glimpse(nn.Module):
    """Keypoints and the part of a feature map around each. The state `[..., D]` is that of a
    `KeypointMapEncoder`: x and y of each keypoint, their motion, then the map `[C, S, S]` of the
    static scene. Relative to a keypoint, a wall looks the same wherever it stands (a glimpse, Mnih
    et al. 2014; sampled bilinearly, as in spatial transformers, Jaderberg et al. 2015)."""

    offsets: Tensor

    def __init__(self, config: GlimpseConfig, side: int) -> None:
        super().__init__()
        self.map_shape, self.moving_dims = (config.channels, side, side), 4 * config.points
        steps = torch.arange(-config.radius, config.radius + 1) * (2 / (side - 1))
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        self.register_buffer("offsets", grid.flatten(0, 1))  # [R, 2], in half widths of the map
        self.out = self.moving_dims + config.points * config.channels * len(self.offsets)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., out]`, the keypoints and their motion first"""
        flat = state.flatten(0, -2)
        moving, static = flat.split([self.moving_dims, flat.shape[-1] - self.moving_dims], -1)
        position = moving[:, : self.moving_dims // 2].unflatten(-1, (2, -1)).mT  # [N, K, 2]
        glimpse = nn.functional.grid_sample(
            static.unflatten(-1, self.map_shape),
            (position / POSITION_SCALE)[:, :, None] + self.offsets,
            align_corners=True,
            padding_mode="border",
        )
        return torch.cat([moving, glimpse.flatten(1)], -1).unflatten(0, state.shape[:-1])
