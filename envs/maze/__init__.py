"""Maze: a body with momentum finds its way between walls."""

from .maps import MAPS
from .single import MazeEnv
from .worlds import MazeVectorEnv

__all__ = ["MAPS", "MazeEnv", "MazeVectorEnv"]
