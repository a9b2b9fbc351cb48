"""What becomes of a map while somebody goes by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

EDGE_PENALTY = 8.0
"""Steps by which a first hop becomes dearer that led nowhere."""

MIN_PROGRESS = 0.5
"""Steps; who has moved by less has got nowhere."""


class EdgeFeedback(NamedTuple):
    """How far each of B worlds trusts the map of K landmarks. Hops between landmarks were made by
    somebody; the first, from where one is to a landmark, is the critic's word alone."""

    last_embedding: Tensor  # [B, F] where it was when it last looked back
    chosen_edge: Tensor  # [B] its first hop: a landmark's, or K, straight to the goal
    follow_closely: Tensor  # [B] bool: it goes by the next landmark, not a stride along its way
    penalty: Tensor  # [B, K + 1] how much dearer each first hop has become

    def update(
        self, current: Tensor, moved: Tensor, away_from_goal: Tensor, neighbours: Tensor
    ) -> EdgeFeedback:
        """Now at `[B, F]`, after so many steps; `away_from_goal` `[B]` bool from the goal; `neighbours` `[K, K]`
        bool, or `[B, K, K]`, says which landmarks are. Who gets nowhere follows its way more
        closely; if that was so already, it takes the first hop, and those beside it, for dearer
        than it did, until another way is cheaper. Who gets on forgets it by and by, and who is
        nearly there at once."""
        stuck = (moved < MIN_PROGRESS) & away_from_goal
        neighbours_or_goal = nn.functional.pad(
            neighbours, (0, 1, 0, 1)
        )  # what leads to the goal is beside itself
        neighbours_or_goal[..., -1, -1] = True
        rows = torch.arange(len(current), device=current.device)
        near_chosen = neighbours_or_goal.expand(len(current), -1, -1)[
            rows, self.chosen_edge
        ]  # [B, K + 1]
        blamed = near_chosen & (stuck & self.follow_closely)[:, None]
        penalty = (
            self.penalty * (0.5 + 0.5 * stuck)[:, None] * away_from_goal[:, None]
            + EDGE_PENALTY * blamed
        )
        return self._replace(last_embedding=current, follow_closely=stuck, penalty=penalty)


def initial_feedback(current: Tensor, count: int) -> EdgeFeedback:
    """At `[B, F]`, nothing is known against a map of so many landmarks."""
    chosen = torch.full((len(current),), count, device=current.device)
    return EdgeFeedback(current, chosen, chosen < count, current.new_zeros(len(current), count + 1))
