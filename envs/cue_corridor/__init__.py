"""A corridor that forks: a cue, seen only at the start, says which arm is right."""

from .single import CueCorridorEnv
from .worlds import CueCorridorVectorEnv

__all__ = ["CueCorridorEnv", "CueCorridorVectorEnv"]
