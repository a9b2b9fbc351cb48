"""Perception: what the senses deliver becomes a latent state.

Five encoders, interchangeable: a vector state from one image, a map state that keeps *where* things
are, a vector state by way of points and how they move, a scene of such points before a map of what
stays, and a vector state from any number of senses, vectors, things and images. All hand out flat
states `[B, D]` and say in `shape` how D folds into `[C, h, w]` (a vector is 1 by 1).

Perception is primed by gains: how much of what a sense delivers comes through.
"""

from modules.perception.images import KeypointEncoder, MapEncoder, VectorEncoder
from modules.perception.scene import SceneEncoder
from modules.perception.senses import Senses

Perception = VectorEncoder | MapEncoder | KeypointEncoder | SceneEncoder | Senses

__all__ = [
    "KeypointEncoder", "MapEncoder", "Perception", "SceneEncoder", "Senses", "VectorEncoder",
]  # fmt: skip
