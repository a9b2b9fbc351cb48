"""One pure loss per trainable box.

A loss maps a batch to its terms by name, each a scalar tensor; the names are the names of the
weights.
"""

from __future__ import annotations

from ami_agent.training.goal_critic_loss import (
    LagrangeMultiplier,
    hjepa_level_loss,
    path_regression_loss,
    quasimetric_loss,
    temporal_difference_loss,
)
from ami_agent.training.jepa_loss import unroll_loss, world_model_loss
from ami_agent.training.padding import ValidSteps, valid_macro_steps
from ami_agent.training.value_loss import (
    actor_critic_loss,
    behaviour_cloning_loss,
    choice_loss,
    expectile_value_loss,
    lambda_returns,
)

__all__ = [
    "LagrangeMultiplier",
    "ValidSteps",
    "actor_critic_loss",
    "behaviour_cloning_loss",
    "choice_loss",
    "expectile_value_loss",
    "hjepa_level_loss",
    "lambda_returns",
    "path_regression_loss",
    "quasimetric_loss",
    "temporal_difference_loss",
    "unroll_loss",
    "valid_macro_steps",
    "world_model_loss",
]
