"""Latent variables: what can't be known of the next state (LeCun 2022, 4.5 and 4.6).

In training z is inferred from the state that followed, and how much it may tell of it is limited;
in planning it is drawn. Chance comes in from outside, as uniform numbers in [0, 1): whoever draws
decides what is random, and the same numbers are the same future.
"""

from modules.world_model.latents.common import Latent, NoLatent, NoLatentConfig
from modules.world_model.latents.continuous import (
    GaussianLatent,
    GaussianLatentConfig,
    SparseLatent,
    SparseLatentConfig,
)
from modules.world_model.latents.discrete import CategoricalLatent, CategoricalLatentConfig

__all__ = [
    "CategoricalLatent",
    "CategoricalLatentConfig",
    "GaussianLatent",
    "GaussianLatentConfig",
    "Latent",
    "NoLatent",
    "NoLatentConfig",
    "SparseLatent",
    "SparseLatentConfig",
]
