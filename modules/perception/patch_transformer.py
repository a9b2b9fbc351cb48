"""A vision transformer of one image: a vector state or a map state, from tokens of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Annotated

from torch import Tensor, nn

from modules.nets import TransformerBlock, check_heads, sincos_positions
from modules.perception.image import (
    Encoder,
    MaskableImage,
    ModalityShapes,
    PatchEmbed,
    image_shape,
    select_patches,
    unweighted_image,
    weighted_image,
)
from modules.types import WIDTH, ConfigError, MapShape, ModalityWeights, Observation, Settings


@dataclass(frozen=True, kw_only=True)
class PatchTransformerEncoderConfig(Settings):
    patch: Annotated[int, WIDTH] = 4
    """Side of a patch, in pixels, which divides both sides of the image."""
    width: Annotated[int, WIDTH] = 64
    """Features of a token, a multiple of 4."""
    depth: Annotated[int, (1, 100)] = 2
    """Transformer blocks."""
    heads: Annotated[int, WIDTH] = 4
    """Heads of self-attention, a divisor of `width`."""
    state_dim: Annotated[int, WIDTH] = 32
    """D of a vector state; the channels of a map state."""
    pool: bool = True
    """Whether the state is a vector, from the mean of all tokens; else it is a map of all
    patches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)

    def build(self, shapes: ModalityShapes) -> PatchTransformerEncoder:
        shape = image_shape(shapes, self.patch)
        common = gcd(*shape[1:])
        if common % self.patch:
            divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise ConfigError(
                f"patches of {self.patch} pixels don't divide images of {shape[1]} by {shape[2]}: "
                f"perception.patch must be one of {divisors}"
            )
        return PatchTransformerEncoder(self, shape)


class PatchTransformerEncoder(Encoder):
    """Pixels `[B, C, S, S]` -> state `[B, D]`: a linear embedding of patches, with sines and
    cosines of their positions, and transformer blocks (ViT, Dosovitskiy et al. 2021)."""

    positions: Tensor  # [L, W]

    def __init__(self, config: PatchTransformerEncoderConfig, obs_shape: MapShape) -> None:
        super().__init__()
        self.patch, self.pool = config.patch, config.pool
        height, width = (pixels // config.patch for pixels in obs_shape[1:])
        self.grid = (height, width)
        self.shape: MapShape = (config.state_dim, *((1, 1) if config.pool else self.grid))
        self.embed = PatchEmbed(obs_shape[0], config.patch, config.width)
        positions = sincos_positions(config.width, height, width)
        self.register_buffer("positions", positions, persistent=False)
        blocks = [TransformerBlock(config.width, config.heads) for _ in range(config.depth)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(config.width))
        self.head = nn.Linear(config.width, config.state_dim)

    def embed_patches(self, image: Tensor) -> Tensor:
        """Pixels `[N, C, S, S]` from 0 to 255 -> tokens with positions, `[N, L, W]`."""
        return self.embed(image).flatten(2).transpose(1, 2) + self.positions

    def forward(self, obs: Observation, modality_weights: ModalityWeights) -> Tensor:
        tokens = self.blocks(self.embed_patches(weighted_image(obs, modality_weights)))
        if self.pool:
            return self.head(tokens.mean(1))
        return self.head(tokens).transpose(1, 2).flatten(1)

    def maskable_images(self) -> Mapping[str, MaskableImage]:
        return {"": TransformerMasking(self)}


class TransformerMasking:
    """Hides patches from a vision transformer: it has no tokens of them."""

    has_vector_state = False

    def __init__(self, encoder: PatchTransformerEncoder) -> None:
        self.encoder, self.grid, self.side = encoder, encoder.grid, encoder.patch
        self.patch_dim = self.context_dim = encoder.head.in_features

    def encode_patches(self, image: Tensor) -> Tensor:
        tokens = self.encoder.embed_patches(unweighted_image(image))
        return self.encoder.blocks(tokens)

    def encode_context(self, image: Tensor, shown: Tensor) -> Tensor:
        tokens = self.encoder.embed_patches(unweighted_image(image))
        return self.encoder.blocks(select_patches(tokens, shown))
