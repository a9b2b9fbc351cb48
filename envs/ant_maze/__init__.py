"""Ant Maze: a quadruped in a maze, moved by MuJoCo."""

from .single import AntMazeEnv
from .worlds import AntMazeVectorEnv

__all__ = ["AntMazeEnv", "AntMazeVectorEnv"]
