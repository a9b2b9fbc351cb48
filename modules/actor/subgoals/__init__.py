"""Subgoals: levels above the lowest, which plan in steps of many environment steps (LeCun 2022,
4.7).

The state that a level plans for becomes the subgoal of the level below. It takes the place of the
goal in the `TaskContext`, so every actor pursues it without knowing about levels. Learnt levels
(`HierarchicalJEPA`) are in `world_model/hjepa.py`.
"""

from modules.actor.subgoals.base import Hierarchy, LevelInfo
from modules.actor.subgoals.imagined_graph import ImaginedLandmarkGraph, ImaginedLandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import LandmarkGraph, LandmarkGraphConfig
from modules.actor.subgoals.remembered_goal import RememberedGoal, RememberedGoalConfig
from modules.actor.subgoals.shortest_paths import edge_costs, shortest_paths

__all__ = [
    "Hierarchy",
    "ImaginedLandmarkGraph",
    "ImaginedLandmarkGraphConfig",
    "LandmarkGraph",
    "LandmarkGraphConfig",
    "LevelInfo",
    "RememberedGoal",
    "RememberedGoalConfig",
    "edge_costs",
    "shortest_paths",
]
