"""Cost: intrinsic costs, drives and critics (LeCun 2022, 4.3)."""

from modules.cost.cost import (
    Cost,
    GoalCritic,
    GoalCriticConfig,
    InteroceptiveCost,
    NoGoalCritic,
    NoGoalCriticConfig,
    NoValueCritics,
    NoValueCriticsConfig,
    ValueCritics,
    ValueCriticsConfig,
)
from modules.cost.drives import DRIVES, Drives
from modules.cost.quasimetric import (
    ConvQuasimetric,
    ConvQuasimetricConfig,
    FourierQuasimetric,
    FourierQuasimetricConfig,
    GlimpseQuasimetric,
    GlimpseQuasimetricConfig,
    Quasimetric,
    QuasimetricConfig,
)

__all__ = [
    "DRIVES",
    "ConvQuasimetric",
    "ConvQuasimetricConfig",
    "Cost",
    "Drives",
    "FourierQuasimetric",
    "FourierQuasimetricConfig",
    "GlimpseQuasimetric",
    "GlimpseQuasimetricConfig",
    "GoalCritic",
    "GoalCriticConfig",
    "InteroceptiveCost",
    "NoGoalCritic",
    "NoGoalCriticConfig",
    "NoValueCritics",
    "NoValueCriticsConfig",
    "Quasimetric",
    "QuasimetricConfig",
    "ValueCritics",
    "ValueCriticsConfig",
]
