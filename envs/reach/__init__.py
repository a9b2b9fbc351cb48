"""Reach: an arm of two links, moved by MuJoCo, brings its fingertip to a place."""

from .single import ReachEnv
from .worlds import ReachVectorEnv

__all__ = ["ReachEnv", "ReachVectorEnv"]
