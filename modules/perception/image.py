"""Encoders of one image: to a vector, to a feature map, to a vector by keypoints, or to keypoints
and a map of the static scene; and the parts that all encoders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from modules.by_hand.caches import DerivedFromWeights
from modules.nets import POSITION_SCALE, silu_mlp
from modules.types import (
    WIDTH,
    ConfigError,
    MapShape,
    ModalityWeights,
    Observation,
    Settings,
)

ModalityShapes = Mapping[str, tuple[int, ...]]
"""The shape of each modality of an observation, by name."""

BYTES = 255.0
"""The largest value of a uint8 pixel."""


def image_shape(shapes: ModalityShapes, patch: int) -> MapShape:
    """The shape of the only modality, an image; raises ConfigError for other observations."""
    shape = next(iter(shapes.values()), ())
    if len(shapes) == 1 and len(shape) == 3 and min(shape[1:]) >= patch:
        return shape  # type: ignore[return-value]
    given = " ".join(str(s) if n == "obs" else f"{n} {s}" for n, s in shapes.items())
    raise ConfigError(
        f"observations of shape {given} are no images [channels, height, width] "
        f"of at least {patch} by {patch} pixels, which this encoder needs"
    )


def scale_modality(part: Tensor, weight: float | Tensor) -> Tensor:
    """`[B, ...]` times its weight, one number or `[B]`."""
    if isinstance(weight, Tensor):
        return part * weight.reshape(-1, *[1] * (part.ndim - 1))
    return part if weight == 1 else part * weight


class MaskableImage(Protocol):
    """The encoder of an image of which some patches can be hidden, for masked pretraining. Patches
    are numbered row by row, L = h w."""

    grid: tuple[int, int]
    """h, w: the patches of an image."""
    side: int
    """Pixels along a side of a patch."""
    patch_dim: int
    """F: features of a patch."""
    context_dim: int
    """F': numbers of a token of the context."""
    has_vector_state: bool
    """Whether the context is a single token, the state."""

    def encode_patches(self, image: Tensor) -> Tensor:
        """Whole images `[N, C, S, S]` -> the features of all patches, `[N, L, F]`."""

    def encode_context(self, image: Tensor, shown: Tensor) -> Tensor:
        """Images `[N, C, S, S]` of which only the patches `shown` `[N, K]` are visible -> a token
        for each of these, `[N, K, F']`, or a single one for all, the state, `[N, 1, F']`."""


class Encoder(nn.Module):
    """Observations `[B, *O]` -> states `[B, D]`; D folds into `shape`."""

    shape: MapShape

    def maskable_images(self) -> Mapping[str, MaskableImage]:
        """The images of which patches can be hidden, by modality; "" where there is only one
        modality. None by default."""
        return {}

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        """The modalities that `adapt` reads, by name, and how many observations of each."""
        return {}

    def adapt(self, obs: Observation) -> None:
        """Takes the scale of the inputs from observations `[N, *O]`; most encoders need none."""


def weighted_image(
    obs: Observation, modality_weights: ModalityWeights, background: Tensor | None = None
) -> Tensor:
    """The only modality of an observation, uint8 or float from 0 to 1, less a background
    `[C, S, S]`, times its weight -> pixels `[B, C, S, S]` from 0 to 255."""
    ((name, image),) = [("obs", obs)] if isinstance(obs, Tensor) else obs.items()
    pixels = BYTES * image if image.is_floating_point() else image
    if background is not None:
        pixels = pixels - background
    return scale_modality(pixels, modality_weights.get(name, 1))


def unweighted_image(image: Tensor) -> Tensor:
    """Images `[N, C, S, S]`, uint8 or float from 0 to 1 -> pixels from 0 to 255."""
    return weighted_image(image, {})


