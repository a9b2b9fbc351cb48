"""Mode-2: deliberation. Every planner is an `Actor` over the same `RolloutEvaluator`."""

from modules.actor.planning.collocation import Collocation, CollocationConfig
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.actor.planning.gradient import GradientPlanner, GradientPlannerConfig
from modules.actor.planning.sampling import CEM, MPPI, CEMConfig, MPPIConfig

__all__ = [
    "CEM",
    "MPPI",
    "CEMConfig",
    "Collocation",
    "CollocationConfig",
    "GradientPlanner",
    "GradientPlannerConfig",
    "MPPIConfig",
    "RolloutEvaluator",
]
