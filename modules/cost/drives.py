"""Drives: intrinsic costs that are fixed functions of interoceptive signals (LeCun 2022, 3.2 and
4.3).

A drive is a differentiable function of one signal. It has no parameters, so nothing can train it;
the world model learns to predict the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import CONTINUE, ConfigError

SET_POINT = 1.0
"""Energy level from which on hunger is 0."""


def hunger(energy: Tensor) -> Tensor:
    """Energy below the set point."""
    return (SET_POINT - energy).relu()


def pain(damage: Tensor) -> Tensor:
    """Damage."""
    return damage


def taste(meal: Tensor) -> Tensor:
    """Minus the food eaten."""
    return -meal


def reward(reward: Tensor) -> Tensor:
    """Minus the reward of the environment."""
    return -reward


@dataclass(frozen=True)
class Drive:
    """One intrinsic cost: its signal, the function, the unit and a reference."""

    channel: str
    cost: Callable[[Tensor], Tensor]
    unit: str
    reference: str


DRIVES: Mapping[str, Drive] = {
    "hunger": Drive("energy", hunger, "energy below the set point", "Keramati & Gutkin 2014"),
    "pain": Drive("damage", pain, "damage of a step", "LeCun 2022, 4.3"),
    "taste": Drive("meal", taste, "ripe foods", "Berridge 2004"),
    "reward": Drive("reward", reward, "rewards of the environment", "Sutton & Barto 2018, 3.2"),
}


CENTRED = ("reward",)
"""Drives that are linear in their signal, so that a constant part of it can be subtracted."""


class Drives:
    """The drives of an agent, and the signals (`channels`) that its environment declares."""

    def __init__(self, names: Sequence[str], channels: Sequence[str]) -> None:
        for name in names:
            if name not in DRIVES:
                raise ConfigError(f"no drive is called {name!r}; there are {', '.join(DRIVES)}")
            if DRIVES[name].channel not in channels:
                raise ConfigError(
                    f"the drive {name!r} needs the signal {DRIVES[name].channel!r}, which this "
                    f"environment does not declare; it declares {', '.join(channels)}"
                )
        self.names = tuple(names)
        self.columns = [channels.index(DRIVES[name].channel) for name in names]
        self.continue_index = [i for i, channel in enumerate(channels) if channel == CONTINUE]

    def __call__(self, interoception: Tensor) -> Tensor:
        """Signals `[..., I]` -> the cost of each drive, `[..., W]`."""
        costs = [
            DRIVES[name].cost(interoception[..., column])
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
