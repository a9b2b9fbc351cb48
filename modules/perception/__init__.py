"""Perception: encoders from observations to latent states.

Five interchangeable encoders: one image to a vector; one image to a feature map; one image to a
vector by keypoints and their motion; one image to keypoints and a map of the static scene; any
number of modalities (vectors, sets, images) to a vector. All return flat states `[B, D]`, and
`shape` says how D folds into `[C, h, w]` (a vector is 1 by 1).

Modality weights scale the features of each modality (priming, LeCun 2022, 3.1.1).
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
from modules.perception.target_encoder import (
    EMATarget,
    EMATargetConfig,
    OnlineTarget,
    OnlineTargetConfig,
    StopGradientTarget,
    StopGradientTargetConfig,
    TargetEncoder,
)

Perception = (
    ImageEncoder | SpatialEncoder | KeypointEncoder | KeypointMapEncoder | MultiModalEncoder
)

__all__ = [
    "EMATarget",
    "EMATargetConfig",
    "ImageEncoder",
    "ImageEncoderConfig",
    "KeypointEncoder",
    "KeypointEncoderConfig",
    "KeypointMapEncoder",
    "KeypointMapEncoderConfig",
    "MultiModalEncoder",
    "MultiModalEncoderConfig",
    "OnlineTarget",
    "OnlineTargetConfig",
    "Perception",
    "SpatialEncoder",
    "SpatialEncoderConfig",
    "StopGradientTarget",
    "StopGradientTargetConfig",
    "TargetEncoder",
]
