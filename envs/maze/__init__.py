"""Maze: a point mass with momentum finds its way between walls to a goal."""

from .dynamics import MAPS
from .env import MazeEnv, MazeVectorEnv

__all__ = ["MAPS", "MazeEnv", "MazeVectorEnv"]
