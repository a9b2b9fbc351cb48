"""Point Maze: a ball in a maze, moved by MuJoCo."""

from .single import PointMazeEnv
from .worlds import PointMazeVectorEnv

__all__ = ["PointMazeEnv", "PointMazeVectorEnv"]
