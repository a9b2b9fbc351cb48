"""Corrections of a path while the agent follows it: its first edge becomes more expensive where the
agent makes no progress."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

EDGE_PENALTY = 8.0
"""Steps added to the cost of a first edge along which the agent made no progress."""

MIN_PROGRESS = 0.5
"""Steps; an agent that has moved less is stuck."""


class EdgeFeedback(NamedTuple):
    """Penalties on the first edge of a path, from the agent to one of K landmarks or to the goal,
    in each of B environments. Edges between landmarks were observed; the first edge is an estimate
    of the critic alone."""

    last_embedding: Tensor  # [B, F] the agent's state at the last update
    chosen_edge: Tensor  # [B] its first edge: the index of a landmark, or K for the goal
    follow_closely: Tensor  # [B] bool: the subgoal is the next landmark, not one further along
    penalty: Tensor  # [B, K + 1] added to the cost of each first edge

    def update(
        self, current: Tensor, moved: Tensor, away_from_goal: Tensor, neighbours: Tensor
    ) -> EdgeFeedback:
        """`current` `[B, F]`: the present state; `moved` `[B]`: steps from the last one to it;
        `away_from_goal` `[B]` bool; `neighbours` `[K, K]` or `[B, K, K]` bool: landmarks close to
        each other. A stuck agent follows its path more closely. If it already did, the chosen first
        edge and those to its neighbours become more expensive, until another path is cheaper. The
        penalties decay with progress and vanish near the goal."""
        stuck = (moved < MIN_PROGRESS) & away_from_goal
        neighbours_or_goal = nn.functional.pad(neighbours, (0, 1, 0, 1))
        neighbours_or_goal[..., -1, -1] = True  # the goal is a neighbour of itself alone
        rows = torch.arange(len(current), device=current.device)
        near_chosen = neighbours_or_goal.expand(len(current), -1, -1)[rows, self.chosen_edge]
        blamed = near_chosen & (stuck & self.follow_closely)[:, None]  # [B, K + 1]
        decay = (0.5 + 0.5 * stuck)[:, None]
        penalty = self.penalty * decay * away_from_goal[:, None] + EDGE_PENALTY * blamed
        return self._replace(last_embedding=current, follow_closely=stuck, penalty=penalty)


def initial_feedback(current: Tensor, count: int) -> EdgeFeedback:
    """No penalties, for states `[B, F]` and `count` landmarks."""
    chosen = torch.full((len(current),), count, device=current.device)
    return EdgeFeedback(current, chosen, chosen < count, current.new_zeros(len(current), count + 1))
