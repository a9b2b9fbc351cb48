"""Push: a hand, moved by MuJoCo, pushes a block to a place on a table."""

from .single import PushEnv
from .worlds import PushVectorEnv

__all__ = ["PushEnv", "PushVectorEnv"]
