"""Forage: the agent eats before its energy runs out, and keeps away from a hazard."""

from .dynamics import TASKS
from .env import ForageEnv, ForageVectorEnv

__all__ = ["TASKS", "ForageEnv", "ForageVectorEnv"]
