"""Networks of masked pretraining alone, which no agent acts with: the predictor of hidden patches,
and a head that reads the motion of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.nets import TransformerBlock, check_heads, sincos_positions
from modules.perception.image import MaskableImage
from modules.types import WIDTH, MapShape, Settings


@dataclass(frozen=True, kw_only=True)
class MaskedPredictorConfig(Settings):
    width: Annotated[int, WIDTH] = 64
    """Features of a token, a multiple of 4 (I-JEPA: 384, narrower than the encoder)."""
    depth: Annotated[int, (1, 100)] = 2
    """Transformer blocks (I-JEPA: 6 to 16)."""
    heads: Annotated[int, WIDTH] = 4
    """Heads of self-attention, a divisor of `width`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)

    def build(self, image: MaskableImage, num_frames: int) -> MaskedPredictor:
        return MaskedPredictor(self, image, num_frames)


class MaskedPredictor(nn.Module):
    """Predicts the features of hidden patches from the context: a narrow vision transformer reads
    the tokens of the context, and for each patch to predict one learnt mask token at the position
    of that patch, in the plane and in time (I-JEPA, Assran et al. 2023; V-JEPA, Bardes et al.
    2024)."""

    positions: Tensor  # [L, W]
    times: Tensor  # [T, 1, W]

    def __init__(
        self, config: MaskedPredictorConfig, image: MaskableImage, num_frames: int
    ) -> None:
        super().__init__()
        width, self.has_positions = config.width, not image.has_vector_state
        self.read_context = nn.Linear(image.context_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        positions, times = sincos_positions(width, *image.grid), sincos_positions(width, num_frames)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("times", times[:, None], persistent=False)
        blocks = [TransformerBlock(width, config.heads) for _ in range(config.depth)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, image.patch_dim)

    def forward(self, context: Tensor, shown: Tensor, targets: Tensor) -> Tensor:
        """Tokens `[N, T, K, F']` of the patches `shown` `[N, K]`, or one state of each frame
        `[N, T, 1, F']`; `targets` `[N, M, K']`: blocks of patches, each predicted by itself ->
        features `[N, M, T, K', F]`."""
        num_blocks = targets.shape[1]
        tokens = self.read_context(context) + self.times
        if self.has_positions:
            tokens = tokens + self.positions[shown][:, None]
        tokens = tokens.flatten(1, 2).repeat_interleave(num_blocks, 0)  # [N M, T K, W]
        masked = self.mask_token + self.positions[targets.flatten(0, 1)][:, None] + self.times
        found = self.blocks(torch.cat([tokens, masked.flatten(1, 2)], 1))
        predicted = self.head(found[:, tokens.shape[1] :])
        return predicted.unflatten(1, masked.shape[1:3]).unflatten(0, (-1, num_blocks))


class FlowHead(nn.Module):
    """The motion of pixels between two frames, from the features of their patches: two convolutions
    (the flow estimator of MC-JEPA, Bardes et al. 2023, at one resolution)."""

    def __init__(self, map_shape: MapShape, hidden: int = 64) -> None:
        super().__init__()
        self.grid = map_shape[1:]
        self.layers = nn.Sequential(
            nn.Conv2d(2 * map_shape[0], hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, 2, 3, padding=1),
        )

    def forward(self, before: Tensor, after: Tensor, size: tuple[int, int]) -> Tensor:
        """Features of patches `[N, L, F]` of a frame and of the next -> x and y of the motion of
        every pixel of an image of this size, in pixels `[N, 2, S, S]`."""
        both = torch.cat([before, after], -1).transpose(1, 2).unflatten(2, self.grid)
        return nn.functional.interpolate(
            self.layers(both), size, mode="bilinear", align_corners=False
        )


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Images `[N, C, S, S]` -> each pixel x of the result is the image at x + flow(x), with flow
    `[N, 2, S, S]` in pixels; bilinear, and beyond the edge the nearest pixel."""
    height, width = image.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device),
        indexing="ij",
    )  # fmt: skip
    # pixel i has its centre at (2 i + 1) / size - 1
    grid = torch.stack(
        [(2 * (x + flow[:, 0]) + 1) / width - 1, (2 * (y + flow[:, 1]) + 1) / height - 1], -1
    )
    return nn.functional.grid_sample(
        image, grid.to(image.dtype), padding_mode="border", align_corners=False
    )
