"""Energies of true and of perturbed next states: low on data and high off it, if the world model
holds an energy surface (LeCun 2022, 4.3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ami_agent.agent import Agent

TRUE = "true"
NOISE_LEVELS = {TRUE: 0.0, **{f"noise {n:g}": n for n in (0.25, 0.5, 1.0, 2.0, 4.0)}}
"""Standard deviation of the noise on each dimension of the state, in units of its root mean square
change in a step."""
LATER = (1, 3, 7)
"""Next states are also those of so many steps later."""


class NextStateEnergy(NamedTuple):
    """Energies of one kind of next states."""

    energy: float
    """Mean, in units of the mean energy of predicting no change, without a latent variable."""
    above: float
    """Fraction of the pairs whose energy is above that with the true next state."""


@torch.no_grad()
def energy_curve(agent: Agent, states: Tensor, actions: Tensor) -> dict[str, NextStateEnergy]:
    """The energy of a true next state, of that with growing noise, of later states and of that of
    another trajectory; states `[(T + 1) B, D]`, actions `[B, T, A]`."""
    by_step = states.unflatten(0, (-1, len(actions))).to(agent.device)  # [T + 1, B, D]
    num_pairs = max(1, actions.shape[1] - LATER[-1])  # of each trajectory
    state, true = by_step[:num_pairs], by_step[1 : num_pairs + 1]
    action = actions[:, :num_pairs].transpose(0, 1).to(agent.device)
    mean_square = (true - state).square().mean((0, 1))  # [D]
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
    unit = mean_square.sqrt() * noise
    next_states = {
        **{name: true + level * unit for name, level in NOISE_LEVELS.items()},
        **{
            f"{n} step{'s' * (n > 1)} later": by_step[1 + n : num_pairs + 1 + n]
            for n in LATER
            if num_pairs + n < len(by_step)
        },
        "another trajectory": true.roll(1, 1),
    }
    energies = {
        name: agent.world_model.energy(state, action, next_state)  # [num_pairs, B]
        for name, next_state in next_states.items()
    }
    no_change = (mean_square.sum() / 2).clamp_min(1e-12)
    return {
        name: NextStateEnergy(
            float((energy / no_change).mean()), float((energy > energies[TRUE]).float().mean())
        )
        for name, energy in energies.items()
    }
