"""All that can stand in the boxes, for settings written in Python: a variant of a recipe is
`dataclasses.replace(recipe, planner=boxes.CEM.Config())`."""

from modules.actor import Calm, Habit, MapPolicy, NoHabit, Policy, Restless
from modules.bounds import Ball, Box
from modules.configurator import Configurator
from modules.cost import Critic, MapQuasimetric, NoCritic, Quasimetric
from modules.objectives import Weights
from modules.perception import MapEncoder, VectorEncoder
from modules.planners import CEM, MPPI, GradientPlanner
from modules.targets import Itself, MovingAverage
from modules.world_model import MapDynamics, VectorDynamics, WorldModel

__all__ = [
    "CEM",
    "MPPI",
    "Ball",
    "Box",
    "Calm",
    "Configurator",
    "Critic",
    "GradientPlanner",
    "Habit",
    "Itself",
    "MapDynamics",
    "MapEncoder",
    "MapPolicy",
    "MapQuasimetric",
    "MovingAverage",
    "NoCritic",
    "NoHabit",
    "Policy",
    "Quasimetric",
    "Restless",
    "VectorDynamics",
    "VectorEncoder",
    "Weights",
    "WorldModel",
]
