"""Mode-2: planning. Every planner is an actor that optimizes actions with a `RolloutEvaluator`."""

from modules.actor.planning.collocation import Collocation, CollocationConfig
from modules.actor.planning.evaluator import RandomProposals, RolloutEvaluator, safe_std
from modules.actor.planning.gradient import GradientPlanner, GradientPlannerConfig
from modules.actor.planning.risk import (
    ScenarioCVaR,
    ScenarioCVaRConfig,
    latin_hypercube,
)
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
    "RandomProposals",
    "RolloutEvaluator",
    "ScenarioCVaR",
    "ScenarioCVaRConfig",
    "latin_hypercube",
    "safe_std",
]
