"""What becomes of a map while somebody goes by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

DEBT = 8.0
"""Steps by which a first hop becomes dearer that led nowhere."""

LITTLE = 0.5
"""Steps; who has moved by less has got nowhere."""


class Trust(NamedTuple):
    """How far each of B worlds trusts the map of K landmarks. Hops between landmarks were made by
    somebody; the first, from where one is to a landmark, is the critic's word alone."""

    before: Tensor  # [B, F] where it was when it last looked back
    chosen: Tensor  # [B] its first hop: a landmark's, or K, straight to the goal
    closely: Tensor  # [B] bool: it goes by the next landmark, not a stride along its way
    debt: Tensor  # [B, K + 1] how much dearer each first hop has become

    def repaired(self, here: Tensor, moved: Tensor, away: Tensor, beside: Tensor) -> Trust:
        """Now at `[B, F]`, after so many steps; `away` `[B]` bool from the goal; `beside` `[K, K]`
        bool, or `[B, K, K]`, says which landmarks are. Who gets nowhere follows its way more
        closely; if that was so already, it takes the first hop, and those beside it, for dearer
        than it did, until another way is cheaper. Who gets on forgets it by and by, and who is
        nearly there at once."""
        nowhere = (moved < LITTLE) & away
        same = nn.functional.pad(beside, (0, 1, 0, 1))  # what leads to the goal is beside itself
        same[..., -1, -1] = True
        rows = torch.arange(len(here), device=here.device)
        alike = same.expand(len(here), -1, -1)[rows, self.chosen]  # [B, K + 1]
        blamed = alike & (nowhere & self.closely)[:, None]
        debt = self.debt * (0.5 + 0.5 * nowhere)[:, None] * away[:, None] + DEBT * blamed
        return self._replace(before=here, closely=nowhere, debt=debt)


def trusted(here: Tensor, count: int) -> Trust:
    """At `[B, F]`, nothing is known against a map of so many landmarks."""
    chosen = torch.full((len(here),), count, device=here.device)
    return Trust(here, chosen, chosen < count, here.new_zeros(len(here), count + 1))
