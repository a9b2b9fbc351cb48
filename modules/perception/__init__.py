"""Perception: what the senses deliver becomes a latent state.

Five encoders, interchangeable: a vector state from one image, a map state that keeps *where* things
are, a vector state by way of points and how they move, a scene of such points before a map of what
stays, and a vector state from any number of senses, vectors, things and images. All hand out flat
states `[B, D]` and say in `shape` how D folds into `[C, h, w]` (a vector is 1 by 1).

Perception is primed by gains: how much of what a sense delivers comes through.
"""

from modules.perception.image import (
    ImageEncoder,
    ImageEncoderConfig,
    KeypointEncoder,
    KeypointEncoderConfig,
    SpatialEncoder,
    SpatialEncoderConfig,
)
from modules.perception.keypoint_map import KeypointMapEncoder, KeypointMapEncoderConfig
from modules.perception.multi_modal import MultiModalEncoder, MultiModalEncoderConfig

Perception = (
    ImageEncoder | SpatialEncoder | KeypointEncoder | KeypointMapEncoder | MultiModalEncoder
)

__all__ = [
    "ImageEncoder",
    "ImageEncoderConfig",
    "KeypointEncoder",
    "KeypointEncoderConfig",
    "KeypointMapEncoder",
    "KeypointMapEncoderConfig",
    "MultiModalEncoder",
    "MultiModalEncoderConfig",
    "Perception",
    "SpatialEncoder",
    "SpatialEncoderConfig",
]  # fmt: skip
