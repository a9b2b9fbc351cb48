"""All that can stand in the boxes, for settings written in Python: a variant of a recipe is
`dataclasses.replace(recipe, planner=boxes.CEM.Config())`."""

from modules.actor import Calm, Habit, MapPolicy, NoHabit, Policy, Restless
from modules.auto import Auto
from modules.bounds import Ball, Box, Choice
from modules.configurator import Assignment, Configurator
from modules.cost import Critic, Foresight, NoCritic, NoForesight
from modules.distance import GlanceQuasimetric, MapQuasimetric, Quasimetric, WaveQuasimetric
from modules.dynamics import GlanceDynamics, MapDynamics, VectorDynamics, WaveDynamics
from modules.hierarchy import Flat, ImaginedGraph, LandmarkGraph, MacroLevels
from modules.hierarchy.levels import InStrides, UpperLevel
from modules.latents import DiscreteLatent, GaussianLatent, NoLatent, SparseLatent
from modules.layers import Glance
from modules.objectives import Weights
from modules.perception import KeypointEncoder, MapEncoder, SceneEncoder, Senses, VectorEncoder
from modules.planners import CEM, MPPI, Collocation, GradientPlanner
from modules.planners.outlook import ManyFutures
from modules.recall import Associative, Belief, NoRecall
from modules.targets import Itself, MovingAverage, Stopped
from modules.world_model import Certain, Ensemble, Feeling, Numb, StepFeeling, WorldModel

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
    "Choice",
    "Collocation",
    "Configurator",
    "Critic",
    "DiscreteLatent",
    "Ensemble",
    "Feeling",
    "Flat",
    "Foresight",
    "GaussianLatent",
    "Glance",
    "GlanceDynamics",
    "GlanceQuasimetric",
    "GradientPlanner",
    "Habit",
    "ImaginedGraph",
    "InStrides",
    "Itself",
    "KeypointEncoder",
    "LandmarkGraph",
    "MacroLevels",
    "ManyFutures",
    "MapDynamics",
    "MapEncoder",
    "MapPolicy",
    "MapQuasimetric",
    "MovingAverage",
    "NoCritic",
    "NoForesight",
    "NoHabit",
    "NoLatent",
    "NoRecall",
    "Numb",
    "Policy",
    "Quasimetric",
    "Restless",
    "SceneEncoder",
    "Senses",
    "SparseLatent",
    "StepFeeling",
    "Stopped",
    "UpperLevel",
    "VectorDynamics",
    "VectorEncoder",
    "WaveDynamics",
    "WaveQuasimetric",
    "Weights",
    "WorldModel",
]
