"""Two Rooms: a point mass goes through the door in a wall to a goal."""

from .env import TwoRoomsEnv, TwoRoomsVectorEnv
from .variants import VARIANTS, Variant

__all__ = ["VARIANTS", "TwoRoomsEnv", "TwoRoomsVectorEnv", "Variant"]
