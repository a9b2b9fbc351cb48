"""Windy Rooms: two rooms with a pit between them, and gusts of wind that may blow the point mass
into it."""

from .env import WindyRoomsEnv, WindyRoomsVectorEnv

__all__ = ["WindyRoomsEnv", "WindyRoomsVectorEnv"]
