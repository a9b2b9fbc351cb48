"""Mode-2: planning (LeCun 2022, 3.1.2). A planner is a function `(state, context, carry) -> (plan,
carry)` that optimizes actions with a `RolloutEvaluator`; `PlanningActor` makes an actor of it."""

from modules.actor.planning.collocation import Collocation, CollocationConfig
from modules.actor.planning.evaluator import RandomProposals, RolloutEvaluator, safe_std
from modules.actor.planning.gradient import GradientPlanner, GradientPlannerConfig
from modules.actor.planning.risk import (
    EntropicRisk,
    EntropicRiskConfig,
    ScenarioCVaR,
    ScenarioCVaRConfig,
    latin_hypercube,
)
from modules.actor.planning.sampling import CEM, MPPI, CEMConfig, MPPIConfig
from modules.actor.planning.tree_search import TreeSearch, TreeSearchConfig

__all__ = [
    "CEM",
    "MPPI",
    "CEMConfig",
    "Collocation",
    "CollocationConfig",
    "EntropicRisk",
    "EntropicRiskConfig",
    "GradientPlanner",
    "GradientPlannerConfig",
    "MPPIConfig",
    "RandomProposals",
    "RolloutEvaluator",
    "ScenarioCVaR",
    "ScenarioCVaRConfig",
    "TreeSearch",
    "TreeSearchConfig",
    "latin_hypercube",
    "safe_std",
]
