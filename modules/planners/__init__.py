"""Mode-2: deliberation. Every planner is an `Actor` over the same `MindsEye`."""

from modules.planners.collocation import Collocation
from modules.planners.common import MindsEye
from modules.planners.gradient import GradientPlanner
from modules.planners.sampling import CEM, MPPI

__all__ = ["CEM", "MPPI", "Collocation", "GradientPlanner", "MindsEye"]
