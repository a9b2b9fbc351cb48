"""All that can stand in the boxes, for settings written in Python: a variant of a recipe is
`dataclasses.replace(recipe, planner=boxes.CEM.Config())`."""

from modules.actor import Calm, Habit, MapPolicy, NoHabit, Policy, Restless
from modules.auto import Auto
from modules.bounds import Ball, Box
from modules.configurator import Assignment, Configurator
from modules.cost import (
    Critic,
    Foresight,
    MapQuasimetric,
    NoCritic,
    NoForesight,
    Quasimetric,
    WaveQuasimetric,
)
from modules.dynamics import MapDynamics, VectorDynamics, WaveDynamics
from modules.hierarchy import Flat, LandmarkGraph
from modules.objectives import Weights
from modules.perception import KeypointEncoder, MapEncoder, Senses, VectorEncoder
from modules.planners import CEM, MPPI, GradientPlanner
from modules.recall import Associative, Belief, NoRecall
from modules.targets import Itself, MovingAverage
from modules.world_model import Certain, Ensemble, Feeling, Numb, WorldModel

__all__ = [
    "CEM",
    "MPPI",
    "Assignment",
    "Associative",
    "Auto",
    "Ball",
    "Belief",
    "Box",
    "Calm",
    "Certain",
    "Configurator",
    "Critic",
    "Ensemble",
    "Feeling",
    "Flat",
    "Foresight",
    "GradientPlanner",
    "Habit",
    "Itself",
    "KeypointEncoder",
    "LandmarkGraph",
    "MapDynamics",
    "MapEncoder",
    "MapPolicy",
    "MapQuasimetric",
    "MovingAverage",
    "NoCritic",
    "NoForesight",
    "NoHabit",
    "NoRecall",
    "Numb",
    "Policy",
    "Quasimetric",
    "Restless",
    "Senses",
    "VectorDynamics",
    "VectorEncoder",
    "WaveDynamics",
    "WaveQuasimetric",
    "Weights",
    "WorldModel",
]