class PatchEmbed(nn.Module):
    """A linear layer over patches of pixels `[N, C, S, S]` from 0 to 255 -> `[N, C', h, w]`. A
    matrix product over rearranged uint8 is several times faster than a strided convolution. Pixels
    beyond the last whole patch are ignored, as in a vision transformer."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)
        self.constants: DerivedFromWeights[Tensor] = DerivedFromWeights()

    def forward(self, obs: Tensor) -> Tensor:
        patches, layer = self.patches(obs), self.project
        weight = self.constants.get([layer.weight], lambda: (layer.weight / BYTES).t())
        if weight is None:
            weight = (layer.weight / BYTES).t()
        features = torch.addmm(layer.bias, patches.flatten(0, 2).to(weight.dtype), weight)
        return features.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)

    def patches(self, obs: Tensor) -> Tensor:
        """`[N, h, w, C p p]`, of the same type."""
        size = self.patch
        patches = obs.unfold(2, size, size).unfold(3, size, size)  # [N, C, h, w, p, p]
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


def select_patches(features: Tensor, index: Tensor) -> Tensor:
    """Patches `[N, L, F]`, indices `[N, K]` -> `[N, K, F]`."""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))


def pixel_mask(index: Tensor, grid: tuple[int, int], side: int, size: Sequence[int]) -> Tensor:
    """Which pixels of images of this size the patches `[N, K]` cover, `[N, 1, S, S]` bool: none
    beyond the last patch."""
    covered = torch.zeros(len(index), prod(grid), dtype=torch.bool, device=index.device)
    mask = covered.scatter_(1, index, True).unflatten(1, grid)
    mask = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)  # [N, h side, w side]
    below, right = (max(0, whole - part) for whole, part in zip(size, mask.shape[1:], strict=True))
    return nn.functional.pad(mask, (0, right, 0, below))[:, None, : size[0], : size[1]]


def hide_patches(
    image: Tensor, shown: Tensor, grid: tuple[int, int], side: int, fill: Tensor
) -> Tensor:
    """Images `[N, C, S, S]` with `fill` `[C]` in the place of all pixels but those of the patches
    `shown` `[N, K]`."""
    mask = pixel_mask(shown, grid, side, image.shape[2:])
    return torch.where(mask, image, fill.to(image.dtype)[:, None, None])


class ConvMasking:
    """Hides patches from an encoder of convolutions: it reads the whole image, with a constant in
    the place of what is hidden. A patch is what one cell of its map covers."""

    def __init__(
        self, to_map: Callable[[Tensor], Tensor], to_state: nn.Module | None,
        map_shape: MapShape, state_dim: int, side: int, fill: Tensor,
    ) -> None:  # fmt: skip
        """`to_map`: images -> maps `[N, F, h, w]`; `to_state`: maps -> states `[N, D]`, or None
        where the map is the state. `fill`: the constant, of each channel `[C]`."""
        self.to_map, self.to_state, self.side, self.fill = to_map, to_state, side, fill
        self.patch_dim, *sides = map_shape
        self.grid = (sides[0], sides[1])
        self.has_vector_state = to_state is not None
        self.context_dim = state_dim if self.has_vector_state else self.patch_dim

    def encode_patches(self, image: Tensor) -> Tensor:
        return self.to_map(image).flatten(2).transpose(1, 2)

    def encode_context(self, image: Tensor, shown: Tensor) -> Tensor:
        feature_map = self.to_map(hide_patches(image, shown, self.grid, self.side, self.fill))
        if self.to_state is not None:
            return self.to_state(feature_map)[:, None]
        return select_patches(feature_map.flatten(2).transpose(1, 2), shown)


MAP_LAYERS = 4
"""Of `image_layers`: those up to the map that the convolution makes."""


def mask_image_layers(
    layers: nn.Sequential, sides: Sequence[int], read: Callable[[Tensor], Tensor], fill: Tensor
) -> ConvMasking:
    """Masking of `image_layers` for images with `sides` of so many pixels. Each cell of the map is
    at every second patch of the first layer. `read`: images -> what the layers read."""
    each: list[Any] = list(layers)
    embed, _, convolution, *_ = each
    to_map = nn.Sequential(*each[:MAP_LAYERS])
    grid = [-(-(pixels // embed.patch) // 2) for pixels in sides]
    return ConvMasking(
        lambda image: to_map(read(image)),
        nn.Sequential(*each[MAP_LAYERS:]),
        (convolution.out_channels, grid[0], grid[1]),
        each[-1].out_features,
        2 * embed.patch,
        fill,
    )


def image_layers(embed: PatchEmbed, sides: Sequence[int], hidden: int, out: int) -> list[nn.Module]:
    """Images with `sides` of so many pixels -> `[N, out]`: patches, a convolution and an MLP."""
    width = embed.project.out_features
    cells = prod(-(-(pixels // embed.patch) // 2) for pixels in sides)
    return [
        embed,
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(2 * width * cells, hidden),
        nn.LayerNorm(hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    ]


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(Settings):
    patch: Annotated[int, WIDTH] = 5
    """Side of the patches of the first layer, in pixels."""
    channels: Annotated[int, WIDTH] = 16
    hidden: Annotated[int, WIDTH] = 128
    state_dim: Annotated[int, WIDTH] = 32
    """D"""

    def build(self, shapes: ModalityShapes) -> ImageEncoder:
        return ImageEncoder(self, image_shape(shapes, self.patch))


class ImageEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> vector state `[B, D]` (`image_layers`)."""

    def __init__(self, config: ImageEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        self.shape: MapShape = (config.state_dim, 1, 1)
        self.obs_shape = obs_shape
        embed = PatchEmbed(obs_shape[0], config.patch, config.channels)
        layers = image_layers(embed, obs_shape[1:], config.hidden, config.state_dim)
        self.layers = nn.Sequential(*layers)

    def maskable_images(self) -> Mapping[str, MaskableImage]:
        channels, *sides = self.obs_shape
        black = next(self.parameters()).new_zeros(channels)
        return {"": mask_image_layers(self.layers, sides, unweighted_image, black)}

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        return self.layers(weighted_image(obs, modality_weights))


@dataclass(frozen=True, kw_only=True)
class SpatialEncoderConfig(Settings):
    patch: Annotated[int, WIDTH] = 4
    channels: Annotated[int, WIDTH] = 16
    hidden: Annotated[int, WIDTH] = 32

    def build(self, shapes: ModalityShapes) -> SpatialEncoder:
        return SpatialEncoder(self, image_shape(shapes, self.patch))


class SpatialEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> map state `[B, D]`, D = C' h w, which keeps spatial positions."""

    def __init__(self, config: SpatialEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        height, width = (pixels // config.patch for pixels in obs_shape[1:])
        self.shape: MapShape = (config.channels, height, width)
        self.num_channels, self.patch = obs_shape[0], config.patch
        self.layers = nn.Sequential(
            PatchEmbed(obs_shape[0], config.patch, config.hidden),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, padding=1),
            nn.Flatten(),
        )

    def maskable_images(self) -> Mapping[str, MaskableImage]:
        black = next(self.parameters()).new_zeros(self.num_channels)
        return {
            "": ConvMasking(
                lambda image: self.layers[:-1](unweighted_image(image)),
                None, self.shape, 0, self.patch, black,
            )
        }  # fmt: skip

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        return self.layers(weighted_image(obs, modality_weights))


class SpatialSoftmax(nn.Module):
    """Images `[B, C, S, S]` from 0 to 1 -> x and y, from -1 to 1, of several keypoints: the mean
    position of each feature map under a softmax over positions (deep spatial autoencoders, Finn et
    al. 2016)."""

    def __init__(
        self, in_channels: int, channels: int, points: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.feature_maps = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2),
            nn.SiLU(),
            nn.Conv2d(channels, points, 1),
        )
        self.sharpness = nn.Parameter(torch.full((points, 1), 3.0))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 2 * points]`, all x first"""
        maps = self.feature_maps(image)
        size = maps.shape[-2:]
        normalized = nn.functional.layer_norm(maps.flatten(2), (size.numel(),))
        attention = (self.sharpness * normalized).softmax(-1).unflatten(-1, size)
        x, y = (
            mass @ torch.linspace(-1, 1, mass.shape[-1], dtype=mass.dtype, device=mass.device)
            for mass in (attention.sum(-2), attention.sum(-1))  # [B, points, width or height]
        )
        return torch.cat([x, y], -1)


CHANNEL = (0, 65_535)
"""Valid numbers of a channel, whatever the image."""


def check_channels(num_channels: int, **chosen: tuple[int, ...]) -> None:
    """Raises ConfigError for a channel that an image of `num_channels` does not have."""
    for name, channels in chosen.items():
        if max(channels, default=0) >= num_channels:
            raise ConfigError(
                f"{name} has channel {max(channels)} of an image that has {num_channels}; "
                f"channels are from 0 to {num_channels - 1}"
            )


BACKGROUND_IMAGES = 256
"""Observations that the background is taken from."""


@dataclass(frozen=True, kw_only=True)
class KeypointEncoderConfig(Settings):
    kernel: Annotated[int, WIDTH] = 5
    stride: Annotated[int, WIDTH] = 2
    channels: Annotated[int, WIDTH] = 8
    points: Annotated[int, WIDTH] = 8
    """Number of keypoints."""
    current_channels: Annotated[tuple[int, ...], CHANNEL] = ()
    """Channels of the image that show the latest frame; empty: all."""
    previous_channels: Annotated[tuple[int, ...], CHANNEL] = ()
    """Channels that show the frame before, as many; empty: the image shows one frame."""
    motion_scale: Annotated[float, (0.0, 1e6)] = 8.0
    """Factor on the motion of the keypoints, relative to their positions."""
    subtract_background: bool = False
    """Whether each pixel is taken relative to its median over the first observations, for a camera
    and a scene that do not move: what moves is left."""
    hidden: Annotated[int, WIDTH] = 64
    state_dim: Annotated[int, WIDTH] = 4
    """D"""

    def __post_init__(self) -> None:
        super().__post_init__()
        current, previous = len(self.current_channels), len(self.previous_channels)
        if previous and previous != current:
            raise ConfigError(
                f"current_channels has {current} channels and previous_channels {previous}; "
                "they must have as many"
            )

    def build(self, shapes: ModalityShapes) -> KeypointEncoder:
        shape = image_shape(shapes, self.kernel)
        check_channels(
            shape[0],
            current_channels=self.current_channels,
            previous_channels=self.previous_channels,
        )
        return KeypointEncoder(self, shape, next(iter(shapes)))


class KeypointEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> vector state `[B, D]`, by keypoints (`SpatialSoftmax`). If an
    observation shows two frames, the motion of the keypoints is an input of the MLP too (latent
    flow, Shang et al. 2021): a small difference of large numbers, which layers on both frames are
    slow to learn."""

    background: Tensor | None  # [C, S, S], from 0 to 255

    def __init__(
        self, config: KeypointEncoderConfig, obs_shape: MapShape, name: str = "obs"
    ) -> None:
        """`name`: of the only modality."""
        super().__init__()
        self.name = name
        self.shape: MapShape = (config.state_dim, 1, 1)
        self.current_channels = list(config.current_channels or range(obs_shape[0]))
        self.previous_channels = list(config.previous_channels)
        self.motion_scale = config.motion_scale
        self.points = SpatialSoftmax(
            len(self.current_channels), config.channels, config.points, config.kernel, config.stride
        )
        num_frames = 2 if self.previous_channels else 1
        self.layers = silu_mlp(2 * config.points * num_frames, config.hidden, config.state_dim)
        background = torch.zeros(obs_shape) if config.subtract_background else None
        self.register_buffer("background", background)

    @property
    def adapt_sizes(self) -> Mapping[str, int]:
        return {} if self.background is None else {self.name: BACKGROUND_IMAGES}

    def adapt(self, obs: Observation) -> None:
        """Takes the background, if it is subtracted, from observations `[N, C, S, S]`."""
        if self.background is not None:
            self.background.copy_(weighted_image(obs, {}).float().median(0).values)

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        image = weighted_image(obs, modality_weights, self.background)
        pixels = image.to(self.points.sharpness.dtype) / BYTES
        points = self.points(pixels[:, self.current_channels])
        if not self.previous_channels:
            return self.layers(points)
        motion = self.motion_scale * (points - self.points(pixels[:, self.previous_channels]))
        return self.layers(torch.cat([points, motion], -1))


KERNEL = 5
"""Side of the convolution that finds keypoints, in pixels."""


@dataclass(frozen=True, kw_only=True)
class KeypointMapEncoderConfig(Settings):
    current_channels: Annotated[tuple[int, ...], CHANNEL] = (1,)
    """Channels of the image that show the moving objects in the latest frame."""
    previous_channels: Annotated[tuple[int, ...], CHANNEL] = (2,)
    """Channels that show them in the frame before, as many."""
    static_channels: Annotated[tuple[int, ...], CHANNEL] = (0,)
    """Channels that show the static scene."""
    points: Annotated[int, WIDTH] = 1
    """Number of keypoints."""
    motion_scale: Annotated[float, (0.0, 1e6)] = 8.0
    """Factor on the motion of the keypoints, relative to their positions from -1 to 1."""
    hidden: Annotated[int, WIDTH] = 16
    channels: Annotated[int, WIDTH] = 4
    """Channels of the map."""
    stride: Annotated[int, WIDTH] = 2
    """Pixels between the cells of the map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        current, previous = len(self.current_channels), len(self.previous_channels)
        static = len(self.static_channels)
        if not current == previous >= 1 or not static:
            raise ConfigError(
                f"current_channels has {current} channels, previous_channels {previous} and "
                f"static_channels {static}; each must have at least one, and previous_channels as "
                "many as current_channels"
            )

    def build(self, shapes: ModalityShapes) -> KeypointMapEncoder:
        channels, *sides = image_shape(shapes, KERNEL)
        if sides[0] != sides[1]:
            raise ConfigError(f"the image is of {sides[0]} by {sides[1]}; it must be a square")
        check_channels(
            channels,
            current_channels=self.current_channels,
            previous_channels=self.previous_channels,
            static_channels=self.static_channels,
        )
        return KeypointMapEncoder(self, sides[0])


class KeypointMapEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> state `[B, D]` of two parts: position and motion of some keypoints,
    4 numbers each, and a map `[C', S', S']` of the static scene. Each part keeps its own share of
    the state, and dynamics that read the map around the keypoints (`GlimpseDynamicsConfig`) learn
    the effect of walls once for all layouts."""

    def __init__(self, config: KeypointMapEncoderConfig, side: int) -> None:
        super().__init__()
        self.config = config
        self.points = SpatialSoftmax(
            len(config.current_channels), config.hidden // 2, config.points, KERNEL, 1
        )
        self.map = nn.Sequential(
            nn.Conv2d(len(config.static_channels), config.hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.hidden, config.channels, 3, config.stride, padding=1),
            nn.Flatten(),
        )
        map_side = -(-side // config.stride)
        self.shape: MapShape = (4 * config.points + config.channels * map_side**2, 1, 1)

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        config, image = self.config, weighted_image(obs, modality_weights)
        pixels = image.to(self.points.sharpness.dtype) / BYTES
        current, previous = (
            self.points(pixels[:, list(c)])
            for c in (config.current_channels, config.previous_channels)
        )
        static = self.map(pixels[:, list(config.static_channels)])
        return torch.cat(
            [POSITION_SCALE * current, config.motion_scale * (current - previous), static], 1
        )
