"""Windy Rooms: a pit between two rooms, and gusts of wind that may throw a body into it."""

from .single import WindyRoomsEnv
from .worlds import WindyRoomsVectorEnv

__all__ = ["WindyRoomsEnv", "WindyRoomsVectorEnv"]
