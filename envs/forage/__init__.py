"""Forage: eat before you starve, and mind the place that hurts."""

from .single import ForageEnv
from .tasks import TASKS
from .worlds import ForageVectorEnv

__all__ = ["TASKS", "ForageEnv", "ForageVectorEnv"]
