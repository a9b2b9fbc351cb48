"""A critic without parameters: the future intrinsic cost of a state, estimated from what lasting
memory holds of earlier episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.types import Rollout, TaskContext


def remembered_cost(rollout: Rollout, context: TaskContext) -> Tensor:
    """F(s) = -1/beta log(1 + sum_j exp(-beta (c_j + u d(s, k_j)))), mean over the path, `[B, P]`:
    the soft minimum over remembered states k_j of the cost c_j that followed and of the way there,
    and of 0, where nothing is remembered (the free energy of LeCun 2022, 3.3, with j as the latent
    variable; the keys and values of Pritzel et al. 2017).

    Its slope with respect to c_j is the attention to memory j. F is never above the cost of a
    remembered state and of the way there, and changes by u a unit of distance at most."""
    memory = context.remembered
    if memory is None:
        return rollout.actions.sum((-2, -1)) * 0
    states = rollout.states[:, :, 1:]
    energies = memory.energies(states.flatten(1, 2))  # [B, P H, M + 1]
    free_energy = -torch.logsumexp(-memory.beta * energies, -1) / memory.beta
    return free_energy.unflatten(1, states.shape[1:3]).mean(-1)
