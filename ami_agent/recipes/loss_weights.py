"""Weights of the world model's loss that several recipes share."""

from ami_agent.training.representation_losses import LossWeights

STATE_WEIGHTS = LossWeights(
    prediction=10, variance=4, covariance=0.5, temporal_similarity=0, inverse_dynamics=1
)
"""For states of a few numbers."""

IDENTITY_WEIGHTS = LossWeights(
    prediction=0,
    scaled_prediction=1,
    variance=0,
    covariance=0,
    temporal_similarity=0,
    inverse_dynamics=0,
)
"""For vectors that are states as they are and can't collapse: their prediction errors count in
units of their change from step to step."""
