"""Two rooms, a wall, a door: find the way through."""

from ..batched import DynamicsTest
from .single import TwoRoomsEnv
from .variants import VARIANTS, Variant
from .worlds import TwoRoomsVectorEnv

__all__ = ["VARIANTS", "DynamicsTest", "TwoRoomsEnv", "TwoRoomsVectorEnv", "Variant"]
