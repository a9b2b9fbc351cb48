"""Hierarchy: the levels above the lowest, which plan in strides of many steps (LeCun 2022, 4.7).

What a level hopes for becomes a subgoal: the condition that the level below must satisfy. It takes
the place of the goal in the focus, so that every mode pursues it, and knows nothing of it.
"""

from modules.actor.subgoals.base import Flat, FlatConfig, Hierarchy
from modules.actor.subgoals.imagined_graph import ImaginedLandmarkGraph, ImaginedLandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import LandmarkGraph, LandmarkGraphConfig
from modules.world_model.hjepa import HierarchicalJEPA, HierarchicalJEPAConfig

__all__ = [
    "Flat",
    "FlatConfig",
    "HierarchicalJEPA",
    "HierarchicalJEPAConfig",
    "Hierarchy",
    "ImaginedLandmarkGraph",
    "ImaginedLandmarkGraphConfig",
    "LandmarkGraph",
    "LandmarkGraphConfig",
]
