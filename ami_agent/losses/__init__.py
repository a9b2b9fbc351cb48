"""One pure loss per trainable box.

A loss maps a batch to its terms by name, each a scalar tensor; the names are the names of the
weights.
"""

from __future__ import annotations

from ami_agent.losses.distance import (
    Multiplier,
    level_loss,
    quasimetric_loss,
    taught_loss,
    temporal_difference_loss,
)
from ami_agent.losses.drives import (
    actor_critic_loss,
    choice_loss,
    foresight_loss,
    lambda_returns,
    policy_loss,
)
from ami_agent.losses.padding import Keep, in_strides
from ami_agent.losses.world_model import unroll_loss, world_model_loss

__all__ = [
    "Keep",
    "Multiplier",
    "actor_critic_loss",
    "choice_loss",
    "foresight_loss",
    "in_strides",
    "lambda_returns",
    "level_loss",
    "policy_loss",
    "quasimetric_loss",
    "taught_loss",
    "temporal_difference_loss",
    "unroll_loss",
    "world_model_loss",
]
