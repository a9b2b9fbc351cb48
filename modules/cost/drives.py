"""Drives: intrinsic costs of the interoceptive signals, which the world model learns to predict
(LeCun 2022, 3.2), and their sum over an imagined future."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from modules.cost.value_critics import ValueCritics
from modules.types import CONTINUE, ConfigError, Rollout

SET_POINT = 1.0
"""Energy level from which on hunger is 0."""


def hunger(energy: Tensor) -> Tensor:
    """Energy below the set point (Keramati & Gutkin 2014)."""
    return (SET_POINT - energy).relu()


def pain(damage: Tensor) -> Tensor:
    """Damage of a step (LeCun 2022, 3.2)."""
    return damage


def taste(meal: Tensor) -> Tensor:
    """Minus the ripe foods eaten (Berridge 2004)."""
    return -meal


def reward(reward: Tensor) -> Tensor:
    """Minus the reward of the environment (Sutton & Barto 2018, 3.2)."""
    return -reward


DRIVES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "hunger": ("energy", hunger),
    "pain": ("damage", pain),
    "taste": ("meal", taste),
    "reward": ("reward", reward),
}
"""The signal of each drive, and its cost as a function of the signal."""

CENTRED = ("reward",)
"""Drives that are linear in their signal, so that a constant part of it can be subtracted."""


class Drives:
    """The drives of an agent, and the signals (`channels`) that its environment declares."""

    def __init__(self, names: Sequence[str], channels: Sequence[str]) -> None:
        for name in names:
            if name not in DRIVES:
                raise ConfigError(f"no drive is called {name!r}; there are {', '.join(DRIVES)}")
            signal, _ = DRIVES[name]
            if signal not in channels:
                raise ConfigError(
                    f"the drive {name!r} needs the signal {signal!r}, which this "
                    f"environment does not declare; it declares {', '.join(channels)}"
                )
        self.names = tuple(names)
        self.columns = [channels.index(DRIVES[name][0]) for name in names]
        self.continue_index = [i for i, channel in enumerate(channels) if channel == CONTINUE]

    def __call__(self, interoception: Tensor) -> Tensor:
        """Signals `[..., I]` -> the cost of each drive, `[..., W]`."""
        costs = [
            DRIVES[name][1](interoception[..., column])
            for name, column in zip(self.names, self.columns, strict=True)
        ]
        return torch.stack(costs, -1) if costs else interoception[..., :0]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the signals whose constant part may be subtracted, because it adds a constant
        to the cost."""
        columns = dict(zip(self.names, self.columns, strict=True))
        centred = [columns[name] for name in CENTRED if name in columns]
        return torch.tensor([channel in centred for channel in range(channels)])

    def step_shift(self, subtract_offset: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
        """The constant by which the cost of a step grows when the offset is subtracted from the
        signals, `[W]`; `zero` `[I]` are signals of 0."""
        return self(subtract_offset(zero)) - self(zero)

    def continue_prob(self, interoception: Tensor) -> Tensor:
        """Signals `[..., I]` -> the probability that the episode continues, `[...]`; 1 where no
        signal says so."""
        return interoception[..., self.continue_index].clamp(0, 1).prod(-1)

    def survival(self, interoception: Tensor) -> tuple[Tensor, Tensor]:
        """Signals of H steps `[..., H, I]` -> the probabilities that the episode has not ended
        before each step and after it, both `[..., H]`."""
        after = self.continue_prob(interoception).cumprod(-1)
        return torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1), after


DISCOUNT = 0.97
"""gamma of the costs up to the horizon, where no critics predict those beyond it."""


class InteroceptiveCost(nn.Module):
    """The costs of the drives over an imagined future, and the values that the critics predict.

    The estimate is the mean over k = 1..H of the k-step returns c_1 + .. + gamma^(k-1) c_k +
    gamma^k V(s_k): every term depends on the first actions, and the estimate does not grow with the
    horizon. If episodes may terminate, every step is weighted by the probability that the episode
    has not ended."""

    def __init__(
        self, drives: Drives, value_critics: ValueCritics | None, discount: float = DISCOUNT
    ) -> None:
        """`discount` counts only without critics, which have their own."""
        super().__init__()
        self.drives, self.value_critics, self.discount = drives, value_critics, discount
        self.drives_with_critic = drives.names if value_critics is not None else ()

    def names(self) -> list[str]:
        """The names of all energies: the drives and their critics."""
        return [*self.drives.names, *(f"critic_{name}" for name in self.drives_with_critic)]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the signals whose constant part may be subtracted. Without critics there are
        none, since no value would account for the end of an episode."""
        allowed = self.drives.centred(channels)
        return allowed if self.drives_with_critic else torch.zeros_like(allowed)

    def forward(self, rollout: Rollout, limits: Mapping[str, float]) -> dict[str, Tensor]:
        """Unweighted energies by name, each `[B, P]`, and the amount by which each limit is
        exceeded, under the name "limit <drive>"."""
        step_costs = self.drives(rollout.interoception)  # [B, P, H, W]
        horizon = rollout.actions.shape[2]
        step = torch.arange(horizon, device=step_costs.device, dtype=step_costs.dtype)
        critics = self.value_critics
        gamma = self.discount if critics is None else critics.discount
        discounts = gamma**step
        alive_before, alive_after = self.drives.survival(rollout.interoception)  # [B, P, H]
        step_weights = alive_before * discounts * (1 - step / horizon)
        immediate = torch.einsum("bphw,bph->bpw", step_costs, step_weights)
        energies = dict(zip(self.drives.names, immediate.unbind(-1), strict=True))
        step_shift = step_costs.new_zeros(step_costs.shape[-1])
        if critics is not None:
            step_shift = critics.step_shift()
            value_weights = alive_after * discounts * gamma / horizon
            values = critics(rollout.states[:, :, 1:])
            bootstrap = torch.einsum("bphw,bph->bpw", values, value_weights)
            termination = (
                (alive_before - alive_after) * discounts * gamma * (1 - step / horizon)
            ).sum(-1, keepdim=True)
            bootstrap = bootstrap + termination * critics.terminal
            names = (f"critic_{name}" for name in self.drives_with_critic)
            energies |= zip(names, bootstrap.unbind(-1), strict=True)
        for name, limit in limits.items():
            column = self.drives.names.index(name)
            excess = (step_costs[..., column] - (limit + step_shift[column])).relu()
            energies[f"limit {name}"] = (alive_before * excess).sum(-1)
        return energies
