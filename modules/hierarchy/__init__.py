"""Hierarchy: the levels above the lowest, which plan in strides of many steps (LeCun 2022, 4.7).

What a level hopes for becomes a subgoal: the condition that the level below must satisfy. It takes
the place of the goal in the focus, so that every mode pursues it, and knows nothing of it.
"""

from modules.hierarchy.common import Flat, Hierarchy
from modules.hierarchy.imagined import ImaginedGraph
from modules.hierarchy.landmarks import LandmarkGraph
from modules.hierarchy.macros import MacroLevels

__all__ = ["Flat", "Hierarchy", "ImaginedGraph", "LandmarkGraph", "MacroLevels"]
